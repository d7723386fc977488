//! Frames for the kernel itself, by physical address.

use mm::addr::Order;
use mm::phys::{Frame, Owned, Use};
use mm::{Hw, Pfn};

use crate::arch::X86;

/// A block of 2^`order` frames, contents unknown.
#[inline]
pub fn alloc(order: u8) -> Option<u64> {
    let phys = X86.phys();
    let frame = if order == 0 {
        phys.alloc(X86, Use::Kernel)?
    } else {
        phys.alloc_order(X86, Order::new(order)?, Use::Kernel)?
    };
    Some(frame.into_pfn().phys().0)
}

/// A zeroed frame.
pub fn alloc_zeroed() -> Option<u64> {
    alloc_zeroed_block(0)
}

/// A zeroed block of 2^`order` frames.
pub fn alloc_zeroed_block(order: u8) -> Option<u64> {
    let pa = alloc(order)?;
    for n in 0..1 << order {
        X86.clear_frame(X86.frame_ptr(Pfn((pa >> 12) + n)));
    }
    Some(pa)
}

/// Takes a block back.
///
/// # Safety
/// `alloc(order)` returned it, and nobody uses it any more.
#[inline]
pub unsafe fn free(pa: u64, order: u8) {
    let order = Order::new(order).expect("an order that alloc takes");
    // SAFETY: the caller's promise: we own the block.
    let frame: Frame<Owned> = unsafe { Frame::from_raw(Pfn(pa >> 12), order) };
    X86.phys().free(X86, frame);
}

/// A frame below 4 GiB, contents unknown.
pub fn alloc_low() -> Option<u64> {
    Some(X86.phys().alloc(X86, Use::Dma32)?.into_pfn().phys().0)
}
