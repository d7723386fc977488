//! The loader's memory map, and the frames that are taken before there is an allocator.

use core::sync::atomic::{AtomicU64, Ordering};

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use mm::phys::Zone;
use spin::Once;

const MAX: usize = 64;
const FRAME: u64 = 4096;
const LOW_END: u64 = 1 << 20;
const DMA32_END: u64 = 1 << 32;

static LOW_PAGE: AtomicU64 = AtomicU64::new(0);

/// See [`super::low_page`].
pub(super) fn low_page() -> Option<u64> {
    match LOW_PAGE.load(Ordering::Relaxed) {
        0 => None,
        page => Some(page),
    }
}

/// The loader's map, which stays.
static MAP: Once<&'static [MemoryRegion]> = Once::new();

pub(super) fn remember(map: &'static [MemoryRegion]) {
    MAP.call_once(|| map);
}

/// Whether a region is RAM, usable or taken by the loader.
pub(super) fn is_ram(region: &MemoryRegion) -> bool {
    use MemoryRegionKind::{Bootloader, Usable};
    matches!(region.kind, Usable | Bootloader)
}

/// See [`super::ram_between`].
pub(super) fn ram_between(start: u64, end: u64) -> u64 {
    let ram = MAP.get().into_iter().flat_map(|map| map.iter());
    ram.filter(|r| is_ram(r))
        .map(|r| (r.start & !(FRAME - 1), r.end.next_multiple_of(FRAME)))
        .map(|(from, to)| to.min(end).saturating_sub(from.max(start)))
        .sum()
}

/// Usable memory that nobody has taken, as ranges; shrinks.
pub(super) struct Early {
    ranges: [(u64, u64); MAX],
    len: usize,
}

impl Early {
    pub(super) fn new(regions: &[MemoryRegion]) -> Early {
        let mut early = Early {
            ranges: [(0, 0); MAX],
            len: 0,
        };
        for region in regions
            .iter()
            .filter(|r| r.kind == MemoryRegionKind::Usable)
        {
            let (start, end) = (
                region.start.max(FRAME).next_multiple_of(FRAME),
                region.end & !(FRAME - 1),
            );
            early.add(start, end);
        }
        // The trampoline's page: the last free one below 640 KiB.
        let low = early.ranges[..early.len]
            .iter()
            .filter(|(start, _)| *start < LOW_END)
            .map(|(start, end)| (*end).min(0xa_0000).saturating_sub(FRAME).max(*start))
            .max();
        if let Some(page) = low {
            early.cut(page, page + FRAME);
            LOW_PAGE.store(page, Ordering::Relaxed);
        }
        early
    }

    fn add(&mut self, start: u64, end: u64) {
        if start < end {
            assert!(self.len < MAX, "too many memory regions");
            self.ranges[self.len] = (start, end);
            self.len += 1;
        }
    }

    /// Takes `start..end` out, which lies in one range.
    fn cut(&mut self, start: u64, end: u64) {
        let at = (0..self.len)
            .find(|i| self.ranges[*i].0 <= start && end <= self.ranges[*i].1)
            .expect("cut lies in a range");
        let (low, high) = self.ranges[at];
        self.len -= 1;
        self.ranges[at] = self.ranges[self.len];
        self.add(low, start);
        self.add(end, high);
    }

    /// `len` bytes aligned to `align`, below 4 GiB (a CPU's first root must be), from the top of a range.
    pub(super) fn alloc(&mut self, len: u64, align: u64) -> u64 {
        let best = self.ranges[..self.len]
            .iter()
            .filter_map(|(start, end)| {
                let at = (*end).min(DMA32_END).checked_sub(len)? & !(align - 1);
                (at >= *start).then_some(at)
            })
            .max()
            .expect("memory for the kernel's tables");
        self.cut(best, best + len);
        best
    }

    /// A zeroed frame.
    pub(super) fn frame(&mut self) -> u64 {
        let pa = self.alloc(FRAME, FRAME);
        // SAFETY: just taken; the direct map covers RAM.
        unsafe { zero(pa, FRAME) };
        pa
    }

    /// Gives the rest to `add(start, end, zone)`, the top `movable` bytes as movable memory.
    pub(super) fn hand_over(mut self, mut movable: u64, mut add: impl FnMut(u64, u64, Zone)) {
        self.ranges[..self.len].sort_unstable();
        for i in (0..self.len).rev() {
            let (start, end) = self.ranges[i];
            // Whole largest blocks, so that no block has two zones.
            let take = movable.min(end - start) & !((4 << 20) - 1);
            let split = (end - take) & !((4 << 20) - 1);
            let split = if take == 0 || split < start {
                end
            } else {
                split
            };
            movable = movable.saturating_sub(end - split);
            let middle = split.clamp(start, split.min(DMA32_END).max(start));
            for (from, to, zone) in [
                (start, middle, Zone::Dma32),
                (middle, split, Zone::Normal),
                (split, end, Zone::Movable),
            ] {
                if from < to {
                    add(from, to, zone);
                }
            }
        }
    }
}

/// Zeroes physical memory by 8-byte stores.
///
/// # Safety
/// `pa..pa + len` is RAM of ours, a multiple of 8.
pub(super) unsafe fn zero(pa: u64, len: u64) {
    // SAFETY: the caller's promise, through the direct map.
    unsafe {
        core::arch::asm!("rep stosq", inout("rcx") len / 8 => _, inout("rdi") super::direct(pa) => _,
            in("rax") 0u64, options(nostack, preserves_flags));
    }
}
