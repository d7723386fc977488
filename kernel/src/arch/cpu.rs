//! Registers of the CPU and what CPUID says it has.
//!
//! Protections (DESIGN 1.8): NX, write protection in ring 0, SMEP, SMAP, UMIP, global pages; each is
//! turned on where CPUID has it. STAC and CLAC would be invalid instructions without SMAP, so the code
//! holds 3-byte NOPs at the sites listed in `.smap_sites`, patched once at boot.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU64, Ordering};

const PAT: u32 = 0x277;
/// Kinds of caching by number, as Linux has them and `mm::table::Caching` says: write-back, write-combining, off unless an MTRR combines,
/// off; then, with the PAT bit, write-back, write-protected, and the last two with write-through.
const CACHING: u64 = 0x0407_0506_0007_0106;
pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// # Safety
/// `msr` exists.
#[inline(always)]
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") lo, out("edx") hi, options(nostack, preserves_flags))
    };
    u64::from(hi) << 32 | u64::from(lo)
}

/// # Safety
/// `msr` exists, takes `v`, and the kernel survives it.
#[inline(always)]
pub unsafe fn wrmsr(msr: u32, v: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") v as u32, in("edx") (v >> 32) as u32, options(nostack, preserves_flags))
    };
}

/// How many bits a physical address has.
pub fn physical_bits() -> u32 {
    if __cpuid_count(0x8000_0000, 0).eax < 0x8000_0008 {
        return 36;
    }
    __cpuid_count(0x8000_0008, 0).eax & 0xff
}

#[inline(always)]
pub fn cr2() -> u64 {
    let v: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

#[inline(always)]
pub fn cr3() -> u64 {
    let v: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// # Safety
/// `v` is a root whose kernel half is the kernel's.
#[inline(always)]
pub unsafe fn set_cr3(v: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) v, options(nostack, preserves_flags)) };
}

#[inline(always)]
pub fn invlpg(va: u64) {
    // SAFETY: forgets a translation, which changes nothing but time.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// The cache line at `va` is in memory, too, before anything that follows: for who does not look into caches.
#[inline(always)]
pub fn clflush(va: u64) {
    // SAFETY: writes back and forgets a line, which changes nothing but time; every x86-64 CPU has both.
    unsafe { asm!("clflush [{}]", "mfence", in(reg) va, options(nostack, preserves_flags)) };
}

#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has it, and CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Turns interrupts off; true when they were on.
#[inline(always)]
pub fn irq_save() -> bool {
    let on = irqs_on();
    irq_disable();
    on
}

/// Turns interrupts on again if they were.
#[inline(always)]
pub fn irq_restore(was_on: bool) {
    if was_on {
        irq_enable();
    }
}

/// Whether interrupts are on.
#[inline(always)]
pub fn irqs_on() -> bool {
    let flags: u64;
    // SAFETY: reads the flags over the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem, preserves_flags)) };
    flags & 0x200 != 0
}

#[inline(always)]
pub fn irq_enable() {
    // SAFETY: interrupt handlers take only what `IrqLock` protects.
    unsafe { asm!("sti", options(nostack, preserves_flags)) };
}

#[inline(always)]
pub fn irq_disable() {
    // SAFETY: harmless.
    unsafe { asm!("cli", options(nostack, preserves_flags)) };
}

/// `sti; hlt`: no interrupt can slip in between. Interrupts are on afterwards.
#[inline]
pub fn halt_until_interrupt() {
    // SAFETY: as `irq_enable`.
    unsafe { asm!("sti", "hlt", options(nostack, preserves_flags)) };
}

/// What this CPU can do; the same on every CPU of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Features(u64);

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:expr, $leaf:expr, $sub:expr, $reg:ident, $at:expr;)*) => {
        impl Features {
            $($(#[$doc])* pub fn $name(self) -> bool { self.0 & (1 << $bit) != 0 })*
        }
        fn detect() -> u64 {
            let max = __cpuid_count(0, 0).eax;
            let ext = __cpuid_count(0x8000_0000, 0).eax;
            let mut found = 1 << 63;
            $(
                let there = if $leaf >= 0x8000_0000u32 { ext >= $leaf } else { max >= $leaf };
                if there && __cpuid_count($leaf, $sub).$reg & (1 << $at) != 0 {
                    found |= 1 << $bit;
                }
            )*
            found
        }
    };
}

features! {
    pge = 0, 1, 0, edx, 13;
    xsave = 1, 1, 0, ecx, 26;
    avx = 2, 1, 0, ecx, 28;
    x2apic = 3, 1, 0, ecx, 21;
    pcid = 4, 1, 0, ecx, 17;
    tsc_deadline = 5, 1, 0, ecx, 24;
    fsgsbase = 6, 7, 0, ebx, 0;
    smep = 7, 7, 0, ebx, 7;
    smap = 8, 7, 0, ebx, 20;
    invpcid = 9, 7, 0, ebx, 10;
    umip = 10, 7, 0, ecx, 2;
    xsaveopt = 11, 0xd, 1, eax, 0;
    nx = 12, 0x8000_0001, 0, edx, 20;
    gib_pages = 13, 0x8000_0001, 0, edx, 26;
    rdtscp = 14, 0x8000_0001, 0, edx, 27;
    erms = 15, 7, 0, ebx, 9;
    pku = 16, 7, 0, ecx, 3;
    pat = 17, 1, 0, edx, 16;
}

static FEATURES: AtomicU64 = AtomicU64::new(0);

/// What the CPU can do.
pub fn features() -> Features {
    let f = FEATURES.load(Ordering::Relaxed);
    if f != 0 {
        return Features(f);
    }
    let f = detect();
    FEATURES.store(f, Ordering::Relaxed);
    Features(f)
}

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR4_PGE: u64 = 1 << 7;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_PCIDE: u64 = 1 << 17;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR4_PKE: u64 = 1 << 22;

/// Sets the control registers of this CPU: every protection that it has.
pub(super) fn init() {
    let f = features();
    assert!(f.nx(), "the CPU lacks NX");
    let mut cr4: u64;
    let mut cr0: u64;
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, cr4", "mov {}, cr0", out(reg) cr4, out(reg) cr0, options(nomem, nostack));
    }
    cr0 = (cr0 | CR0_MP | CR0_NE | CR0_WP | CR0_AM) & !(CR0_EM | CR0_TS);
    cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT;
    for (has, bit) in [
        (f.pge(), CR4_PGE),
        (f.umip(), CR4_UMIP),
        (f.fsgsbase(), CR4_FSGSBASE),
        (f.xsave(), CR4_OSXSAVE),
        (f.smep(), CR4_SMEP),
        (f.smap(), CR4_SMAP),
        // Threads keep their rights in XSAVE state.
        (f.pku() && f.xsave(), CR4_PKE),
    ] {
        if has {
            cr4 |= bit;
        }
    }
    cr4 &= !CR4_PCIDE;
    if f.pat() {
        // SAFETY: the MSR is there; the entries that change are those that no mapping uses yet.
        unsafe { wrmsr(PAT, CACHING) };
    }
    // SAFETY: bits that CPUID has; the kernel's text is read-only and its user accesses are in `uaccess`.
    unsafe {
        asm!("mov cr0, {}", "mov cr4, {}", in(reg) cr0, in(reg) cr4, options(nostack));
        wrmsr(EFER, rdmsr(EFER) | 1 | 1 << 11);
    }
}

unsafe extern "C" {
    static __smap_sites_start: u64;
    static __smap_sites_end: u64;
}

/// Puts STAC and CLAC in place of the NOPs. Boot CPU, before the first user access.
pub(super) fn patch_smap_sites() {
    if !features().smap() {
        return;
    }
    let (mut at, end) = (&raw const __smap_sites_start, &raw const __smap_sites_end);
    while at < end {
        // SAFETY: the linker script delimits (address, kind) pairs that `entry.rs` and `uaccess.rs` wrote;
        // the bytes are changed through the direct map, nobody runs them yet.
        unsafe {
            let (site, stac) = (*at, *at.add(1) != 0);
            let code = [0x0f, 0x01, if stac { 0xcb } else { 0xca }];
            for (i, byte) in code.into_iter().enumerate() {
                let pa = crate::memory::kspace::translate(site + i as u64).expect("text is mapped");
                (crate::memory::direct(pa) as *mut u8).write(byte);
            }
            at = at.add(2);
        }
    }
}

/// User FS base (TLS).
#[inline]
pub fn set_fs_base(v: u64) {
    // SAFETY: the kernel does not use FS; FSGSBASE as `init` set it.
    unsafe {
        if features().fsgsbase() {
            asm!("wrfsbase {}", in(reg) v, options(nostack, preserves_flags));
        } else {
            wrmsr(FS_BASE, v);
        }
    }
}

#[inline]
pub fn fs_base() -> u64 {
    // SAFETY: as `set_fs_base`.
    unsafe {
        if features().fsgsbase() {
            let v: u64;
            asm!("rdfsbase {}", out(reg) v, options(nostack, preserves_flags));
            v
        } else {
            rdmsr(FS_BASE)
        }
    }
}

/// The program's GS base; it waits in KERNEL_GS_BASE while the kernel runs.
#[inline]
pub fn set_user_gs_base(v: u64) {
    // SAFETY: only user mode sees it; a non-canonical value would fault, so it is cut.
    unsafe { wrmsr(KERNEL_GS_BASE, ((v << 16) as i64 >> 16) as u64) };
}

#[inline]
pub fn user_gs_base() -> u64 {
    // SAFETY: the register exists.
    unsafe { rdmsr(KERNEL_GS_BASE) }
}
