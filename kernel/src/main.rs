//! The kernel's ELF file: entry point and panic handler; all else is in the library.
#![no_std]
#![no_main]

use bootloader_api::{BootInfo, entry_point};

entry_point!(start, config = &kernel::LOADER_CONFIG);

fn start(info: &'static mut BootInfo) -> ! {
    kernel::start(info)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    kernel::fail::panic(info)
}
