//! Pinfold's machine: boot, traps, threads, files; the memory subsystem itself is the crate `mm`.
#![no_std]

extern crate alloc;

#[macro_use]
pub mod klog;
pub mod arch;
pub mod dev;
pub mod exec;
pub mod fail;
pub mod fs;
#[cfg(feature = "test")]
pub mod ktest;
pub mod memory;
pub mod oom;
#[cfg(feature = "test")]
pub mod race;
pub mod sync;
pub mod syscall;
pub mod task;
pub mod trap;
pub mod vsyscall;

use bootloader_api::BootInfo;
use bootloader_api::config::{BootloaderConfig, Mapping};

pub use arch::serial;

/// What a system call returns: a value, or an errno.
pub type SysResult = Result<usize, mm::Errno>;

/// What the kernel asks of its loader: everything in the kernel half, physical memory where DESIGN has it.
pub static LOADER_CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = 64 << 10;
    config.mappings.physical_memory = Some(Mapping::FixedAddress(memory::DIRECT_MAP));
    config.mappings.dynamic_range_start = Some(0xffff_ff00_0000_0000);
    config.mappings.dynamic_range_end = Some(0xffff_ff80_0000_0000);
    config
};

/// The boot order.
pub fn start(info: &'static BootInfo) -> ! {
    let entered = arch::rdtsc();
    arch::early_init();
    memory::init(info);
    klog::init();
    #[cfg(feature = "test")]
    race::init();
    arch::init_boot_cpu();
    arch::start_machine(info.rsdp_addr.into_option());
    debug!("kernel entered at TSC {entered}");
    info!(
        "pinfold: {} CPUs, {} MiB of memory, TSC {} MHz",
        arch::ncpus(),
        memory::totals().0 >> 8,
        arch::time::tsc_hz() / 1_000_000
    );
    memory::kspace::check_protection();
    if memory::cmdline("mode") == Some("shell") {
        serial::enable_receive();
    }
    cpu_main(0)
}

/// Where every CPU ends up, the boot CPU too.
pub(crate) fn cpu_main(cpu: usize) -> ! {
    task::start_scheduler(cpu)
}
