//! Segments and task state of each CPU; selectors as Linux has them, which programs can see.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::size_of;

use super::MAX_CPUS;
use super::percpu;

pub const KERNEL_CS: u16 = 0x10;
pub const KERNEL_DS: u16 = 0x18;
const TSS: u16 = 0x40;

/// Interrupt stack table slots (1-based, as gates name them).
pub const IST_NMI: u8 = 1;
pub const IST_DOUBLE_FAULT: u8 = 2;
pub const IST_MACHINE_CHECK: u8 = 3;
pub const IST_DEBUG: u8 = 4;
const IST_ORDER: u8 = 1;
const IST_SIZE: u64 = 4096 << IST_ORDER;

#[repr(C, packed(4))]
struct Tss {
    _reserved0: u32,
    rsp: [u64; 3],
    _reserved1: u64,
    ist: [u64; 7],
    _reserved2: u64,
    _reserved3: u16,
    iomap: u16,
}

#[repr(C, align(64))]
struct Segments {
    gdt: [u64; 10],
    tss: Tss,
}

const EMPTY: Segments = Segments {
    gdt: [
        0,
        0,
        0x00af_9b00_0000_ffff, // kernel code
        0x00cf_9300_0000_ffff, // kernel data
        0x00cf_fb00_0000_ffff, // user code, 32 bit: SYSRET counts from here
        0x00cf_f300_0000_ffff, // user data
        0x00af_fb00_0000_ffff, // user code
        0,
        0,
        0,
    ],
    tss: Tss {
        _reserved0: 0,
        rsp: [0; 3],
        _reserved1: 0,
        ist: [0; 7],
        _reserved2: 0,
        _reserved3: 0,
        iomap: size_of::<Tss>() as u16,
    },
};

struct Table(UnsafeCell<[Segments; MAX_CPUS]>);
// SAFETY: each entry is used by its own CPU only.
unsafe impl Sync for Table {}
static TABLE: Table = Table(UnsafeCell::new([EMPTY; MAX_CPUS]));

fn segments(cpu: usize) -> *mut Segments {
    assert!(cpu < MAX_CPUS);
    TABLE.0.get().cast::<Segments>().wrapping_add(cpu)
}

/// Gives this CPU its GDT, TSS and interrupt stacks. GS is loaded already.
pub(super) fn init(cpu: usize) {
    let s = segments(cpu);
    // SAFETY: this CPU's entry; the descriptors point at memory that lives for ever. Loading the data
    // segments leaves FS and GS alone, whose bases would be cleared.
    unsafe {
        for ist in [IST_NMI, IST_DOUBLE_FAULT, IST_MACHINE_CHECK, IST_DEBUG] {
            let stack = crate::memory::frames::alloc(IST_ORDER).expect("interrupt stack");
            let top = crate::memory::direct(stack) + IST_SIZE - 16;
            // Entry on such a stack finds its CPU here, whatever GS is.
            (top as *mut u64).write(percpu::of(cpu) as u64);
            (*s).tss.ist[ist as usize - 1] = top;
        }
        let base = &raw const (*s).tss as u64;
        let limit = size_of::<Tss>() as u64 - 1;
        (*s).gdt[8] = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*s).gdt[9] = base >> 32;
        let gdtr = Pointer {
            limit: size_of::<[u64; 10]>() as u16 - 1,
            base: &raw const (*s).gdt as u64,
        };
        asm!(
            "lgdt [{gdtr}]",
            "push {cs}",
            "lea {tmp}, [rip + 2f]",
            "push {tmp}",
            "retfq",
            "2:",
            "mov ds, {ds:e}",
            "mov es, {ds:e}",
            "mov ss, {ds:e}",
            "ltr {tr:x}",
            gdtr = in(reg) &gdtr,
            cs = in(reg) u64::from(KERNEL_CS),
            ds = in(reg) u32::from(KERNEL_DS),
            tr = in(reg) TSS,
            tmp = out(reg) _,
        );
    }
}

/// Operand of LGDT and LIDT.
#[repr(C, packed(2))]
pub(super) struct Pointer {
    pub limit: u16,
    pub base: u64,
}

/// Where traps from user mode build their frame on this CPU.
#[inline]
pub(super) fn set_rsp0(top: u64) {
    // SAFETY: this CPU's entry; the CPU reads it at the next entry from user mode.
    unsafe { (&raw mut (*segments(super::cpu_id())).tss.rsp[0]).write_unaligned(top) };
}
