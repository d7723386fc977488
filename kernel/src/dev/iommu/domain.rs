//! What one function may reach: tables of three or four levels, each frame at its own address.
//!
//! A table of the last level is two frames: the entries, and beside each who wants it, a count of readers below one of writers. Tables are
//! freed only by `trim`, when nobody wants anything in them and the unit has forgotten them. Those above them are all there from the beginning.
//!
//! The kernel's own transfers are not refused for want of a table: that would lose what is written back, and memory might be short until it is.
//! Some tables of the last level are put aside for them; `trim` puts them back. Who finds none waits for other transfers to end.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use mm::object::cache::WINDOW;
use mm::{Errno, PAGE_SIZE};

use super::super::block::Piece;
use super::super::pci::Function;
use super::unit::{RUNS, Unit, entry};
use super::{READS, WRITES};
use crate::arch::time::now_ns;
use crate::dev::patience;
use crate::memory::{self, frames};
use crate::sync::IrqLock;
use crate::task;

/// Entries that let somebody reach a frame.
pub(super) static MAPPED: AtomicU64 = AtomicU64::new(0);
/// Zero is no domain's: units that remember what is absent use it.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A root's or function's entry: there is one.
const PRESENT: u64 = 1;
const ADDRESS: u64 = !(PAGE_SIZE - 1);
/// Entries of a table.
const ENTRIES: usize = 512;
/// A table of the last level: two frames.
const LAST: u8 = 1;

/// Tables that are put aside: as many as a transfer from or to a cache may need.
const SPARE: usize = WINDOW;

struct Tables {
    first: u64,
    spare: [u64; SPARE],
    /// How many of those there are.
    left: usize,
}

/// Whether a table may be one of those that are put aside.
#[derive(Clone, Copy)]
enum Spare {
    Leave,
    Take,
}

pub(super) struct Domain {
    unit: &'static Unit,
    function: Function,
    id: u16,
    /// Held while what the function may reach changes, until the unit knows.
    tables: IrqLock<Tables>,
}

/// Frames whose entries have changed, as runs; one more than `RUNS` stand for all.
struct Changed {
    runs: [(u64, u64); RUNS + 1],
    used: usize,
}

impl Changed {
    const NONE: Changed = Changed {
        runs: [(0, 0); RUNS + 1],
        used: 0,
    };

    fn add(&mut self, frame: u64) {
        if let Some(last) = self.runs[..self.used].last_mut()
            && last.1 + 1 == frame
        {
            last.1 = frame;
        } else if let Some(next) = self.runs.get_mut(self.used) {
            *next = (frame, frame);
            self.used += 1;
        }
    }

    fn runs(&self) -> &[(u64, u64)] {
        &self.runs[..self.used]
    }
}

/// An entry of the last level, and who wants it.
struct Leaf {
    entry: &'static AtomicU64,
    users: &'static AtomicU64,
}

impl Leaf {
    /// A frame's, in its table of the last level.
    fn of(table: u64, frame: u64) -> Leaf {
        let i = index(frame, 0);
        Leaf {
            entry: entry(table, i),
            users: entry(table + PAGE_SIZE, i),
        }
    }
}

/// The frames of `pieces`, one after the other; a frame of two pieces comes twice.
fn frames_of(pieces: impl Iterator<Item = Piece>) -> impl Iterator<Item = u64> {
    pieces.flat_map(|piece| {
        let end = piece.pa + u64::from(piece.len);
        piece.pa / PAGE_SIZE..end.div_ceil(PAGE_SIZE)
    })
}

/// One user with these rights.
fn user(rights: u64) -> u64 {
    (rights & READS) + ((rights & WRITES) << 31)
}

/// What they want together.
fn wanted(users: u64) -> u64 {
    let reads = if users as u32 != 0 { READS } else { 0 };
    let writes = if users >> 32 != 0 { WRITES } else { 0 };
    reads | writes
}

fn table(unit: &Unit, order: u8) -> Option<u64> {
    let table = frames::alloc_zeroed_block(order)?;
    unit.clean(table, PAGE_SIZE);
    Some(table)
}

/// Whether the unit can tell it from others.
fn reaches(unit: &Unit, frame: u64) -> bool {
    frame >> (unit.width() - 12) == 0
}

impl Tables {
    /// All but those of the last level, for all memory; and those that are put aside.
    fn new(unit: &Unit) -> Option<Tables> {
        let mut tables = Tables {
            first: table(unit, 0)?,
            spare: [0; SPARE],
            left: 0,
        };
        // What one table of the level above the last is for.
        let piece = (ENTRIES * ENTRIES) as u64;
        let memory = (0..memory::frames_end()).step_by(piece as usize);
        for frame in memory.filter(|&frame| reaches(unit, frame)) {
            let mut at = tables.first;
            for level in (2..unit.levels).rev() {
                let next = entry(at, index(frame, level));
                if next.load(Ordering::Relaxed) == 0 {
                    unit.write(next, table(unit, 0)? | READS | WRITES);
                }
                at = next.load(Ordering::Relaxed) & ADDRESS;
            }
        }
        while tables.left < SPARE {
            let one = table(unit, LAST)?;
            tables.put_aside(&[one]);
        }
        Some(tables)
    }

    /// The entry of a frame's table of the last level. `None`: there is no memory there.
    fn above(&self, levels: u32, frame: u64) -> Option<&'static AtomicU64> {
        let mut at = self.first;
        for level in (2..levels).rev() {
            let next = entry(at, index(frame, level)).load(Ordering::Relaxed);
            if next == 0 {
                return None;
            }
            at = next & ADDRESS;
        }
        Some(entry(at, index(frame, 1)))
    }

    fn take_spare(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        Some(self.spare[self.left])
    }

    /// Puts aside as many of these as there is room for; they have nothing in them.
    fn put_aside(&mut self, tables: &[u64]) -> usize {
        let room = &mut self.spare[self.left..];
        let n = room.len().min(tables.len());
        room[..n].copy_from_slice(&tables[..n]);
        self.left += n;
        n
    }
}

/// Those that no unit has heard of, because there was no memory for all: none of the last level is among them, but what is put
/// aside. A domain's stay with it.
impl Drop for Tables {
    fn drop(&mut self) {
        for &table in &self.spare[..self.left] {
            // SAFETY: from `table`, and nothing leads to it.
            unsafe { frames::free(table, LAST) };
        }
        free(self.first);
    }
}

/// Frees a table above the last level, and all that it leads to.
fn free(table: u64) {
    for next in (0..ENTRIES).map(|i| entry(table, i).load(Ordering::Relaxed) & ADDRESS) {
        if next != 0 {
            free(next);
        }
    }
    // SAFETY: from `table`, and no unit has heard of it (`Tables::drop`).
    unsafe { frames::free(table, 0) };
}

impl Domain {
    /// Lets `function` reach what it is given from now on: nothing. One at a time.
    pub(super) fn new(unit: &'static Unit, function: Function) -> Option<&'static Domain> {
        let id = NEXT.load(Ordering::Relaxed);
        if id >= unit.domains() {
            return None;
        }
        let name = u64::from(function.requester());
        let bus = entry(unit.root + 16 * (name >> 8), 0);
        if bus.load(Ordering::Relaxed) == 0 {
            unit.write(bus, table(unit, 0)? | PRESENT);
        }
        let tables = Tables::new(unit)?;
        let at = (bus.load(Ordering::Relaxed) & ADDRESS) + 16 * (name & 255);
        unit.write(entry(at, 1), id << 8 | u64::from(unit.levels - 2));
        unit.write(entry(at, 0), tables.first | PRESENT);
        unit.forget_function(name as u16, id as u16);
        NEXT.store(id + 1, Ordering::Relaxed);
        Some(Box::leak(Box::new(Domain {
            unit,
            function,
            id: id as u16,
            tables: IrqLock::new(tables),
        })))
    }

    pub(super) fn function(&self) -> Function {
        self.function
    }

    /// Rights that the unit can give: more than were asked for, if need be.
    fn grantable(&self, rights: u64) -> u64 {
        match self.unit.write_only() {
            true => rights,
            false => rights | if rights & WRITES != 0 { READS } else { 0 },
        }
    }

    /// One more user of the frames of `pieces`: of all, or of none. `ENOMEM`, `EIO`.
    pub(super) fn map(
        &self,
        pieces: impl Iterator<Item = Piece> + Clone,
        rights: u64,
    ) -> Result<(), Errno> {
        self.map_with(pieces, rights, Spare::Leave)
    }

    /// The same of what is not larger than a transfer from or to a cache: waits until there are tables for it, for as long as a device may
    /// keep those that it has been given. Sleeps.
    pub(super) fn map_surely(
        &self,
        pieces: impl Iterator<Item = Piece> + Clone,
        rights: u64,
    ) -> Result<(), Errno> {
        let mapped = self.map(pieces.clone(), rights);
        if mapped != Err(Errno::ENOMEM) || frames_of(pieces.clone()).count() > SPARE {
            return mapped;
        }
        let deadline = now_ns() + patience();
        loop {
            self.trim();
            let mapped = self.map_with(pieces.clone(), rights, Spare::Take);
            if mapped != Err(Errno::ENOMEM) || now_ns() > deadline {
                return mapped;
            }
            task::yield_now();
        }
    }

    fn map_with(
        &self,
        pieces: impl Iterator<Item = Piece> + Clone,
        rights: u64,
        spare: Spare,
    ) -> Result<(), Errno> {
        let one = user(self.grantable(rights));
        let mut changed = Changed::NONE;
        let mut done = 0;
        let mut tables = self.tables.lock();
        let mapped = frames_of(pieces.clone()).try_for_each(|frame| {
            let leaf = self.make_leaf(&mut tables, frame, spare)?;
            self.set(leaf, frame, |users| users + one, &mut changed);
            done += 1;
            Ok(())
        });
        if mapped.is_err() {
            for frame in frames_of(pieces).take(done) {
                self.remove(&tables, frame, one, &mut changed);
            }
        }
        self.unit.forget_frames(self.id, changed.runs());
        mapped
    }

    /// The end of a [`Domain::map`] that was well. The function has no more than what others want when this returns.
    pub(super) fn unmap(&self, pieces: impl Iterator<Item = Piece>, rights: u64) {
        let one = user(self.grantable(rights));
        let mut changed = Changed::NONE;
        let tables = self.tables.lock();
        for frame in frames_of(pieces) {
            self.remove(&tables, frame, one, &mut changed);
        }
        self.unit.forget_frames(self.id, changed.runs());
    }

    fn remove(&self, tables: &Tables, frame: u64, one: u64, changed: &mut Changed) {
        if let Some(leaf) = self.leaf(tables, frame) {
            self.set(leaf, frame, |users| users - one, changed);
        }
    }

    /// Changes who wants a frame, and the entry if that changes it. Under the tables' lock.
    fn set(&self, leaf: Leaf, frame: u64, users: impl Fn(u64) -> u64, changed: &mut Changed) {
        let now = users(leaf.users.load(Ordering::Relaxed));
        leaf.users.store(now, Ordering::Relaxed);
        let old = leaf.entry.load(Ordering::Relaxed);
        let new = match wanted(now) {
            0 => 0,
            rights => (frame * PAGE_SIZE) | rights,
        };
        if old == new {
            return;
        }
        self.unit.write(leaf.entry, new);
        if old != 0 || self.unit.caches_absent() {
            changed.add(frame);
        }
        match (old, new) {
            (0, _) => MAPPED.fetch_add(1, Ordering::Relaxed),
            (_, 0) => MAPPED.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    fn leaf(&self, tables: &Tables, frame: u64) -> Option<Leaf> {
        let above = tables.above(self.unit.levels, frame)?;
        let table = above.load(Ordering::Relaxed) & ADDRESS;
        (table != 0).then(|| Leaf::of(table, frame))
    }

    /// The same, with a table for it. `EIO`: it is too far. `ENOMEM`.
    fn make_leaf(&self, tables: &mut Tables, frame: u64, spare: Spare) -> Result<Leaf, Errno> {
        let above = tables.above(self.unit.levels, frame);
        let above = above.filter(|_| reaches(self.unit, frame));
        let above = above.ok_or(Errno::EIO)?;
        let mut last = above.load(Ordering::Relaxed) & ADDRESS;
        if last == 0 {
            let new = table(self.unit, LAST).or_else(|| match spare {
                Spare::Take => tables.take_spare(),
                Spare::Leave => None,
            });
            last = new.ok_or(Errno::ENOMEM)?;
            self.unit.write(above, last | READS | WRITES);
        }
        Ok(Leaf::of(last, frame))
    }

    /// Frees tables of the last level in which there is nothing, but for those that are put aside.
    pub(super) fn trim(&self) {
        loop {
            let mut empty = [0; 32];
            let mut found = 0;
            let mut tables = self.tables.lock();
            self.empty(tables.first, self.unit.levels - 1, &mut |at| {
                if found < empty.len() {
                    empty[found] = at.load(Ordering::Relaxed) & ADDRESS;
                    found += 1;
                    self.unit.write(at, 0);
                }
            });
            if found == 0 {
                return;
            }
            self.unit.forget_domain(self.id);
            let kept = tables.put_aside(&empty[..found]);
            drop(tables);
            for &table in &empty[kept..found] {
                // SAFETY: from `table`, hooked off under the lock, and the unit has forgotten it.
                unsafe { frames::free(table, LAST) };
            }
        }
    }

    /// Calls `found` with each entry of this level and those below it whose table of the last level has nothing.
    fn empty(&self, table: u64, level: u32, found: &mut impl FnMut(&AtomicU64)) {
        for at in (0..ENTRIES).map(|i| entry(table, i)) {
            let next = at.load(Ordering::Relaxed) & ADDRESS;
            let unused = |i| entry(next + PAGE_SIZE, i).load(Ordering::Relaxed) == 0;
            if next == 0 {
                continue;
            } else if level > 1 {
                self.empty(next, level - 1, found);
            } else if (0..ENTRIES).all(unused) {
                found(at);
            }
        }
    }
}

fn index(frame: u64, level: u32) -> usize {
    (frame >> (9 * level)) as usize % ENTRIES
}
