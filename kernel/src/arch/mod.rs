//! The machine: CPUs, traps, interrupts, time, user copies.

mod acpi;
mod apic;
mod cpu;
pub mod debug;
pub mod dmar;
mod entry;
pub mod fpu;
pub mod frame;
mod gdt;
pub mod hw;
mod idt;
mod ipi;
mod percpu;
pub mod serial;
mod smp;
pub mod switch;
pub mod time;
mod trap;
pub mod uaccess;

pub use apic::route_pci;
pub use cpu::{
    Features, clflush, cr2, cr3, features, fs_base, halt_until_interrupt, invlpg, irq_disable,
    irq_enable, irq_restore, irq_save, irqs_on, physical_bits, rdtsc, set_cr3, set_fs_base,
    set_user_gs_base, user_gs_base,
};
pub use entry::{return_to_user, watch_syscalls};
pub use frame::TrapFrame;
pub use hw::X86;
#[cfg(feature = "test")]
pub use ipi::halts_for_answers;
pub use ipi::{flush_kernel, run_on, run_on_all, send_resched};
pub(crate) use ipi::{stop, stop_others};
pub use percpu::{
    apic_id, cpu_id, current_ptr, in_nofault, ncpus, of as per_cpu, set_current, set_kernel_stack,
};
pub use trap::full_frame_return;

use x86_64::instructions::port::Port;

/// CPUs supported.
pub const MAX_CPUS: usize = 8;

/// Debug-exit values.
pub const EXIT_CLEAN: u8 = 0x10;
pub const EXIT_PANIC: u8 = 0x11;
pub const EXIT_TESTS_FAILED: u8 = 0x12;

/// The first steps of the boot CPU: who it is, the clock, the serial ports.
pub fn early_init() {
    // SAFETY: the boot CPU, first of all.
    unsafe { percpu::init(0, 0) };
    time::start();
    serial::init();
}

/// This CPU's tables, gates and control registers. After the memory is known.
pub fn init_boot_cpu() {
    idt::fill();
    cpu::patch_smap_sites();
    smp::init_this_cpu(0);
}

/// Interrupt controllers, clock, and the other CPUs, which wait for the last of them and then run `cpu_main`.
pub fn start_machine(rsdp: Option<u64>) {
    let machine = acpi::read(rsdp);
    // SAFETY: our own entry; nobody sends us anything yet.
    unsafe { (*percpu::of(0)).apic_id = machine.apic_ids[0] };
    time::calibrate(machine.pm_timer);
    smp::start_others(&machine);
}

/// Ends QEMU through isa-debug-exit with `status` as the value written.
pub fn power_off(status: u8) -> ! {
    serial::drain();
    // SAFETY: the debug-exit device's port; without the device nothing happens.
    unsafe { Port::<u32>::new(0xf4).write(u32::from(status)) };
    stop()
}
