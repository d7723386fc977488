//! A sequence counter: odd while a writer is inside. Readers compare; writers exclude each other elsewhere.

use super::atomic::{AtomicU32, Ordering, fence};

/// See the module.
#[derive(Debug, Default)]
pub struct SeqCount(AtomicU32);

impl SeqCount {
    /// Even: no writer.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }
    /// The value to hand to [`Self::changed`]; odd while a writer is inside.
    #[inline]
    pub fn read(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
    /// Whether a writer was or is inside since `seen`.
    #[inline]
    pub fn changed(&self, seen: u32) -> bool {
        fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed) != seen
    }
    /// The only writer enters. Full barrier: what it does next is seen after the counter is odd.
    #[inline]
    pub fn begin(&self) {
        let v = self.0.load(Ordering::Relaxed);
        self.0.store(v.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
    /// The writer leaves.
    #[inline]
    pub fn end(&self) {
        let v = self.0.load(Ordering::Relaxed);
        self.0.store(v.wrapping_add(1), Ordering::Release);
    }
}
