//! Protection keys of a space: which are handed out, and which one execute-only memory has.
//!
//! Changed under the mmap lock for writing. Key 0 is everybody's from the start. What a key allows is not ours to
//! say: each thread has a register for that ([`Cpu::pkey_allows`](crate::hw::Cpu::pkey_allows)).

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Keys of a CPU that has them.
const KEYS: u32 = 16;
const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Debug)]
pub struct Keys {
    given: AtomicU32,
    exec_only: AtomicU32,
}

impl Keys {
    pub(super) const fn new() -> Self {
        Self {
            given: AtomicU32::new(1),
            exec_only: AtomicU32::new(NONE),
        }
    }
    /// A child's, at its birth.
    pub(super) fn copy(&self, from: &Self) {
        self.given.store(from.given.load(Relaxed), Relaxed);
        self.exec_only.store(from.exec_only.load(Relaxed), Relaxed);
    }
    /// Whether a program may name the key: given out and not execute-only memory's.
    pub(crate) fn is_given(&self, key: i32) -> bool {
        u32::try_from(key).is_ok_and(|k| {
            k < KEYS && self.given.load(Relaxed) & 1 << k != 0 && !self.is_exec_only(k)
        })
    }
    /// Whether it is execute-only memory's.
    #[inline]
    pub(crate) fn is_exec_only(&self, key: u32) -> bool {
        self.exec_only.load(Relaxed) == key
    }
    /// The lowest that is free.
    pub(crate) fn take(&self) -> Option<u32> {
        let given = self.given.load(Relaxed);
        let key = (!given).trailing_zeros();
        if key >= KEYS {
            return None;
        }
        self.given.store(given | 1 << key, Relaxed);
        Some(key)
    }
    /// One that [`Keys::is_given`].
    pub(crate) fn give_back(&self, key: u32) {
        self.given
            .store(self.given.load(Relaxed) & !(1 << key), Relaxed);
    }
    /// The key of execute-only memory, taken now if there is none yet.
    pub(crate) fn exec_only(&self) -> Option<u32> {
        let key = match self.exec_only.load(Relaxed) {
            NONE => self.take()?,
            key => key,
        };
        self.exec_only.store(key, Relaxed);
        Some(key)
    }
}
