//! The descriptors: one array at a fixed address, mapped by 2 MiB pages (a page of the array covers 128 MiB of memory). Where
//! all of that is no RAM, many such blocks share one page: whatever an entry says, what is below the last frame of RAM has a
//! descriptor, and that of what was never handed to the allocator says so (PFN-8).

use core::mem::size_of;
use core::sync::atomic::{AtomicU64, Ordering};

use bootloader_api::info::MemoryRegion;
use mm::Pfn;
use mm::phys::{FrameDesc, flag};

use super::kspace::{self, Leaf};
use super::regions::{self, Early};

const LARGE: u64 = 2 << 20;
const SIZE: u64 = size_of::<FrameDesc>() as u64;
/// Frames whose descriptors are one page of the array.
const BLOCK: u64 = LARGE / SIZE;

static FRAMES_END: AtomicU64 = AtomicU64::new(0);
/// The page of the blocks without RAM; 0: there are none.
static NO_RAM: AtomicU64 = AtomicU64::new(0);

/// One past the last frame of RAM.
#[inline]
pub(super) fn frames_end() -> u64 {
    FRAMES_END.load(Ordering::Relaxed)
}

/// Whether the frame's descriptor is its own.
pub(super) fn has(pfn: Pfn) -> bool {
    pfn.0 < frames_end()
        && kspace::translate(super::VMEMMAP + pfn.0 * SIZE)
            .is_some_and(|pa| pa & !(LARGE - 1) != NO_RAM.load(Ordering::Relaxed))
}

/// Maps the descriptors of every frame up to the last of RAM; nobody has any of them yet.
pub(super) fn init(early: &mut Early, map: &[MemoryRegion]) {
    let ram = map.iter().filter(|r| regions::is_ram(r));
    let end = ram.map(|r| r.end >> 12).max().unwrap_or(0);
    let mut no_ram = None;
    for first in (0..end).step_by(BLOCK as usize) {
        let pa = match regions::ram_between(first << 12, (first + BLOCK) << 12) {
            0 => *no_ram.get_or_insert_with(|| block(early)),
            _ => block(early),
        };
        let table = &mut || Some(early.frame());
        kspace::map(
            super::VMEMMAP + first * SIZE,
            pa,
            Leaf::Large,
            kspace::DATA,
            table,
        )
        .expect("tables of the descriptors");
    }
    NO_RAM.store(no_ram.unwrap_or(0), Ordering::Relaxed);
    FRAMES_END.store(end, Ordering::Relaxed);
}

/// A page of descriptors of frames that nobody has: the first is written, and what is there is copied behind it.
fn block(early: &mut Early) -> u64 {
    let pa = early.alloc(LARGE, LARGE);
    let first = FrameDesc::default();
    first.set(flag::RESERVED);
    let at = super::direct(pa) as *mut FrameDesc;
    // SAFETY: just taken; no copy is longer than what lies before it, nor than the rest.
    unsafe {
        at.write(first);
        let mut done = 1;
        while done < BLOCK as usize {
            at.copy_to_nonoverlapping(at.add(done), done);
            done *= 2;
        }
    }
    pa
}
