//! The other CPUs, woken by INIT and STARTUP through a page below 1 MiB.
//!
//! The trampoline goes from real mode to long mode in one step, on a root that is the kernel's plus the
//! trampoline's page at its own address; then it takes the stack it was given and calls `ap_main`, which
//! leaves that root. CPUs are started one after another: they share the page.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::acpi::Machine;
use super::{apic, cpu, entry, gdt, idt, percpu, time};
use crate::memory::{self, kspace};

global_asm!(
    ".pushsection .rodata.trampoline, \"a\", @progbits",
    ".balign 16",
    ".global trampoline_start",
    "trampoline_start:",
    ".code16",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    // Long mode at once: PAE, root, LME and NXE, then protection and paging together.
    "mov eax, cr4",
    "or eax, 0x20",
    "mov cr4, eax",
    ".byte 0x66, 0xa1", // mov eax, [imm16]
    ".short trampoline_root - trampoline_start",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80010001",
    "and eax, 0x9fffffff",
    "mov cr0, eax",
    ".byte 0x66, 0x0f, 0x01, 0x16", // lgdtl [imm16]
    ".short trampoline_gdtr - trampoline_start",
    ".byte 0x66, 0xff, 0x2e", // ljmpl *[imm16]
    ".short trampoline_far - trampoline_start",
    ".code64",
    "trampoline_long:",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov rsp, [rip + trampoline_stack]",
    "mov rdi, [rip + trampoline_cpu]",
    "mov rax, [rip + trampoline_entry]",
    "call rax",
    "ud2",
    ".balign 8",
    "trampoline_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff",
    "trampoline_gdtr:",
    ".short 15",
    "trampoline_gdt_base:",
    ".long 0",
    ".balign 8",
    "trampoline_far:",
    ".long 0",
    ".short 8",
    ".balign 8",
    "trampoline_root:",
    ".quad 0",
    "trampoline_stack:",
    ".quad 0",
    "trampoline_cpu:",
    ".quad 0",
    "trampoline_entry:",
    ".quad 0",
    ".global trampoline_end",
    "trampoline_end:",
    ".popsection",
    ".global trampoline_gdt",
    ".global trampoline_gdt_base",
    ".global trampoline_far",
    ".global trampoline_long",
    ".global trampoline_root",
    ".global trampoline_stack",
    ".global trampoline_cpu",
    ".global trampoline_entry",
);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static trampoline_long: u8;
    static trampoline_gdt: u8;
    static trampoline_gdt_base: u8;
    static trampoline_far: u8;
    static trampoline_root: u8;
    static trampoline_stack: u8;
    static trampoline_cpu: u8;
    static trampoline_entry: u8;
}

/// CPUs that have reached `ap_main`'s end of set-up.
static ONLINE: AtomicUsize = AtomicUsize::new(1);
/// Set when all that will run are known: nobody schedules before.
static GO: AtomicUsize = AtomicUsize::new(0);

/// The steps every CPU takes, the boot CPU first.
pub(super) fn init_this_cpu(id: usize) {
    gdt::init(id);
    idt::load();
    cpu::init();
    super::hw::init_cpu();
    super::fpu::init_cpu();
    entry::init_syscall();
}

/// Starts the CPUs of `machine` besides this one.
pub(super) fn start_others(machine: &Machine) {
    if machine.ncpus > 1 {
        let page = memory::low_page().expect("a free page below 1 MiB for the trampoline");
        let root = kspace::trampoline_root(page);
        for id in 1..machine.ncpus {
            start(id, machine.apic_ids[id], page, root.cr3());
        }
        drop(root);
    }
    GO.store(1, Ordering::Release);
}

fn start(id: usize, apic_id: u32, page: u64, root: u64) {
    let stack = kspace::KernelStack::new().expect("boot stack of a CPU");
    let top = stack.top();
    core::mem::forget(stack);
    let base = memory::direct(page) as *mut u8;
    let first = &raw const trampoline_start;
    let put32 = |field: *const u8, v: u32| {
        // SAFETY: the field lies between start and end, which were copied to the page.
        unsafe {
            base.add(field as usize - first as usize)
                .cast::<u32>()
                .write_unaligned(v)
        }
    };
    let put64 = |field: *const u8, v: u64| {
        // SAFETY: as above.
        unsafe {
            base.add(field as usize - first as usize)
                .cast::<u64>()
                .write_unaligned(v)
        }
    };
    let offset = |field: *const u8| (field as usize - first as usize) as u32;
    // SAFETY: the page is ours, and larger than the code.
    unsafe {
        base.copy_from_nonoverlapping(first, (&raw const trampoline_end) as usize - first as usize)
    };
    put32(
        &raw const trampoline_gdt_base,
        page as u32 + offset(&raw const trampoline_gdt),
    );
    put32(
        &raw const trampoline_far,
        page as u32 + offset(&raw const trampoline_long),
    );
    put64(&raw const trampoline_root, root);
    put64(&raw const trampoline_stack, top);
    put64(&raw const trampoline_cpu, id as u64);
    put64(&raw const trampoline_entry, ap_main as *const () as u64);

    // SAFETY: that CPU has not started, so its entry is ours; `send` needs the id.
    unsafe { (*percpu::of(id)).apic_id = apic_id };
    apic::send_init(apic_id);
    wait_ns(10_000, || false);
    // A second STARTUP only when the first was missed. The last wait is long: an emulated CPU on a busy host starts when
    // the host lets its thread run.
    for patience in [20_000_000, 10_000_000_000] {
        apic::send_startup(apic_id, (page >> 12) as u8);
        if wait_ns(patience, || ONLINE.load(Ordering::Acquire) > id) {
            percpu::set_ncpus(id + 1);
            return;
        }
    }
    // Numbers must be dense: the missing one cannot be left out after the fact.
    panic!("CPU {id} (APIC {apic_id}) did not start");
}

/// Waits until `done` or for `ns`; true when done.
fn wait_ns(ns: u64, done: impl Fn() -> bool) -> bool {
    let until = time::now_ns() + ns;
    while time::now_ns() < until {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    done()
}

/// Where the trampoline ends, on the stack that `start` made.
extern "C" fn ap_main(id: usize) -> ! {
    // SAFETY: this CPU is `id`; `start` filled in its APIC id.
    unsafe {
        cpu::set_cr3(kspace::kernel_root().0 << 12);
        percpu::init(id, (*percpu::of(id)).apic_id);
    }
    init_this_cpu(id);
    apic::init();
    ONLINE.fetch_add(1, Ordering::Release);
    while GO.load(Ordering::Acquire) == 0 {
        core::hint::spin_loop();
    }
    crate::cpu_main(id)
}
