//! The page that the kernel is handed: `BootInfo`, then the memory regions.
//!
//! The memory map is QEMU's, in its order; RAM is cut where the loader's memory and the archive lie in it.

use crate::fail::{Failure, stop};
use crate::frames::FRAME;
use crate::start_info::Machine;
use bootloader_api::BootInfo;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};

/// Where in the page the regions begin.
const REGIONS: u64 = 512;
const _: () = assert!(size_of::<BootInfo>() <= REGIONS as usize);
const MAX_REGIONS: usize = (FRAME - REGIONS) as usize / size_of::<MemoryRegion>();

/// The regions at their address for the kernel.
pub struct Regions {
    at: u64,
    len: usize,
}

/// Writes the memory map into the identity-mapped `frame`, which the kernel will see at `at`.
pub fn write_regions(
    frame: u64,
    at: u64,
    machine: &Machine,
    own_start: u64,
    own_end: u64,
) -> Regions {
    let (ramdisk, ramdisk_len) = machine.ramdisk_range();
    let ramdisk = (
        ramdisk & !(FRAME - 1),
        (ramdisk + ramdisk_len).next_multiple_of(FRAME),
    );
    let own = (own_start, own_end);
    let taken = if own.0 < ramdisk.0 {
        [own, ramdisk]
    } else {
        [ramdisk, own]
    };

    let mut len = 0;
    let mut push = |start: u64, end: u64, kind: MemoryRegionKind| {
        if start >= end {
            return;
        }
        if len == MAX_REGIONS {
            stop(
                Failure::BadBootInformation,
                format_args!("bad boot information: too many memory regions"),
            );
        }
        // SAFETY: `frame` is a frame of the loader's own, identity-mapped, and `len` is within it.
        unsafe {
            ((frame + REGIONS) as *mut MemoryRegion)
                .add(len)
                .write(MemoryRegion { start, end, kind })
        };
        len += 1;
    };
    for entry in machine.map {
        if !entry.is_ram() {
            push(
                entry.start,
                entry.end(),
                MemoryRegionKind::UnknownBios(entry.kind),
            );
            continue;
        }
        // Only whole frames are usable.
        let mut start = entry.start.next_multiple_of(FRAME);
        let end = entry.end() & !(FRAME - 1);
        for taken in taken {
            let (from, to) = (taken.0.max(start), taken.1.min(end));
            if from < to {
                push(start, from, MemoryRegionKind::Usable);
                push(from, to, MemoryRegionKind::Bootloader);
                start = to;
            }
        }
        push(start, end, MemoryRegionKind::Usable);
    }
    Regions {
        at: at + REGIONS,
        len,
    }
}

/// Makes the `BootInfo` at its address for the kernel, in the kernel's page tables.
pub fn write(at: u64, regions: Regions) -> &'static mut BootInfo {
    // SAFETY: the active tables map the page at `at` to the frame that `write_regions` filled; nobody else refers to
    // it, and both structures are within it and apart (`REGIONS`).
    unsafe {
        let regions: &'static mut [MemoryRegion] =
            core::slice::from_raw_parts_mut(regions.at as *mut MemoryRegion, regions.len);
        let info = at as *mut BootInfo;
        info.write(BootInfo::new(regions.into()));
        &mut *info
    }
}
