//! The test kernel: Pinfold with its checks on, and tests that run inside it.
#![no_std]
#![no_main]

extern crate alloc;

mod deaths;
mod disks;
mod frames;
mod machine;
mod queues;
mod secret;

use bootloader_api::{BootInfo, entry_point};

entry_point!(start, config = &kernel::LOADER_CONFIG);

fn start(info: &'static mut BootInfo) -> ! {
    kernel::start(info)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    kernel::fail::panic(info)
}
