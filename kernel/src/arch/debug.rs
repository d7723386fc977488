//! Debug registers: four places that the CPU watches for the running thread.
//!
//! They hold user addresses only. What the kernel itself touches there on a thread's behalf traps, too, and is
//! ignored (`paranoid` in `trap.rs`).

use core::arch::asm;

/// Instruction at an address, writes, or reads and writes: two bits of the control word, and the length in two more.
const EXECUTE: u64 = 0;
const IO: u64 = 2;
/// Enable bits and kinds; what else the control word has is not for programs.
const CONTROL: u64 = 0xffff_03ff;
/// DR6 when nothing was hit.
pub const STATUS_CLEAR: u64 = 0xffff_0ff0;
/// DR6: which places were hit, and that a step was taken.
pub const HITS: u64 = 0xf;
pub const STEP: u64 = 1 << 14;

/// What a thread has watched.
#[derive(Clone, Copy, Debug)]
pub struct DebugRegs {
    pub places: [u64; 4],
    control: u64,
}

impl DebugRegs {
    pub const NONE: DebugRegs = DebugRegs {
        places: [0; 4],
        control: 0,
    };

    pub fn control(&self) -> u64 {
        self.control
    }

    /// Whether any place is watched.
    pub fn on(&self) -> bool {
        self.control & 0xff != 0
    }

    fn enabled(&self, n: usize) -> bool {
        self.control >> (2 * n) & 3 != 0
    }

    fn kind(&self, n: usize) -> (u64, u64) {
        let bits = self.control >> (16 + 4 * n);
        (bits & 3, bits >> 2 & 3)
    }

    /// The same with another control word or place; `None` if the CPU must not be told so.
    pub fn checked(mut self, places: [u64; 4], control: u64) -> Option<DebugRegs> {
        self.places = places;
        self.control = control & CONTROL;
        let good = (0..4).all(|n| {
            let (kind, len) = self.kind(n);
            let bytes = [1, 2, 8, 4][len as usize];
            let fits = self.places[n] < mm::USER_END && self.places[n] & (bytes - 1) == 0;
            let known = kind != IO && (kind != EXECUTE || len == 0);
            self.places[n] < mm::USER_END && (!self.enabled(n) || fits && known)
        });
        good.then_some(self)
    }

    /// Whether one of the places that `status` (DR6) names is an instruction, which has not run.
    pub fn hit_instruction(&self, status: u64) -> bool {
        (0..4).any(|n| status >> n & 1 != 0 && self.enabled(n) && self.kind(n).0 == EXECUTE)
    }

    /// Those of the places that `status` names which are watched.
    pub fn hits(&self, status: u64) -> u64 {
        (0..4)
            .filter(|&n| status >> n & 1 != 0 && self.enabled(n))
            .fold(0, |hits, n| hits | 1 << n)
    }
}

/// Makes this CPU watch.
pub fn load(d: &DebugRegs) {
    let [a, b, c, e] = d.places;
    // SAFETY: addresses and kinds passed `checked`: user addresses only.
    unsafe {
        asm!("mov dr7, {}", in(reg) 0x400_u64, options(nomem, nostack, preserves_flags));
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) a, in(reg) b, in(reg) c, in(reg) e,
            options(nomem, nostack, preserves_flags));
        asm!("mov dr7, {}", in(reg) d.control | 0x400, options(nomem, nostack, preserves_flags));
    }
}

/// Makes it watch nothing.
pub fn clear() {
    // SAFETY: nothing is watched any more.
    unsafe { asm!("mov dr7, {}", in(reg) 0x400_u64, options(nomem, nostack, preserves_flags)) };
}

/// What the last debug trap was (DR6), which is cleared.
pub fn take_status() -> u64 {
    let v: u64;
    // SAFETY: reading and resetting the debug status changes nothing else.
    unsafe {
        asm!("mov {}, dr6", out(reg) v, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) STATUS_CLEAR, options(nomem, nostack, preserves_flags));
    }
    v
}
