//! mincore: what a touch would find without reading anything in.

use super::tables;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, UserRange};
use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::{AddressSpace, MmapReadGuard, Vma};
use crate::table::PtGuard;
use crate::wait::CanWait;

/// How many pages the caller asks about; the argument checks of the call.
pub fn pages(addr: u64, len: u64) -> Result<u64, Errno> {
    Ok(super::range(addr, len, Errno::ENOMEM)?.pages())
}

/// Fills `out` with one byte for each page from `addr` on, as far as one VMA goes; returns how many.
/// `ENOMEM` at a hole.
pub fn mincore<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    out: &mut [u8],
) -> Result<usize, Errno> {
    let guard = space.mmap_read_killable(wait)?;
    let vma = guard.find(addr).ok_or(Errno::ENOMEM)?;
    let most = addr.saturating_add((out.len() as u64) << PAGE_SHIFT);
    let r = UserRange::new(addr, vma.end().min(most)).ok_or(Errno::EINVAL)?;
    for piece in tables(r) {
        let at = ((piece.start() - addr) >> PAGE_SHIFT) as usize;
        let n = piece.pages() as usize;
        one_table(space, &guard, vma, piece, &mut out[at..at + n]);
    }
    Ok(r.pages() as usize)
}

fn one_table<H: Hw>(
    space: &AddressSpace<H>,
    guard: &MmapReadGuard<'_, H>,
    vma: &Vma<H>,
    piece: UserRange,
    out: &mut [u8],
) {
    let cached = |va: u64| {
        vma.object()
            .is_some_and(|o| o.lookup(vma.index_of(va)).is_some()) as u8
    };
    let pt = space.tables.pte_table(piece.start(), guard);
    let mut va = piece.start();
    for b in out {
        *b = match &pt {
            Some(pt) if pt.get(PtGuard::<H>::index(va)).present() => 1,
            _ => cached(va),
        };
        va += PAGE_SIZE;
    }
}
