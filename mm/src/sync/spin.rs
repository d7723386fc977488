//! The spin lock of mm: interrupts stay on, so its holder acknowledges shootdowns; no interrupt
//! handler may take one.

use super::Class;
use super::atomic::{AtomicBool, Ordering};
use super::lockdep;
use crate::hw::Cpu;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// Data behind a spin lock.
pub struct SpinLock<T> {
    held: AtomicBool,
    class: Class,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out `&mut T` to one holder at a time (`held`), so sharing the lock needs T: Send.
unsafe impl<T: Send> Sync for SpinLock<T> {}
// SAFETY: owning the lock is owning the value.
unsafe impl<T: Send> Send for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock of the given class.
    pub const fn new(class: Class, value: T) -> Self {
        Self {
            held: AtomicBool::new(false),
            class,
            value: UnsafeCell::new(value),
        }
    }
    /// Spins until it is ours.
    #[inline]
    #[cfg_attr(feature = "lockdep", track_caller)]
    pub fn lock<H: Cpu>(&self, hw: H) -> SpinGuard<'_, T, H> {
        lockdep::acquire(hw, self.class);
        while self.held.swap(true, Ordering::Acquire) {
            while self.held.load(Ordering::Relaxed) {
                hw.spin_hint();
            }
        }
        SpinGuard { lock: self, hw }
    }
    /// Ours, or `None` if somebody has it.
    #[inline]
    #[cfg_attr(feature = "lockdep", track_caller)]
    pub fn try_lock<H: Cpu>(&self, hw: H) -> Option<SpinGuard<'_, T, H>> {
        if self.held.swap(true, Ordering::Acquire) {
            return None;
        }
        lockdep::acquired_at_once(hw, self.class);
        Some(SpinGuard { lock: self, hw })
    }
    /// The class given at construction.
    pub fn class(&self) -> Class {
        self.class
    }
    /// No lock needed: the borrow is exclusive.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// A held [`SpinLock`].
#[must_use]
pub struct SpinGuard<'a, T, H: Cpu> {
    lock: &'a SpinLock<T>,
    hw: H,
}

impl<T, H: Cpu> Deref for SpinGuard<'_, T, H> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `held` is ours until drop, so nobody else reaches the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, H: Cpu> DerefMut for SpinGuard<'_, T, H> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, H: Cpu> Drop for SpinGuard<'_, T, H> {
    #[inline]
    fn drop(&mut self) {
        lockdep::release(self.hw, self.lock.class);
        self.lock.held.store(false, Ordering::Release);
    }
}
