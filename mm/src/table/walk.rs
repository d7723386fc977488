//! The one descent, and reading without locks.
//!
//! Only this file computes a level's index. Levels count from the leaf: 1 is the table of 4 KiB leaves,
//! 4 the root. Entries are read with one 64-bit load each (WALK-3).

use super::pte::{Pte, PteState, bit};
use crate::addr::Pfn;
use crate::phys::Hw;
use crate::sync::atomic::{AtomicU64, Ordering::Acquire};
use crate::wait::IrqOff;
use core::marker::PhantomData;

/// A table level, 1 to 4.
pub type Level = u32;
/// The root's level.
pub const ROOT: Level = 4;
/// Entries of a table.
pub const ENTRIES: usize = 512;

/// log2 of the bytes that one entry of `level` covers.
#[inline]
pub const fn shift(level: Level) -> u32 {
    12 + 9 * (level - 1)
}
/// Index of `va` in a table of `level`.
#[inline]
pub const fn index(va: u64, level: Level) -> usize {
    (va >> shift(level)) as usize & (ENTRIES - 1)
}
/// First address of the entry of `level` that covers `va`.
#[inline]
pub const fn align_down(va: u64, level: Level) -> u64 {
    va & !((1 << shift(level)) - 1)
}
/// First address past the entry of `level` that covers `va`.
#[inline]
pub const fn next(va: u64, level: Level) -> u64 {
    align_down(va, level) + (1 << shift(level))
}

/// The slot that the MMU shares. Reading needs nothing; writing exists only on `PtGuard`.
///
/// ```compile_fail,E0599
/// fn f(c: &mm::table::PteCell) { c.set(mm::table::Pte::EMPTY); }
/// ```
#[repr(transparent)]
pub struct PteCell(pub(super) AtomicU64);

impl PteCell {
    /// The entry as it is now.
    #[inline]
    pub fn load(&self) -> Pte {
        Pte(self.0.load(Acquire))
    }
}

/// The slots of a table.
#[inline]
pub(super) fn cells<H: Hw>(hw: H, table: Pfn) -> &'static [PteCell; ENTRIES] {
    // SAFETY: `table` came from a table entry or a space's root, so the frame holds 512 entries and is
    // accessed as atomics only; it is not freed while the caller's permit or IrqOff lasts (tlb.rs), and
    // the caller does not keep the reference longer.
    unsafe { &*(hw.frame_ptr(table) as *const [PteCell; ENTRIES]) }
}

/// Descends from `root` to the entry of `level` that covers `va`: the table that holds it. `Err` is the
/// level and entry at which the path ends earlier (nothing, or a larger leaf). The caller's permit keeps
/// the tables.
#[inline]
pub(super) fn descend<H: Hw>(hw: H, root: Pfn, va: u64, level: Level) -> Result<Pfn, (Level, Pte)> {
    let mut table = root;
    let mut at = ROOT;
    while at > level {
        let e = cells(hw, table)[index(va, at)].load();
        if e.0 & (bit::P | bit::PS) != bit::P {
            return Err((at, e));
        }
        table = e.pfn();
        at -= 1;
    }
    Ok(table)
}

/// An entry seen without locks; a hint, meaningful only while interrupts stay off:
///
/// ```compile_fail,E0505
/// fn f<H: mm::Hw>(w: &mut mm::CanWait<H>, root: mm::Pfn) -> mm::table::Pte {
///     let irq = w.irq_off();
///     let seen = mm::table::walk::peek(&irq, root, 0x1000);
///     drop(irq);
///     seen.pte
/// }
/// ```
pub struct Seen<'irq> {
    /// The entry.
    pub pte: Pte,
    /// Its level: a leaf of level 2 or 3 is huge.
    pub level: Level,
    _irq: PhantomData<&'irq ()>,
}

/// Looks `va` up without locks, down to whatever ends the path: a leaf of any size, or nothing.
/// Interrupts are off, so no table on the path is freed (tlb.rs), if the space is loaded here or its
/// shootdowns reach this CPU.
pub fn peek<'irq, H: Hw>(irq: &'irq IrqOff<'_, H>, root: Pfn, va: u64) -> Seen<'irq> {
    let (level, pte) = match descend(irq.hw(), root, va, 1) {
        Ok(table) => (1, cells(irq.hw(), table)[index(va, 1)].load()),
        Err(end) => end,
    };
    Seen {
        pte,
        level,
        _irq: PhantomData,
    }
}

/// What a lockless descent ends at. Each slot is lent for as long as interrupts stay off, to be read again.
pub enum Found<'irq> {
    /// A table of small leaves.
    Table {
        /// Its slots.
        cells: &'irq [PteCell; ENTRIES],
        /// The slot that leads to it, and what that said.
        above: (&'irq PteCell, Pte),
    },
    /// A huge leaf.
    Huge {
        /// Its slot, and what that said.
        leaf: (&'irq PteCell, Pte),
        /// The slot that leads to its table, and what that said.
        above: (&'irq PteCell, Pte),
        /// 2 or 3.
        level: Level,
    },
    /// Neither.
    Nothing,
}

/// As [`peek`], for who means to take hold of what he finds (`gup::fast`): one load for each level, and the slots to
/// look at again afterwards.
#[inline(always)]
pub fn peek_slots<'irq, H: Hw>(irq: &'irq IrqOff<'_, H>, root: Pfn, va: u64) -> Found<'irq> {
    let hw = irq.hw();
    let leads = |e: Pte| e.0 & (bit::P | bit::PS) == bit::P;
    let top = cells(hw, root)[index(va, ROOT)].load();
    if !leads(top) {
        return Found::Nothing; // of the root: there are no leaves there
    }
    let slot3 = &cells(hw, top.pfn())[index(va, 3)];
    let e3 = slot3.load();
    if !leads(e3) {
        let above = (&cells(hw, root)[index(va, ROOT)], top);
        return huge((slot3, e3), above, 3);
    }
    let slot2 = &cells(hw, e3.pfn())[index(va, 2)];
    let e2 = slot2.load();
    if !leads(e2) {
        return huge((slot2, e2), (slot3, e3), 2);
    }
    Found::Table {
        cells: cells(hw, e2.pfn()),
        above: (slot2, e2),
    }
}

/// What leads to no table is a huge leaf, or nothing.
#[inline]
fn huge<'irq>(
    leaf: (&'irq PteCell, Pte),
    above: (&'irq PteCell, Pte),
    level: Level,
) -> Found<'irq> {
    if leaf.1.present() {
        Found::Huge { leaf, above, level }
    } else {
        Found::Nothing
    }
}

/// The small leaf of the kernel half at `va`, if one is there. Tables of that half are added, never freed.
pub fn kernel_leaf<H: Hw>(hw: H, va: u64) -> Option<Pte> {
    let table = descend(hw, hw.kernel_root(), va, 1).ok()?;
    let e = cells(hw, table)[index(va, 1)].load();
    e.present().then_some(e)
}

/// The same for a holder of a permit: what stands at `va`, and at which level.
pub fn lookup<H: Hw, G: super::StableVma<H>>(
    hw: H,
    root: Pfn,
    va: u64,
    _permit: &G,
) -> (Level, PteState) {
    match descend(hw, root, va, 1) {
        Ok(table) => (1, cells(hw, table)[index(va, 1)].load().state(1)),
        Err((level, pte)) => (level, pte.state(level)),
    }
}
