//! The loader: from QEMU's `-kernel` to a `bootloader_api` kernel.
//!
//! QEMU enters at [`entry`]'s 32-bit PVH entry with a `hvm_start_info`; [`entry`] turns on long mode over an identity
//! map of 4 GiB and calls [`start`]. The initrd is a newc archive whose entry `boot/kernel` is the kernel. The loader
//! builds a fresh set of page tables as the kernel's `BootloaderConfig` asks, copies the kernel's segments, and jumps
//! with `&'static mut BootInfo`. It stays where it is, and is reported as `Bootloader` memory; the lower half of the
//! tables maps nothing but the loader's own pages, which the kernel may forget.
//!
//! Whatever is missing ends in [`fail::stop`]: one line on a serial port and a QEMU exit code of its own.

#![no_std]
#![no_main]

mod boot_info;
mod cpio;
mod cpu;
mod entry;
mod fail;
mod frames;
mod image;
mod start_info;
mod table;

use bootloader_api::config::Mapping;
use fail::{Failure, stop};
use frames::{FRAME, Frames};
use table::{Flags, Tables};

unsafe extern "C" {
    static __loader_start: u8;
    static __loader_writable: u8;
    static __loader_end: u8;
}

/// The loader's own memory: start, first writable page, end.
fn own_memory() -> (u64, u64, u64) {
    (
        &raw const __loader_start as u64,
        &raw const __loader_writable as u64,
        &raw const __loader_end as u64,
    )
}

/// Rust begins here: long mode, interrupts off, the first 4 GiB mapped at their own addresses.
extern "C" fn start(start_info: u32) -> ! {
    cpu::require_features();
    let machine = start_info::read(start_info as u64);
    let Some(kernel) = cpio::find(machine.ramdisk, b"boot/kernel") else {
        stop(
            Failure::NoKernel,
            format_args!("the archive has no boot/kernel"),
        );
    };
    let kernel = image::parse(kernel);

    let (own_start, own_writable, own_end) = own_memory();
    let mut frames = Frames::new(&machine, own_end);
    let mut tables = Tables::new(&mut frames, &kernel.config.mappings);

    tables.map(
        &mut frames,
        own_start,
        own_start,
        own_writable - own_start,
        Flags::TEXT,
    );
    tables.map(
        &mut frames,
        own_writable,
        own_writable,
        own_end - own_writable,
        Flags::DATA,
    );
    kernel.load(&mut tables, &mut frames);

    let offset = kernel.config.mappings.physical_memory.map(|asked| {
        let offset = tables.place(asked, machine.end_of_memory, 1 << 30);
        tables.map(&mut frames, offset, 0, machine.end_of_memory, Flags::DIRECT);
        offset
    });
    let (ramdisk_start, ramdisk_len) = machine.ramdisk_range();
    let ramdisk = match (kernel.config.mappings.ramdisk_memory, offset) {
        (Mapping::Dynamic, Some(offset)) => offset + ramdisk_start,
        (asked, _) => {
            let first = ramdisk_start & !(FRAME - 1);
            let len = (ramdisk_start + ramdisk_len - first).next_multiple_of(FRAME);
            let at = tables.place(asked, len, FRAME);
            tables.map(&mut frames, at, first, len, Flags::DATA);
            at + (ramdisk_start - first)
        }
    };

    // One unmapped page under the stack: running over its end faults.
    let stack_len = kernel
        .config
        .kernel_stack_size
        .max(1)
        .next_multiple_of(FRAME);
    let guard = tables.place(
        kernel.config.mappings.kernel_stack,
        FRAME + stack_len,
        FRAME,
    );
    let stack = guard + FRAME;
    let stack_frames = frames.take(stack_len);
    tables.map(&mut frames, stack, stack_frames, stack_len, Flags::DATA);

    let info_at = tables.place(kernel.config.mappings.boot_info, FRAME, FRAME);
    let info_frame = frames.take_zeroed(FRAME);
    tables.map(&mut frames, info_at, info_frame, FRAME, Flags::DATA);
    let recursive = kernel
        .config
        .mappings
        .page_table_recursive
        .map(|asked| tables.recursive(asked));

    // Nothing takes a frame after this: the memory map is final.
    let regions = boot_info::write_regions(info_frame, info_at, &machine, own_start, frames.end());
    tables.activate();
    let info = boot_info::write(info_at, regions);
    info.physical_memory_offset = offset.into();
    info.recursive_index = recursive.into();
    info.rsdp_addr = machine.rsdp.into();
    info.ramdisk_addr = Some(ramdisk).into();
    info.ramdisk_len = ramdisk_len;
    info.tls_template = kernel.tls.into();
    info.kernel_addr = kernel.file.as_ptr() as u64;
    info.kernel_len = kernel.file.len() as u64;
    // As upstream: what was added to the addresses the kernel is linked at.
    info.kernel_image_offset = 0;
    info.kernel_stack_bottom = stack;
    info.kernel_stack_len = stack_len;

    // SAFETY: the tables now active map the entry as text and the stack as data, and `info` is not used again here.
    unsafe { entry::jump(kernel.entry, stack + stack_len, info) }
}
