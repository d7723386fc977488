//! A read lock that a writer's *section* closes: the per-VMA lock's two words.
//!
//! It is closed while `closed` equals the number of the section that is under way; the end of the
//! section (a new number) opens all that it closed at once. Readers never wait: they count themselves,
//! look, and undo. The closer waits for those who are in.
//!
//! Reader: `readers += 1`, then look at `closed` and the section's number. Closer: `closed = number`, then
//! wait until `readers` is 0. This store-and-load crossing is SeqCst on both sides: either the closer
//! sees the reader and waits, or the reader sees it closed and undoes.

use super::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::hw::Cpu;

/// See the module. Its memory may be looked at by readers that come late, hence lives in type-stable slabs.
pub struct SectionLock {
    readers: AtomicU32,
    closed: AtomicU64,
}

impl Default for SectionLock {
    fn default() -> Self {
        Self::new()
    }
}

impl SectionLock {
    /// Open; section numbers begin at 1.
    pub const fn new() -> Self {
        Self {
            readers: AtomicU32::new(0),
            closed: AtomicU64::new(0),
        }
    }
    /// Goes in unless it is closed by the section whose number `section` holds.
    #[inline]
    pub fn enter(&self, section: &AtomicU64) -> bool {
        self.readers.fetch_add(1, Ordering::SeqCst);
        // Acquire: what the last section changed is seen by whoever sees that it is over.
        if self.closed.load(Ordering::SeqCst) == section.load(Ordering::Acquire) {
            self.leave();
            return false;
        }
        true
    }
    /// Comes out.
    #[inline]
    pub fn leave(&self) {
        self.readers.fetch_sub(1, Ordering::Release);
    }
    /// Whether section number `section` has closed it.
    #[inline]
    pub fn is_closed(&self, section: u64) -> bool {
        self.closed.load(Ordering::Relaxed) == section
    }
    /// Closes it for the section under way, and waits for those who are in. They never sleep inside.
    #[inline]
    pub fn close<H: Cpu>(&self, hw: H, section: u64) {
        if self.is_closed(section) {
            return;
        }
        self.closed.store(section, Ordering::SeqCst);
        while self.readers.load(Ordering::SeqCst) != 0 {
            hw.spin_hint();
        }
    }
}
