//! The descriptors: one array at a fixed address, mapped by 2 MiB pages only where RAM is (a page of the
//! array covers 128 MiB of memory).

use core::mem::size_of;
use core::sync::atomic::{AtomicU64, Ordering};

use bootloader_api::info::MemoryRegion;
use mm::Pfn;
use mm::phys::FrameDesc;

use super::kspace::{self, Leaf};
use super::regions::{self, Early};

const LARGE: u64 = 2 << 20;

static FRAMES_END: AtomicU64 = AtomicU64::new(0);

/// One past the last frame of RAM.
#[inline]
pub(super) fn frames_end() -> u64 {
    FRAMES_END.load(Ordering::Relaxed)
}

/// Whether the frame's descriptor is mapped.
pub(super) fn has(pfn: Pfn) -> bool {
    pfn.0 < frames_end()
        && kspace::translate(super::VMEMMAP + pfn.0 * size_of::<FrameDesc>() as u64).is_some()
}

/// Maps and zeroes the descriptors of every frame of RAM, usable or taken by the loader.
pub(super) fn init(early: &mut Early, map: &[MemoryRegion]) {
    let per_frame = size_of::<FrameDesc>() as u64;
    let mut end = 0;
    for region in map.iter().filter(|r| regions::is_ram(r)) {
        end = end.max(region.end >> 12);
        let first = (super::VMEMMAP + (region.start >> 12) * per_frame) & !(LARGE - 1);
        let last = super::VMEMMAP + (region.end.next_multiple_of(4096) >> 12) * per_frame;
        for va in (first..last).step_by(LARGE as usize) {
            if kspace::translate(va).is_none() {
                let pa = early.alloc(LARGE, LARGE);
                // SAFETY: just taken.
                unsafe { regions::zero(pa, LARGE) };
                kspace::map(va, pa, Leaf::Large, kspace::DATA, &mut || {
                    Some(early.frame())
                })
                .expect("tables of the descriptors");
            }
        }
    }
    FRAMES_END.store(end, Ordering::Relaxed);
}
