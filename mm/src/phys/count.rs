//! All the counting: references, pins and mappings.
//!
//! A reference keeps a frame from being freed. A pin is a reference that also says "its bytes are in
//! use by a device": 1024 references on a small folio, an exact count beside one reference on a large
//! one. `maybe_pinned` may err towards yes (a thousand plain references look like a pin), never towards
//! no. The exact count of a large folio only adds to what the references say: it is raised after them and lowered
//! before them. A mapping count says how many page-table entries point here; each of those also holds a reference.
//! A lock count says how many of them do so in a VMA that is locked in memory.

use super::frame::{FrameDesc, flag};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

/// What one pin adds to a small folio's references (PIN-1).
pub const PIN_BIAS: i32 = 1024;
/// No count is raised past this: it can still be lowered, and never wraps (PIN-21).
const CEILING: i32 = i32::MAX / 2;

impl FrameDesc {
    /// One more, from somebody who holds one.
    #[inline]
    pub fn get(&self) {
        self.refs.fetch_add(1, Relaxed);
    }
    /// `n` more, from somebody who holds one; `false` and nothing if the count is close to its limit.
    #[inline]
    pub fn get_checked(&self, n: i32) -> bool {
        // SeqCst: a pin counts first and then looks whether the page is shared (`Folio::try_share`).
        let old = self.refs.fetch_add(n, SeqCst);
        if old <= 0 || old > CEILING - n {
            self.refs.fetch_sub(n, Relaxed);
            return false;
        }
        true
    }
    /// One more, unless there is none: for those who found the frame without holding it.
    #[inline]
    pub fn try_get(&self) -> bool {
        let mut r = self.refs.load(Relaxed);
        loop {
            if r <= 0 || r >= CEILING {
                return false;
            }
            match self.refs.compare_exchange_weak(r, r + 1, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) => r = now,
            }
        }
    }
    /// `n` more, unless there is none or the count is close to its limit: for those who found the frame
    /// without holding it, and look afterwards whether it still is what they found (PIN-3).
    #[inline(always)]
    pub fn try_get_many(&self, n: i32) -> bool {
        let mut r = self.refs.load(Relaxed);
        loop {
            // One comparison for both ends: none is very many less one.
            if (r as u32).wrapping_sub(1) >= (CEILING - n) as u32 {
                return false;
            }
            // SeqCst: as in `get_checked`.
            match self.refs.compare_exchange_weak(r, r + n, SeqCst, Relaxed) {
                Ok(_) => return true,
                Err(now) => r = now,
            }
        }
    }
    /// `n` fewer; `true` if those were the last, and the caller frees.
    #[inline]
    #[must_use]
    pub fn put_is_last(&self, n: i32) -> bool {
        let old = self.refs.fetch_sub(n, AcqRel);
        debug_assert!(old >= n, "reference count underflow: {old} - {n}");
        old == n
    }
    /// If there is one reference, the caller's, nobody else gets one until [`Self::thaw`].
    #[inline]
    pub(crate) fn freeze(&self) -> bool {
        self.refs.compare_exchange(1, 0, SeqCst, Relaxed).is_ok()
    }
    /// Ends [`Self::freeze`].
    #[inline]
    pub(crate) fn thaw(&self) {
        self.refs.store(1, Release);
    }
    /// References now.
    #[inline]
    pub fn ref_count(&self) -> i32 {
        self.refs.load(Acquire)
    }

    /// `n` pins, from somebody who holds a reference or the table lock; `false` and nothing near the limit. The head of a
    /// large folio counts them beside `n` references, a small one as `n * PIN_BIAS` of them.
    #[inline]
    pub fn pin(&self, n: i32) -> bool {
        if !self.has(flag::HEAD) {
            let refs = n.checked_mul(PIN_BIAS);
            return refs.is_some_and(|refs| self.get_checked(refs));
        }
        let held = self.get_checked(n);
        if held {
            // SeqCst: as in `get_checked`.
            self.pins.fetch_add(n, SeqCst);
        }
        held
    }
    /// Takes `n` pins back; `true` if the references went with them, and the caller frees (PIN-6). `n` pages
    /// at most as many as were pinned.
    #[inline]
    #[must_use]
    pub fn unpin_is_last(&self, n: i32) -> bool {
        if self.has(flag::HEAD) {
            let old = self.pins.fetch_sub(n, SeqCst);
            debug_assert!(old >= n, "pin count underflow: {old} - {n}");
            return self.put_is_last(n);
        }
        self.put_is_last(n * PIN_BIAS)
    }
    /// Whether a pin may exist on this folio (PIN-1, PIN-2).
    #[inline]
    pub fn maybe_pinned(&self) -> bool {
        if self.has(flag::HEAD) {
            self.pins.load(SeqCst) > 0
        } else {
            self.refs.load(SeqCst) >= PIN_BIAS
        }
    }

    /// One more mapping entry.
    #[inline]
    pub fn map_inc(&self) {
        // SeqCst: a page-cache page's mapper counts and then looks at the owner, its remover the other way
        // round (object/cache.rs, rule 3).
        self.maps.fetch_add(1, SeqCst);
    }
    /// One fewer mapping entry; returns how many are left.
    #[inline]
    pub fn map_dec(&self) -> i32 {
        let old = self.maps.fetch_sub(1, Release);
        debug_assert!(old > 0, "mapping count underflow");
        old - 1
    }
    /// One more entry that locks the page in memory; `true` if it is the first. Under the entry's table lock,
    /// which the entry's MLOCKED bit is set under.
    #[inline]
    pub(super) fn mlock_inc(&self) -> bool {
        // SeqCst, as `mlock_dec`: see `lru::add`.
        self.lock.fetch_add(1, SeqCst) == 0
    }
    /// One fewer; `true` if it was the last.
    #[inline]
    pub(super) fn mlock_dec(&self) -> bool {
        let old = self.lock.fetch_sub(1, SeqCst);
        debug_assert!(
            old > 0 || self.has(flag::RESERVED),
            "more entries unlock a page than locked it"
        );
        old == 1
    }
    /// Entries that lock it now.
    #[inline]
    pub fn mlock_count(&self) -> u32 {
        self.lock.load(SeqCst)
    }
    /// Mapping entries now.
    #[inline]
    pub fn map_count(&self) -> i32 {
        self.maps.load(SeqCst)
    }
}
