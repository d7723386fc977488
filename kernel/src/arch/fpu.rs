//! Extended state (x87, SSE, AVX) of each thread, in XSAVE's standard format; FXSAVE on a CPU without it.
//!
//! The kernel uses none of these registers, so they are the running thread's until a switch saves them. One of them
//! is PKRU, what the thread may do with each protection key: it holds for the kernel's copies from and to user memory
//! as well. In the area it stands alone, far behind the others.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mm::Errno;

use super::cpu;

/// x87, SSE, AVX, PKRU: what threads may have.
const WANTED: u64 = 0b111 | 1 << 9;
const LEGACY: usize = 512;
const HEADER: usize = 64;
/// Bytes of the legacy part that the CPU does not use.
const SOFTWARE: usize = 464;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const MXCSR_INIT: u32 = 0x1f80;
const FCW_INIT: u16 = 0x37f;

static SIZE: AtomicU32 = AtomicU32::new(LEGACY as u32);
/// Keys of their own give nobody access until their owner says so.
const PKRU_INIT: u32 = 0x5555_5554;
/// PKRU in XCR0 and in the header of an area.
pub const PKRU_BIT: u64 = 1 << 9;

/// Bytes up to the end of AVX.
static FRONT: AtomicU32 = AtomicU32::new(LEGACY as u32);
/// Where PKRU is; 0: there are no keys.
static PKRU_AT: AtomicU32 = AtomicU32::new(0);
static FEATURES: AtomicU64 = AtomicU64::new(0);
/// MXCSR bits this CPU has.
static MASK: AtomicU32 = AtomicU32::new(0xffbf);

/// One thread's registers; 64-byte aligned.
pub struct FpuState {
    area: *mut u8,
}

/// Sets XCR0 and clean registers on this CPU.
pub(super) fn init_cpu() {
    let f = cpu::features();
    if f.xsave() {
        let leaf = __cpuid_count(0xd, 0);
        let mut features = (u64::from(leaf.edx) << 32 | u64::from(leaf.eax)) & WANTED;
        if !f.pku() {
            features &= !PKRU_BIT;
        }
        // SAFETY: CR4.OSXSAVE is set; the bits are those that CPUID offers.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") features as u32, in("edx") (features >> 32) as u32,
                options(nostack, preserves_flags));
        }
        FEATURES.store(features, Ordering::Relaxed);
        SIZE.store(__cpuid_count(0xd, 0).ebx, Ordering::Relaxed);
        let avx = __cpuid_count(0xd, 2);
        let front = match features & 4 {
            0 => (LEGACY + HEADER) as u32,
            _ => avx.ebx + avx.eax,
        };
        FRONT.store(front, Ordering::Relaxed);
        if features & PKRU_BIT != 0 {
            PKRU_AT.store(__cpuid_count(0xd, 9).ebx, Ordering::Relaxed);
        }
    }
    let mut area = Area([0; LEGACY]);
    // SAFETY: `area` is 64-byte aligned and 512 bytes long.
    unsafe {
        asm!("fninit", "fxsave64 [{}]", in(reg) &raw mut area, options(nostack));
        asm!("ldmxcsr [{}]", in(reg) &MXCSR_INIT, options(nostack, readonly));
    }
    let mask = u32::from_le_bytes([
        area.0[MXCSR_MASK],
        area.0[MXCSR_MASK + 1],
        area.0[MXCSR_MASK + 2],
        area.0[MXCSR_MASK + 3],
    ]);
    if mask != 0 {
        MASK.store(mask, Ordering::Relaxed);
    }
}

#[repr(align(64))]
struct Area([u8; LEGACY]);

fn layout() -> Layout {
    Layout::from_size_align(FpuState::size(), 64).expect("XSAVE area")
}

impl FpuState {
    /// Initial state.
    pub fn new() -> Option<Self> {
        // SAFETY: the layout is not empty.
        let area = unsafe { alloc_zeroed(layout()) };
        if area.is_null() {
            return None;
        }
        let mut state = FpuState { area };
        state.set_initial();
        Some(state)
    }

    /// A copy, for fork.
    pub fn try_clone(&self) -> Option<Self> {
        // SAFETY: the layout is not empty.
        let area = unsafe { alloc::alloc::alloc(layout()) };
        if area.is_null() {
            return None;
        }
        // SAFETY: both areas have this size.
        unsafe { area.copy_from_nonoverlapping(self.area, Self::size()) };
        Some(FpuState { area })
    }

    /// Back to the initial state.
    pub fn reset(&mut self) {
        // SAFETY: our area.
        unsafe { self.area.write_bytes(0, Self::front()) };
        self.set_initial();
    }

    /// With the header's feature bits zero XRSTOR loads initial values, all but MXCSR. PKRU's would be 0, which
    /// allows everything.
    fn set_initial(&mut self) {
        // SAFETY: inside our area.
        unsafe {
            self.area.cast::<u16>().write(FCW_INIT);
            self.area.add(MXCSR).cast::<u32>().write(MXCSR_INIT);
            if let Some(at) = Self::pkru_at() {
                self.area.add(LEGACY).cast::<u64>().write(PKRU_BIT);
                self.area.add(at).cast::<u64>().write(PKRU_INIT.into());
            }
        }
    }

    /// Bytes in use at the area's front: all but PKRU.
    pub fn front() -> usize {
        FRONT.load(Ordering::Relaxed) as usize
    }

    /// Where the eight bytes of PKRU are, if there are keys.
    #[inline]
    pub fn pkru_at() -> Option<usize> {
        match PKRU_AT.load(Ordering::Relaxed) {
            0 => None,
            at => Some(at as usize),
        }
    }

    /// Bytes of the area on this machine.
    pub fn size() -> usize {
        SIZE.load(Ordering::Relaxed) as usize
    }

    /// The area as XSAVE left it; for signal frames.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: our area, initialised by `new` or `try_clone`.
        unsafe { core::slice::from_raw_parts(self.area, Self::size()) }
    }

    /// The area as a tracer and a core file see it: what is in its initial state is filled in, and the enabled
    /// features stand in the bytes that the CPU leaves to software.
    pub fn show(&self, out: &mut [u8]) {
        let from = self.bytes();
        out[..from.len()].copy_from_slice(from);
        if from.len() == LEGACY {
            return;
        }
        let have = u64::from_le_bytes(out[LEGACY..LEGACY + 8].try_into().unwrap());
        if have & 1 == 0 {
            out[..MXCSR].fill(0);
            out[..2].copy_from_slice(&FCW_INIT.to_le_bytes());
            out[32..160].fill(0);
        }
        if have & 2 == 0 {
            out[160..SOFTWARE].fill(0);
        }
        if have & 4 == 0 {
            // AVX's place in the standard format.
            out[LEGACY + HEADER..].fill(0);
        }
        out[SOFTWARE..LEGACY].fill(0);
        out[SOFTWARE..SOFTWARE + 8].copy_from_slice(&xfeatures().to_le_bytes());
    }

    /// Takes back what `show` gave and a tracer has changed; with `legacy` its first 512 bytes count whatever the
    /// header says.
    pub fn load_shown(&mut self, bytes: &mut [u8], legacy: bool) -> Result<(), Errno> {
        bytes[SOFTWARE..LEGACY].fill(0);
        if legacy && bytes.len() > LEGACY {
            bytes[LEGACY] |= 3;
        }
        self.load_from(bytes)
    }

    /// Takes an area from user memory; refuses what XRSTOR would fault on. A 512-byte area is x87 and SSE only.
    pub fn load_from(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let size = Self::size();
        if bytes.len() < LEGACY {
            return Err(Errno::EINVAL);
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let mxcsr = word(MXCSR) as u32;
        if mxcsr & !MASK.load(Ordering::Relaxed) != 0 {
            return Err(Errno::EINVAL);
        }
        let whole = size > LEGACY && bytes.len() >= size;
        if whole {
            let known = word(LEGACY) & !FEATURES.load(Ordering::Relaxed) == 0;
            if !known || (8..HEADER).step_by(8).any(|at| word(LEGACY + at) != 0) {
                return Err(Errno::EINVAL);
            }
        }
        let front = Self::front();
        let take = if whole { front } else { LEGACY };
        // SAFETY: our area has `size` bytes; what is in use of them comes from `bytes` or is zeroed.
        unsafe {
            self.area.copy_from_nonoverlapping(bytes.as_ptr(), take);
            self.area.add(take).write_bytes(0, front - take);
            if let Some(at) = Self::pkru_at()
                && whole
            {
                self.area
                    .add(at)
                    .copy_from_nonoverlapping(bytes.as_ptr().add(at), 8);
            }
            if !whole && size > LEGACY {
                // x87 and SSE are in the legacy part.
                self.area.add(LEGACY).cast::<u64>().write(3);
            }
        }
        Ok(())
    }
}

impl Drop for FpuState {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.area, layout()) };
    }
}

// SAFETY: the area is owned.
unsafe impl Send for FpuState {}
// SAFETY: changed through `&mut` only.
unsafe impl Sync for FpuState {}

/// The enabled features (XCR0), for signal frames.
pub fn xfeatures() -> u64 {
    FEATURES.load(Ordering::Relaxed)
}

/// The CPU's registers into `st`.
#[inline]
pub fn save(st: &mut FpuState) {
    let f = cpu::features();
    // SAFETY: the area is aligned and as large as XCR0 makes it.
    unsafe {
        if f.xsaveopt() {
            asm!("xsaveopt64 [{}]", in(reg) st.area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
        } else if f.xsave() {
            asm!("xsave64 [{}]", in(reg) st.area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
        } else {
            asm!("fxsave64 [{}]", in(reg) st.area, options(nostack));
        }
    }
}

/// `st` into the CPU's registers.
#[inline]
pub fn restore(st: &FpuState) {
    // SAFETY: the area holds what XSAVE wrote or `load_from` accepted.
    unsafe {
        if cpu::features().xsave() {
            asm!("xrstor64 [{}]", in(reg) st.area, in("eax") u32::MAX, in("edx") u32::MAX,
                options(nostack, readonly));
        } else {
            asm!("fxrstor64 [{}]", in(reg) st.area, options(nostack, readonly));
        }
    }
}

/// What the running thread may do with each key: bit 2n refuses data of key n, the next one writes. There are keys.
#[inline]
pub fn pkru() -> u32 {
    let v: u32;
    // SAFETY: CR4.PKE is set (`pkru_at`).
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") v, out("edx") _, options(nomem, nostack, preserves_flags))
    };
    v
}

/// Sets it; a switch saves it with the other registers. There are keys.
#[inline]
pub fn set_pkru(v: u32) {
    // SAFETY: CR4.PKE is set (`pkru_at`); it says what user memory may be touched, not what is done with it.
    unsafe {
        asm!("wrpkru", in("ecx") 0, in("eax") v, in("edx") 0, options(nostack, preserves_flags))
    };
}
