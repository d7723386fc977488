//! Split page-table locks: one word in each table page's descriptor.
//!
//! Lock, then look again: the entry above may have changed between the descent and the lock (another
//! fault made a table there, `mremap` moved ours away). An entry is only written by the holder of its
//! table's lock, and by the MMU, which sets A and D whenever it likes: so every write is one atomic step.
//! `private` of the descriptor counts the entries that are not empty.
//! Order: a level-1 lock before an upper one is never needed; `mremap` takes two level-1 locks, lower
//! address of the descriptor first.

use super::permit::{MayFree, MayInstall, StableVma};
use super::pte::{Pte, PteState, bit};
use super::tlb::{PtPage, TlbBatch};
use super::walk::{self, ENTRIES, Level, PteCell, cells, descend, index};
use crate::addr::Pfn;
use crate::phys::{FrameDesc, Hw, NoFrame, flag};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{Class, lockdep};
use core::ops::Range;

/// Tables that [`Tables::move_tables`] moves at most.
pub const MOVED_AT_ONCE: usize = 16;

/// One space's tables. The root is made with the kernel half copied in, and freed by `destroy`.
pub struct Tables<H: Hw> {
    hw: H,
    root: Pfn,
}

#[inline]
fn lock_word<H: Hw>(hw: H, d: &FrameDesc) {
    while d.lock.swap(1, Acquire) != 0 {
        while d.lock.load(Relaxed) != 0 {
            hw.spin_hint();
        }
    }
}

#[inline]
fn class(level: Level) -> Class {
    if level == 1 {
        Class::Table
    } else {
        Class::TableUpper
    }
}

#[inline]
fn unlock_word(d: &FrameDesc) {
    d.lock.store(0, Release);
}

impl<H: Hw> Tables<H> {
    /// A root with an empty user half.
    pub fn new(hw: H) -> Result<Self, NoFrame> {
        let root = new_table(hw)?.into_pfn();
        let (to, from) = (cells(hw, root), cells(hw, hw.kernel_root()));
        for i in ENTRIES / 2..ENTRIES {
            to[i].0.store(from[i].0.load(Relaxed), Relaxed);
        }
        Ok(Self { hw, root })
    }
    /// The root's frame.
    #[inline]
    pub fn root(&self) -> Pfn {
        self.root
    }
    /// The machine.
    #[inline]
    pub fn hw(&self) -> H {
        self.hw
    }

    /// The level-1 table that covers `va`, locked; `None` if there is none (nothing, or a huge leaf:
    /// `walk::lookup` tells).
    #[inline]
    pub fn pte_table<G: StableVma<H>>(&self, va: u64, _permit: &G) -> Option<PtGuard<H>> {
        self.lock_level(va, 1)
    }

    #[inline]
    fn lock_level(&self, va: u64, level: Level) -> Option<PtGuard<H>> {
        if level == walk::ROOT {
            return Some(PtGuard::lock(self.hw, self.root, va, level));
        }
        loop {
            let parent = descend(self.hw, self.root, va, level + 1).ok()?;
            let slot = &cells(self.hw, parent)[index(va, level + 1)];
            let e = slot.load();
            if e.0 & (bit::P | bit::PS) != bit::P {
                return None;
            }
            let g = PtGuard::lock(self.hw, e.pfn(), va, level);
            let now = slot.load();
            if now.pfn() == e.pfn() && now.0 & (bit::P | bit::PS) == bit::P {
                return Some(g);
            }
        }
    }

    /// The table whose entry maps `va`, locked: of small leaves, or the one that holds a huge leaf.
    pub fn leaves<G: StableVma<H>>(&self, va: u64, permit: &G) -> Leaves<H> {
        loop {
            if let Some(pt) = self.pte_table(va, permit) {
                return Leaves::Small(pt);
            }
            let (level, state) = walk::lookup(self.hw, self.root, va, permit);
            match state {
                PteState::Leaf(_) if level > 1 => {
                    let Some(pt) = self.lock_level(va, level) else {
                        continue;
                    };
                    if let PteState::Leaf(e) = pt.get(index(va, level)).state(level) {
                        return Leaves::Huge(pt, level, e);
                    }
                }
                // Somebody has made a table meanwhile.
                PteState::Table(_) | PteState::Leaf(_) => {}
                // What is broken is not looked into (WALK-2).
                _ => return Leaves::None,
            }
        }
    }

    /// The same, making the tables that are missing. `Err` leaves what was made: it is empty and goes
    /// when its range is freed.
    #[inline(always)]
    pub fn pte_table_alloc<G: MayInstall<H>>(
        &self,
        va: u64,
        _permit: &G,
    ) -> Result<PtGuard<H>, NoFrame> {
        match self.lock_level(va, 1) {
            Some(g) => Ok(g),
            None => {
                self.make_tables(va, 1)?;
                self.lock_level(va, 1).ok_or(NoFrame)
            }
        }
    }

    /// The table whose entries are leaves of `level`, locked, made if it is missing: where huge leaves go.
    #[cfg(feature = "sim")]
    pub fn huge_table_alloc<G: MayInstall<H>>(
        &self,
        va: u64,
        level: Level,
        _permit: &G,
    ) -> Result<PtGuard<H>, NoFrame> {
        self.make_tables(va, level)?;
        self.lock_level(va, level).ok_or(NoFrame)
    }

    #[cold]
    #[inline(never)]
    fn make_tables(&self, va: u64, down_to: Level) -> Result<(), NoFrame> {
        for level in (down_to..walk::ROOT).rev() {
            // The table of `level` hangs in an entry of the table one above.
            let parent = descend(self.hw, self.root, va, level + 1).map_err(|_| NoFrame)?;
            if cells(self.hw, parent)[index(va, level + 1)]
                .load()
                .present()
            {
                continue;
            }
            let fresh = new_table(self.hw)?;
            let mut g = PtGuard::lock(self.hw, parent, va, level + 1);
            let i = index(va, level + 1);
            if g.get(i).is_empty() {
                g.install(i, Pte::table(fresh.into_pfn()));
            } else {
                drop(g);
                self.hw.phys().free_table(self.hw, fresh.into_frame());
            }
        }
        Ok(())
    }

    /// The first address of `va..end` that a level-1 table covers; absent upper tables are stepped over.
    pub fn next_table<G: StableVma<H>>(&self, mut va: u64, end: u64, _permit: &G) -> Option<u64> {
        while va < end {
            let upper = match descend(self.hw, self.root, va, 2) {
                Ok(table) => cells(self.hw, table),
                Err((level, _)) => {
                    va = walk::next(va, level);
                    continue;
                }
            };
            let stop = walk::next(va, 3).min(end);
            while va < stop {
                if upper[index(va, 2)].load().0 & (bit::P | bit::PS) == bit::P {
                    return Some(va);
                }
                va = walk::next(va, 2);
            }
        }
        None
    }

    /// Moves the whole level-1 tables from `from` (2 MiB aligned) on to `to` (likewise), entries, frames and all:
    /// `most` of them, as far as one upper table reaches on either side, and not more than [`MOVED_AT_ONCE`].
    /// Returns over how many entries it went; what has no table is gone over. What stood at `to` were empty tables or
    /// nothing. The caller holds the mmap lock for writing, both VMAs write-locked, their edges locked, and
    /// flushes afterwards through `batch`.
    pub fn move_tables<G: MayInstall<H>>(
        &self,
        from: u64,
        to: u64,
        most: usize,
        _permit: &G,
        batch: &mut TlbBatch<'_, H>,
    ) -> Result<usize, NoFrame> {
        // The path to `to` first: after it nothing can fail.
        if descend(self.hw, self.root, to, 2).is_err() {
            self.make_tables(to, 2)?;
        }
        let (i, k) = (index(from, 2), index(to, 2));
        let n = most.min(MOVED_AT_ONCE).min(ENTRIES - i.max(k));
        let Some(mut old) = self.lock_level(from, 2) else {
            return Ok(n);
        };
        let mut tables = [Pte::EMPTY; MOVED_AT_ONCE];
        let tables = &mut tables[..n];
        for (e, i) in tables.iter_mut().zip(i..) {
            if old.get(i).0 & (bit::P | bit::PS) == bit::P {
                *e = old.take(i);
            }
        }
        drop(old);
        let mut new = self.lock_level(to, 2).ok_or(NoFrame)?;
        let mut gone = [Pte::EMPTY; MOVED_AT_ONCE];
        for ((e, gone), k) in tables.iter().zip(&mut gone).zip(k..) {
            if !e.is_empty() {
                // An empty table may still stand there from an earlier mapping: it gives way.
                if !new.get(k).is_empty() {
                    *gone = new.take(k);
                }
                new.install(k, *e);
            }
        }
        drop(new);
        let bytes = (n as u64) << walk::shift(2);
        batch.note_tables(from, from + bytes);
        if gone.iter().any(|e| !e.is_empty()) {
            batch.note_tables(to, to + bytes);
            for e in gone.iter().filter(|e| !e.is_empty()) {
                batch.retire_table(PtPage::unhooked(e.pfn()));
            }
        }
        Ok(n)
    }

    /// Unhooks every table all of whose range lies in `floor..ceiling` and that covers part of
    /// `start..end`, into the batch. The range was zapped: all entries are empty.
    pub fn free_tables<G: MayFree<H>>(
        &self,
        (start, end): (u64, u64),
        (floor, ceiling): (u64, u64),
        batch: &mut TlbBatch<'_, H>,
        _permit: &G,
    ) {
        // The smallest tables that the range touches: mostly the neighbours use them, too.
        let (mut lo, mut hi) = (
            walk::align_down(start, 2),
            walk::next(end.saturating_sub(1), 2),
        );
        if lo < floor {
            lo += 1 << walk::shift(2);
        }
        if hi > ceiling {
            hi -= 1 << walk::shift(2);
        }
        if lo < hi {
            self.free_level(self.root, walk::ROOT, (start, end), (floor, ceiling), batch);
        }
    }

    /// Frees the tables below the entries of `table` (of `level`) for `start..end`.
    fn free_level(
        &self,
        table: Pfn,
        level: Level,
        (start, end): (u64, u64),
        (floor, ceiling): (u64, u64),
        batch: &mut TlbBatch<'_, H>,
    ) {
        let mut at = start;
        while at < end {
            let stop = walk::next(at, level).min(end);
            let i = index(at, level);
            let e = cells(self.hw, table)[i].load();
            if e.0 & (bit::P | bit::PS) == bit::P {
                let (lo, hi) = (walk::align_down(at, level), walk::next(at, level));
                if level > 2 {
                    self.free_level(e.pfn(), level - 1, (at, stop), (floor, ceiling), batch);
                }
                if lo >= floor && hi <= ceiling && self.hw.desc(e.pfn()).private.load(Relaxed) == 0
                {
                    let mut g = PtGuard::lock(self.hw, table, at, level);
                    let taken = g.take(i);
                    drop(g);
                    batch.note_tables(lo, hi);
                    batch.retire_table(PtPage::unhooked(taken.pfn()));
                }
            }
            at = stop;
        }
    }

    /// Frees the root. Everything below was freed, and no CPU has it loaded.
    ///
    /// # Safety
    /// As said; the space is never used again.
    pub unsafe fn destroy(&mut self) {
        let root = cells(self.hw, self.root);
        for c in &root[ENTRIES / 2..] {
            c.0.store(0, Relaxed);
        }
        debug_assert!(root.iter().all(|c| c.load().is_empty()));
        self.hw
            .phys()
            .free_table(self.hw, PtPage::unhooked(self.root).into_frame());
    }
}

fn new_table<H: Hw>(hw: H) -> Result<PtPage, NoFrame> {
    let f = hw.phys().alloc_table(hw).ok_or(NoFrame)?;
    let d = hw.desc(f.pfn());
    d.flags
        .store(d.flags.load(Relaxed) & flag::FIXED | flag::TABLE, Relaxed);
    d.private.store(0, Relaxed);
    d.lock.store(0, Relaxed);
    Ok(PtPage::unhooked(f.into_pfn()))
}

/// What [`Tables::leaves`] finds.
pub enum Leaves<H: Hw> {
    /// A level-1 table.
    Small(PtGuard<H>),
    /// The table of a higher level, whose entry for the address is this leaf.
    Huge(PtGuard<H>, Level, Pte),
    /// Nothing is mapped.
    None,
}

/// Where [`PtGuard::take_each`] is, by the entry that follows: the loop has that at hand, and few ask for the index.
#[derive(Clone, Copy)]
pub struct Place(*const PteCell);

impl Place {
    /// The index of the entry: a table is a whole frame.
    #[inline]
    pub fn index(self) -> usize {
        (self.0.addr() / size_of::<PteCell>()).wrapping_sub(1) % ENTRIES
    }
}

/// What [`PtGuard::copy_each`] does with an entry.
pub enum CopyStep {
    /// Installs this, leaves the entry.
    Give(Pte),
    /// Installs this, and the entry may no longer be written through and counts as not accessed; the
    /// caller flushes.
    Share(Pte),
    /// Nothing.
    Skip,
    /// Ends before the entry.
    Stop,
}

/// One table's lock, held, its place in the tables confirmed: the only writer of its entries.
#[must_use]
pub struct PtGuard<H: Hw> {
    hw: H,
    #[cfg(feature = "lockdep")]
    class: Class,
    table: Pfn,
    cells: &'static [PteCell; ENTRIES],
    base: u64,
    live: i32,
    _here: core::marker::PhantomData<*mut ()>,
}

impl<H: Hw> PtGuard<H> {
    #[inline]
    #[cfg_attr(feature = "lockdep", track_caller)]
    fn lock(hw: H, table: Pfn, va: u64, level: Level) -> Self {
        lockdep::acquire(hw, class(level));
        lock_word(hw, hw.desc(table));
        Self {
            hw,
            #[cfg(feature = "lockdep")]
            class: class(level),
            table,
            cells: cells(hw, table),
            base: walk::align_down(va, level + 1),
            live: 0,
            _here: core::marker::PhantomData,
        }
    }
    /// First address that this table covers.
    #[inline]
    pub fn base(&self) -> u64 {
        self.base
    }
    /// The table's frame: the same one in two guards is a dead-lock, so `mremap` compares.
    #[inline]
    pub fn table(&self) -> Pfn {
        self.table
    }
    /// Index of `va` in a level-1 table.
    #[inline]
    pub fn index(va: u64) -> usize {
        index(va, 1)
    }
    /// Entry `i`.
    #[inline]
    pub fn get(&self, i: usize) -> Pte {
        self.cells[i & (ENTRIES - 1)].load()
    }
    /// Fills an empty entry.
    #[inline]
    pub fn install(&mut self, i: usize, p: Pte) {
        let c = &self.cells[i & (ENTRIES - 1)].0;
        debug_assert!(c.load(Relaxed) == 0 && p.0 != 0);
        c.store(p.0, Release);
        self.live += 1;
    }
    /// Reads and empties in one step: the MMU may be setting A and D under us.
    #[inline]
    pub fn take(&mut self, i: usize) -> Pte {
        let c = &self.cells[i & (ENTRIES - 1)].0;
        let old = c.swap(0, AcqRel);
        if old != 0 {
            self.live -= 1;
        }
        Pte(old)
    }
    /// As [`PtGuard::take`] for tables that no CPU walks any more (exit after every CPU has left): no
    /// atomic step needed.
    #[inline]
    pub fn take_dead(&mut self, i: usize) -> Pte {
        let c = &self.cells[i & (ENTRIES - 1)].0;
        let old = c.load(Relaxed);
        c.store(0, Relaxed);
        if old != 0 {
            self.live -= 1;
        }
        Pte(old)
    }
    /// The first entry of `range` that is in use.
    #[inline]
    pub fn first_used(&self, range: Range<usize>) -> Option<usize> {
        if self.live() == 0 {
            return None;
        }
        let cells = self.cells.get(range.clone())?;
        // Eight at a time: long empty stretches are common.
        let mut at = range.start;
        for eight in cells.chunks(8) {
            if eight.iter().fold(0, |all, c| all | c.0.load(Relaxed)) != 0 {
                let k = eight.iter().position(|c| c.0.load(Relaxed) != 0)?;
                return Some(at + k);
            }
            at += eight.len();
        }
        None
    }
    /// [`PtGuard::take`] of every entry of `range` that is in use, in one pass that ends with the last;
    /// returns how many.
    #[inline(always)]
    pub fn take_each(&mut self, range: Range<usize>, mut f: impl FnMut(Place, Pte)) -> i64 {
        let Some(cells) = self.cells.get(range) else {
            return 0;
        };
        let mut left = self.live() as i32;
        let mut rest = cells.iter();
        while let Some(c) = rest.next() {
            if c.0.load(Relaxed) == 0 {
                continue;
            }
            let old = c.0.swap(0, AcqRel);
            left -= 1;
            f(Place(rest.as_slice().as_ptr()), Pte(old));
            if left == 0 {
                break;
            }
        }
        let taken = self.live() as i32 - left;
        self.live -= taken;
        i64::from(taken)
    }
    /// Replaces every present entry of `range` by what `f` makes of it, in one pass; the MMU may set A
    /// and D meanwhile, so `f` may be asked again.
    #[inline(always)]
    pub fn update_each(&mut self, range: Range<usize>, mut f: impl FnMut(Pte) -> Pte) {
        let Some(cells) = self.cells.get(range) else {
            return;
        };
        let mut left = self.live() as i32;
        for c in cells {
            let mut old = c.0.load(Relaxed);
            if old == 0 {
                continue;
            }
            while Pte(old).present() {
                let new = f(Pte(old)).0;
                match c.0.compare_exchange(old, new, AcqRel, Relaxed) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    /// Gives the bit MLOCKED to every counted entry of `range` (`ON`) or takes it away, in one pass; `f`
    /// hears of the pages of those that did not have it, or had.
    #[inline(always)]
    pub(crate) fn mlock_each<const ON: bool>(
        &mut self,
        range: Range<usize>,
        mut f: impl FnMut(Pfn),
    ) {
        let Some(cells) = self.cells.get(range) else {
            return;
        };
        let (hw, mut left) = (self.hw, self.live() as i32);
        for c in cells {
            let old = c.load();
            if old.is_empty() {
                continue;
            }
            if old.folio(hw).is_some() && old.mlocked() != ON {
                f(old.pfn());
                // The machine may be setting A and D.
                if ON {
                    c.0.fetch_or(bit::MLOCKED, AcqRel);
                } else {
                    c.0.fetch_and(!bit::MLOCKED, AcqRel);
                }
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    /// Moves every entry of `range` that is in use to `to`, from its entry `first` on, where all are empty.
    #[inline(always)]
    pub fn move_each(&mut self, to: &mut PtGuard<H>, range: Range<usize>, first: usize) {
        let n = range.len();
        let (Some(from), Some(into)) = (self.cells.get(range), to.cells.get(first..first + n))
        else {
            return;
        };
        let had = self.live() as i32;
        let mut left = had;
        let mut step = |(c, d): (&PteCell, &PteCell)| {
            if c.0.load(Relaxed) != 0 {
                d.0.store(c.0.swap(0, AcqRel), Release);
                left -= 1;
            }
            left == 0
        };
        // Eight at a time: whether it was the last is looked at after them.
        let ((from, from_rest), (into, into_rest)) = (from.as_chunks::<8>(), into.as_chunks::<8>());
        let ended = from.iter().zip(into).any(|(from, into)| {
            let mut ended = false;
            for pair in from.iter().zip(into) {
                ended = step(pair);
            }
            ended
        });
        if !ended {
            let _ = from_rest.iter().zip(into_rest).any(step);
        }
        self.live -= had - left;
        to.live += had - left;
    }
    /// Gives `to`, whose entries in `range` are empty, a version of every entry of `range` that is in
    /// use, in one pass. Returns where `f` said stop, or the end, and how many were given.
    #[inline(always)]
    pub fn copy_each(
        &mut self,
        to: &mut PtGuard<H>,
        range: Range<usize>,
        mut f: impl FnMut(usize, Pte) -> CopyStep,
    ) -> (usize, i64) {
        let mut at = range.end;
        let cells = (self.cells.get(range.clone()), to.cells.get(range.clone()));
        let (Some(from), Some(into)) = cells else {
            return (at, 0);
        };
        let (mut left, mut skipped) = (self.live() as i32, 0);
        let mut rest = from.iter().zip(into);
        while let Some((c, d)) = rest.next() {
            let old = c.load();
            if old.is_empty() {
                continue;
            }
            let i = range.end - 1 - rest.len();
            match f(i, old) {
                CopyStep::Give(p) => d.0.store(p.0, Release),
                CopyStep::Share(p) => {
                    c.0.fetch_and(!(bit::W | bit::A), AcqRel);
                    d.0.store(p.0, Release);
                }
                CopyStep::Skip => skipped += 1,
                CopyStep::Stop => {
                    at = i;
                    break;
                }
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        let given = self.live() as i32 - left - skipped;
        to.live += given;
        (at, i64::from(given))
    }
    /// Replaces a non-empty entry by another in one step; returns what stood there.
    #[inline]
    pub fn set(&mut self, i: usize, p: Pte) -> Pte {
        debug_assert!(p.0 != 0);
        let old = self.cells[i & (ENTRIES - 1)].0.swap(p.0, AcqRel);
        debug_assert!(old != 0);
        Pte(old)
    }
    /// Clears bits of a present entry; returns what stood there.
    #[inline]
    pub fn clear_bits(&mut self, i: usize, bits: u64) -> Pte {
        Pte(self.cells[i & (ENTRIES - 1)].0.fetch_and(!bits, AcqRel))
    }
    /// Sets bits of a present entry; returns what stood there.
    #[inline]
    pub fn set_bits(&mut self, i: usize, bits: u64) -> Pte {
        Pte(self.cells[i & (ENTRIES - 1)].0.fetch_or(bits, AcqRel))
    }
    /// Replaces the entry if it is still `old` (the MMU may have changed A or D); returns whether.
    #[inline]
    pub fn replace(&mut self, i: usize, old: Pte, new: Pte) -> bool {
        debug_assert!(old.0 != 0 && new.0 != 0);
        self.cells[i & (ENTRIES - 1)]
            .0
            .compare_exchange(old.0, new.0, AcqRel, Relaxed)
            .is_ok()
    }
    /// Entries in use, this guard's changes included.
    #[inline]
    pub fn live(&self) -> u64 {
        (self.hw.desc(self.table).private.load(Relaxed) as i64 + self.live as i64) as u64
    }
}

impl<H: Hw> Drop for PtGuard<H> {
    #[inline]
    fn drop(&mut self) {
        let d = self.hw.desc(self.table);
        if self.live != 0 {
            d.private.store(self.live(), Relaxed);
        }
        #[cfg(feature = "lockdep")]
        lockdep::release(self.hw, self.class);
        unlock_word(d);
    }
}
