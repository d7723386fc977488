//! Gates of all 256 vectors; one table for every CPU.

use core::arch::asm;
use core::cell::UnsafeCell;

use super::entry;
use super::gdt;

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate(u64, u64);

impl Gate {
    /// An interrupt gate: interrupts are off on entry.
    const fn new(handler: u64, dpl: u64, ist: u8) -> Gate {
        let low = handler & 0xffff
            | (gdt::KERNEL_CS as u64) << 16
            | (ist as u64) << 32
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        Gate(low, handler >> 32)
    }
}

#[repr(C, align(4096))]
struct Table(UnsafeCell<[Gate; 256]>);
// SAFETY: written by the boot CPU before the others start.
unsafe impl Sync for Table {}
static IDT: Table = Table(UnsafeCell::new([Gate(0, 0); 256]));

/// Fills the table. Boot CPU, once.
pub(super) fn fill() {
    let idt = IDT.0.get().cast::<Gate>();
    for vector in 0..256usize {
        let (dpl, ist) = match vector {
            1 => (0, gdt::IST_DEBUG),
            2 => (0, gdt::IST_NMI),
            3 | 4 => (3, 0),
            8 => (0, gdt::IST_DOUBLE_FAULT),
            18 => (0, gdt::IST_MACHINE_CHECK),
            _ => (0, 0),
        };
        // SAFETY: inside the table, before any CPU uses it.
        unsafe {
            idt.add(vector)
                .write(Gate::new(entry::stub(vector), dpl, ist))
        };
    }
}

/// Points this CPU at the table.
pub(super) fn load() {
    let idtr = gdt::Pointer {
        limit: 256 * 16 - 1,
        base: IDT.0.get() as u64,
    };
    // SAFETY: `fill` ran; the table lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) &idtr, options(readonly, nostack, preserves_flags)) };
}
