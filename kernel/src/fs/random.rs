//! Random bytes: ChaCha20 keyed from the hardware's generator and the clock, with fast key erasure.
//!
//! A key makes one batch of bytes: the first of them are the next key, the rest is handed out and erased as it
//! goes, so bytes handed out cannot be computed from a later state. Small requests thus share a batch. One
//! generator for each CPU would be faster; one under a spin lock is enough for programs that ask at their start.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use spin::Mutex as Spin;

/// What the cipher makes at once: four blocks.
const BATCH: usize = 256;
const KEY: usize = 32;

struct State {
    bytes: [u8; BATCH],
    /// Handed out so far; the key comes first and never is.
    used: usize,
}

static STATE: Spin<Option<State>> = Spin::new(None);

impl State {
    fn refill(&mut self) {
        let mut key = [0u8; KEY];
        key.copy_from_slice(&self.bytes[..KEY]);
        ChaCha20Rng::from_seed(key).fill_bytes(&mut self.bytes);
        self.used = KEY;
    }
}

/// Fills `out` with random bytes.
pub fn fill(mut out: &mut [u8]) {
    let mut state = STATE.lock();
    let s = state.get_or_insert_with(|| {
        let mut bytes = [0u8; BATCH];
        bytes[..KEY].copy_from_slice(&seed());
        State { bytes, used: BATCH }
    });
    while !out.is_empty() {
        if s.used == BATCH {
            s.refill();
        }
        let n = out.len().min(BATCH - s.used);
        let (now, rest) = out.split_at_mut(n);
        let from = &mut s.bytes[s.used..s.used + n];
        now.copy_from_slice(from);
        from.fill(0);
        s.used += n;
        out = rest;
    }
}

/// 32 bytes from RDRAND where the CPU has it, mixed with the cycle counter either way.
fn seed() -> [u8; 32] {
    let mut seed = [0u8; 32];
    let has_rdrand = core::arch::x86_64::__cpuid(1).ecx & 1 << 30 != 0;
    for word in seed.chunks_exact_mut(8) {
        let mut v = rdtsc().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if has_rdrand {
            for _ in 0..10 {
                if let Some(r) = rdrand() {
                    v ^= r;
                    break;
                }
            }
        }
        word.copy_from_slice(&v.to_le_bytes());
    }
    let wall = crate::arch::time::realtime_offset_ns().to_le_bytes();
    seed.iter_mut().zip(wall).for_each(|(s, w)| *s ^= w);
    seed
}

fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has it and the kernel may use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn rdrand() -> Option<u64> {
    let (value, ok): (u64, u8);
    // SAFETY: the caller checked CPUID; the instruction touches registers and flags only.
    unsafe {
        core::arch::asm!("rdrand {v}", "setc {ok}", v = out(reg) value, ok = out(reg_byte) ok, options(nomem, nostack));
    }
    (ok != 0).then_some(value)
}
