//! Cells that only one thread changes.

use core::cell::UnsafeCell;

/// A value that only its owner (the thread it belongs to, while running) touches, or whoever holds
/// the lock that the field's comment names. The accessors are unsafe for that reason.
pub struct Own<T>(UnsafeCell<T>);

// SAFETY: every access goes through `get`, whose caller vouches for exclusiveness.
unsafe impl<T: Send> Sync for Own<T> {}
// SAFETY: as for the value itself.
unsafe impl<T: Send> Send for Own<T> {}

impl<T> Own<T> {
    pub const fn new(value: T) -> Self {
        Own(UnsafeCell::new(value))
    }

    /// The value.
    ///
    /// # Safety
    /// The caller is the owner (or holds the named lock) and keeps no other reference to it.
    #[expect(clippy::mut_from_ref, reason = "exclusiveness is the caller's promise")]
    #[inline(always)]
    pub unsafe fn get(&self) -> &mut T {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.0.get() }
    }

    /// Where the value is.
    #[inline(always)]
    pub fn ptr(&self) -> *mut T {
        self.0.get()
    }
}
