//! The proofs that table work asks for; `space` and `object` grant them.

use crate::phys::{Hw, Use};

/// Holding it keeps the VMAs it was made for from being freed or reshaped, and hence the tables under
/// them from being freed. Lets one follow and zap.
///
/// # Safety
/// The implementor excludes, for its whole life, whoever would free tables of the range it is used for.
pub unsafe trait StableVma<H: Hw> {}

/// The mmap or VMA locks: an empty entry may be filled. The reverse map may not (an unmap that has
/// zapped but not yet freed its tables excludes only these).
///
/// ```compile_fail,E0277
/// // Interrupts off is permission to peek, and nothing else.
/// fn f<H: mm::Hw>(t: &mm::table::Tables<H>, irq: &mm::IrqOff<'_, H>) { let _ = t.pte_table(0, irq); }
/// ```
///
/// # Safety
/// As [`StableVma`]; and the VMA is in the tree while this is held.
pub unsafe trait MayInstall<H: Hw>: StableVma<H> {
    /// From where user pages come that are installed under it.
    const FRAMES: Use = Use::Movable;
}

/// Another permit, under which user pages come from memory that need not be moved: for pins that user mode may hold
/// for ever (LT-10).
pub struct Unmovable<'g, G>(pub &'g G);

// SAFETY: the permit it borrows lives as long, and excludes whom it excludes.
unsafe impl<H: Hw, G: StableVma<H>> StableVma<H> for Unmovable<'_, G> {}
// SAFETY: as above.
unsafe impl<H: Hw, G: MayInstall<H>> MayInstall<H> for Unmovable<'_, G> {
    const FRAMES: Use = Use::Kernel;
}

/// The VMAs of a range are out of the tree and out of the edges: its tables may be freed.
///
/// ```compile_fail,E0277
/// use mm::{Hw, space::MmapWriteGuard, table::TlbBatch};
/// fn early<H: Hw>(g: &MmapWriteGuard<'_, H>, b: &mut TlbBatch<'_, H>) {
///     g.space().tables.free_tables((0, 4096), (0, 1 << 47), b, g);
/// }
/// ```
///
/// # Safety
/// No fault, no reverse-map walk and no other unmap can reach the range while this lives.
pub unsafe trait MayFree<H: Hw>: StableVma<H> {}
