//! Pins that user mode holds for as long as it likes: registered buffers, device assignment (LT-2).
//!
//! Such a page never moves again and is never the process's to lose, so it must not stand where memory is to be
//! freed as a whole, and must be the page that the process will write, too (UNSH-1). What is faulted in for the pin
//! comes from unmovable memory (LT-10). A page that stands in the movable zone would have to be moved out first (LT-3,
//! LT-6): until somebody can, it is refused with `ENOMEM`, as when that fails, and nothing of the range stays pinned.

#![forbid(unsafe_code)]

use super::follow::pinnable;
use super::pinned::{Access, PageSlot, PinnedPages, Slots};
use super::{GupFlags, pin_user_pages_fast};
use crate::errno::Errno;
use crate::phys::{Folio, Hw};
use crate::space::AddressSpace;
use crate::wait::CanWait;
use core::ops::Deref;

/// Pins without an end in sight, every page of which may stay where it is. Only [`pin_longterm`] makes one.
#[must_use = "dropping unpins at once"]
pub struct LongtermPin<H: Hw, A: Access, S: Slots>(PinnedPages<H, A, S>);

impl<H: Hw, A: Access, S: Slots> LongtermPin<H, A, S> {
    /// LT-4, of all pages; one that may not stay and none does.
    fn new(pins: PinnedPages<H, A, S>) -> Result<Self, Errno> {
        let hw = pins.hw();
        let stays = |slot: &PageSlot| pinnable(Folio::of_page(hw, slot.pfn()));
        if pins.pages().iter().all(stays) {
            Ok(Self(pins))
        } else {
            pins.unpin_clean();
            Err(Errno::ENOMEM)
        }
    }
    /// Lets go.
    pub fn unpin(self) {}
    /// Lets go of pages that nobody has written.
    pub fn unpin_clean(self) {
        self.0.unpin_clean();
    }
}

impl<H: Hw, A: Access, S: Slots> Deref for LongtermPin<H, A, S> {
    type Target = PinnedPages<H, A, S>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Pins of pages of the running process that may last. A short count is no error, as with any pin.
///
/// No lock held, interrupts on; may sleep. `ENOMEM` also where a page must be able to move: then none is pinned (LT-3).
/// Else as [`super::pin_user_pages_fast`].
pub fn pin_longterm<A, H, S>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    start: u64,
    flags: GupFlags,
    slots: S,
) -> Result<LongtermPin<H, A, S>, Errno>
where
    H: Hw,
    A: Access,
    S: Slots,
{
    let pins = pin_user_pages_fast(space, wait, start, flags | GupFlags::LONGTERM, slots)?;
    LongtermPin::new(pins)
}
