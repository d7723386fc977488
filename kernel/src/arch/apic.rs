//! Local APIC (xAPIC, or x2APIC where CPUID has it) and I/O APIC.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use mm::table::Caching;
use x86_64::instructions::port::Port;

use super::cpu;
use super::trap::{VECTOR_SPURIOUS, VECTOR_TIMER};
use crate::sync::IrqLock;

const APIC_BASE: u32 = 0x1b;
const X2APIC_MSRS: u32 = 0x800;

const ID: u32 = 0x20;
const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const MASKED: u32 = 1 << 16;

static X2APIC: AtomicBool = AtomicBool::new(false);
static BASE: AtomicU64 = AtomicU64::new(0);

fn read(reg: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC is on, `reg` is one of the above.
        unsafe { cpu::rdmsr(X2APIC_MSRS + reg / 16) as u32 }
    } else {
        // SAFETY: BASE is the mapped register page.
        unsafe { ((BASE.load(Ordering::Relaxed) + u64::from(reg)) as *const u32).read_volatile() }
    }
}

#[inline]
fn write(reg: u32, v: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC is on, `reg` is one of the above.
        unsafe { cpu::wrmsr(X2APIC_MSRS + reg / 16, u64::from(v)) };
    } else {
        // SAFETY: BASE is the mapped register page.
        unsafe { ((BASE.load(Ordering::Relaxed) + u64::from(reg)) as *mut u32).write_volatile(v) };
    }
}

/// Maps the registers. Boot CPU, once; `base` from the MADT.
pub(super) fn map(base: u64) {
    if cpu::features().x2apic() {
        X2APIC.store(true, Ordering::Relaxed);
    } else {
        BASE.store(
            crate::memory::kspace::map_device(base, 4096, Caching::Off),
            Ordering::Relaxed,
        );
    }
    // The old interrupt controllers stay quiet.
    // SAFETY: the 8259s' mask registers.
    unsafe {
        Port::<u8>::new(0x21).write(0xff);
        Port::<u8>::new(0xa1).write(0xff);
    }
}

/// Turns this CPU's local APIC on.
pub(super) fn init() {
    // SAFETY: every CPU with an APIC has this register; x2APIC only where CPUID has it.
    unsafe {
        let base = cpu::rdmsr(APIC_BASE) | 1 << 11;
        cpu::wrmsr(APIC_BASE, base);
        if X2APIC.load(Ordering::Relaxed) {
            cpu::wrmsr(APIC_BASE, base | 1 << 10);
        }
    }
    write(TPR, 0);
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, 4 << 8); // NMI
    write(LVT_ERROR, MASKED);
    write(TIMER_DIVIDE, 3); // by 16
    write(LVT_TIMER, u32::from(VECTOR_TIMER));
    write(SPURIOUS, 1 << 8 | u32::from(VECTOR_SPURIOUS));
}

/// This CPU's APIC id.
pub(super) fn id() -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        read(ID)
    } else {
        read(ID) >> 24
    }
}

/// Acknowledges the interrupt being served.
#[inline]
pub(super) fn eoi() {
    write(EOI, 0);
}

fn command(apic_id: u32, low: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // Earlier stores must be visible first; the MSR write does not order them.
        // SAFETY: x2APIC is on.
        unsafe {
            core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
            cpu::wrmsr(
                X2APIC_MSRS + ICR_LOW / 16,
                u64::from(apic_id) << 32 | u64::from(low),
            );
        }
    } else {
        // The two halves belong together: no interrupt that sends one itself in between.
        let on = super::irq_save();
        write(ICR_HIGH, apic_id << 24);
        write(ICR_LOW, low);
        while read(ICR_LOW) & 1 << 12 != 0 {
            core::hint::spin_loop();
        }
        super::irq_restore(on);
    }
}

pub(super) fn send(apic_id: u32, vector: u8) {
    command(apic_id, 1 << 14 | u32::from(vector));
}

pub(super) fn send_nmi(apic_id: u32) {
    command(apic_id, 1 << 14 | 4 << 8);
}

pub(super) fn send_init(apic_id: u32) {
    command(apic_id, 1 << 14 | 5 << 8);
}

pub(super) fn send_startup(apic_id: u32, page: u8) {
    command(apic_id, 1 << 14 | 6 << 8 | u32::from(page));
}

/// Starts the count-down of the one-shot timer; 0 stops it.
#[inline]
pub(super) fn timer_start(count: u32) {
    write(TIMER_INITIAL, count);
}

pub(super) fn timer_masked(masked: bool) {
    write(
        LVT_TIMER,
        u32::from(VECTOR_TIMER) | if masked { MASKED } else { 0 },
    );
}

pub(super) fn timer_current() -> u32 {
    read(TIMER_CURRENT)
}

/// The I/O APIC that has the ISA lines, and which input each line has.
struct IoApic {
    base: u64,
    gsi_base: u32,
}

static IOAPIC: IrqLock<Option<IoApic>> = IrqLock::new(None);
/// Input of ISA lines 0 to 15, with the polarity and trigger flags of the MADT in bits 16 up.
static ISA: [AtomicU32; 16] = [const { AtomicU32::new(u32::MAX) }; 16];

/// Takes an I/O APIC from the MADT; masks all its inputs.
pub(super) fn add_ioapic(address: u64, gsi_base: u32) {
    let mut slot = IOAPIC.lock();
    if gsi_base != 0 || slot.is_some() {
        return;
    }
    let io = IoApic {
        base: crate::memory::kspace::map_device(address, 4096, Caching::Off),
        gsi_base,
    };
    for i in 0..=io.last_input() {
        io.write(0x10 + 2 * i, MASKED);
    }
    *slot = Some(io);
}

/// Notes an interrupt source override of the MADT.
pub(super) fn override_isa(line: u8, gsi: u32, flags: u16) {
    if let Some(slot) = ISA.get(line as usize) {
        slot.store(gsi & 0xffff | u32::from(flags) << 16, Ordering::Relaxed);
    }
}

impl IoApic {
    fn last_input(&self) -> u32 {
        self.read(1) >> 16 & 0xff
    }

    fn read(&self, reg: u32) -> u32 {
        // SAFETY: the mapped register pair; the lock around it keeps select and data together.
        unsafe {
            (self.base as *mut u32).write_volatile(reg);
            ((self.base + 0x10) as *const u32).read_volatile()
        }
    }

    fn write(&self, reg: u32, v: u32) {
        // SAFETY: as `read`.
        unsafe {
            (self.base as *mut u32).write_volatile(reg);
            ((self.base + 0x10) as *mut u32).write_volatile(v);
        }
    }
}

/// What a PCI device's line is unless the firmware's tables say otherwise, in their words: low, and for as long as the device calls.
const PCI: u32 = 0xf;

/// Sends an ISA line to the boot CPU as `vector`.
pub(super) fn route_isa(line: u8, vector: u8) {
    route(line, 0, 0, vector);
}

/// Sends the line that the firmware gave a PCI device to `cpu` as `vector`. `None`: no I/O APIC of ours has it.
pub fn route_pci(line: u8, cpu: usize, vector: u8) -> Option<()> {
    route(line, PCI, cpu, vector)
}

fn route(line: u8, flags: u32, cpu: usize, vector: u8) -> Option<()> {
    let slot = IOAPIC.lock();
    let io = slot.as_ref()?;
    let known = ISA[line as usize & 15].load(Ordering::Relaxed);
    let (gsi, said) = match known {
        u32::MAX => (u32::from(line), 0),
        _ => (known & 0xffff, known >> 16),
    };
    // Polarity and trigger; 0 is as usual on that bus.
    let is = |at: u32| match said >> at & 3 {
        0 => flags >> at & 3 == 3,
        said => said == 3,
    };
    let low = if is(0) { 1 << 13 } else { 0 } | if is(2) { 1 << 15 } else { 0 };
    let input = gsi.checked_sub(io.gsi_base)?;
    if input > io.last_input() {
        return None;
    }
    io.write(0x11 + 2 * input, super::apic_id(cpu) << 24);
    io.write(0x10 + 2 * input, low | u32::from(vector));
    Some(())
}
