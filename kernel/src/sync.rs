//! Locks of the kernel proper: `IrqLock` spins with interrupts off; `Mutex` and `RwLock` sleep.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use mm::Errno;
use mm::sync::lockdep;

use crate::arch::X86;
use crate::task::{Sleep, WaitQueue};

pub use spin::Once;

/// A spin lock held with interrupts off; what interrupt handlers may take.
pub struct IrqLock<T: ?Sized> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out the value to one CPU at a time.
unsafe impl<T: ?Sized + Send> Send for IrqLock<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for IrqLock<T> {}

/// Holds an [`IrqLock`]; drop releases it and restores the interrupt flag. Stays on its CPU.
pub struct IrqGuard<'a, T: ?Sized> {
    lock: &'a IrqLock<T>,
    was_on: bool,
    _here: PhantomData<*mut ()>,
}

impl<T> IrqLock<T> {
    pub const fn new(value: T) -> Self {
        IrqLock {
            held: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }
}

impl<T: ?Sized> IrqLock<T> {
    #[inline]
    pub fn lock(&self) -> IrqGuard<'_, T> {
        let was_on = crate::arch::irq_save();
        while self
            .held
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            while self.held.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        }
        lockdep::irq_lock(X86);
        IrqGuard {
            lock: self,
            was_on,
            _here: PhantomData,
        }
    }

    pub fn try_lock(&self) -> Option<IrqGuard<'_, T>> {
        let was_on = crate::arch::irq_save();
        if self
            .held
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            lockdep::irq_lock(X86);
            Some(IrqGuard {
                lock: self,
                was_on,
                _here: PhantomData,
            })
        } else {
            crate::arch::irq_restore(was_on);
            None
        }
    }

    /// The value, without a lock: nobody else has it.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Breaks the lock. For the panic path, when every other CPU is stopped.
    ///
    /// # Safety
    /// No other CPU runs any more.
    pub unsafe fn force_unlock(&self) {
        self.held.store(false, Ordering::Release);
    }
}

impl<T: ?Sized> Deref for IrqGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for IrqGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for IrqGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        lockdep::irq_unlock(X86);
        self.lock.held.store(false, Ordering::Release);
        crate::arch::irq_restore(self.was_on);
    }
}

/// A sleeping lock.
pub struct Mutex<T: ?Sized> {
    /// 0 free, 1 held, 2 held and somebody may be waiting.
    state: AtomicU32,
    waiters: WaitQueue,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out the value to one thread at a time.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

/// Holds a [`Mutex`].
pub struct MutexGuard<'a, T: ?Sized> {
    lock: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Mutex {
            state: AtomicU32::new(0),
            waiters: WaitQueue::new(),
            value: UnsafeCell::new(value),
        }
    }

    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Sleeps until the lock is ours.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        if let Some(guard) = self.try_lock() {
            return guard;
        }
        // Uninterruptible: no error.
        let _ = self.wait(Sleep::Uninterruptible);
        MutexGuard { lock: self }
    }

    /// As `lock`; EINTR when a fatal signal arrives first.
    #[inline]
    pub fn lock_killable(&self) -> Result<MutexGuard<'_, T>, Errno> {
        if let Some(guard) = self.try_lock() {
            return Ok(guard);
        }
        self.wait(Sleep::Killable)?;
        Ok(MutexGuard { lock: self })
    }

    #[cold]
    fn wait(&self, kind: Sleep) -> Result<(), Errno> {
        // From here on the lock says "held, somebody may be waiting", so that its holder wakes one.
        while self.state.swap(2, Ordering::Acquire) != 0 {
            let held = || self.state.load(Ordering::Relaxed) == 2;
            self.waiters
                .wait_while(kind, None, held)
                .map_err(|_| Errno::EINTR)?;
        }
        Ok(())
    }

    /// The lock, if nobody has it.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.state
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| MutexGuard { lock: self })
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.lock.state.swap(0, Ordering::Release) == 2 {
            self.lock.waiters.wake_one();
        }
    }
}

/// A sleeping read/write lock; a waiting writer stops new readers.
pub struct RwLock<T: ?Sized> {
    /// Readers; `WRITER` alone when held for writing.
    state: AtomicU32,
    writers_waiting: AtomicU32,
    waiters: WaitQueue,
    value: UnsafeCell<T>,
}

const WRITER: u32 = u32::MAX;

// SAFETY: one writer or several readers at a time.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}
// SAFETY: as above; readers share `&T`.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

/// Holds a [`RwLock`] for reading.
pub struct ReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
}

/// Holds a [`RwLock`] for writing.
pub struct WriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
}

impl<T> RwLock<T> {
    pub const fn new(value: T) -> Self {
        RwLock {
            state: AtomicU32::new(0),
            writers_waiting: AtomicU32::new(0),
            waiters: WaitQueue::new(),
            value: UnsafeCell::new(value),
        }
    }
}

impl<T: ?Sized> RwLock<T> {
    fn try_read(&self) -> bool {
        let readers = self.state.load(Ordering::Relaxed);
        self.writers_waiting.load(Ordering::Relaxed) == 0
            && readers < WRITER - 1
            && self
                .state
                .compare_exchange(readers, readers + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    fn try_write(&self) -> bool {
        self.state
            .compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Sleeps until no writer has it or waits for it.
    pub fn read(&self) -> ReadGuard<'_, T> {
        while !self.try_read() {
            let _ = self.waiters.wait_while(Sleep::Uninterruptible, None, || {
                self.state.load(Ordering::SeqCst) == WRITER
                    || self.writers_waiting.load(Ordering::SeqCst) != 0
            });
        }
        ReadGuard { lock: self }
    }

    /// Sleeps until nobody has it.
    pub fn write(&self) -> WriteGuard<'_, T> {
        if !self.try_write() {
            self.writers_waiting.fetch_add(1, Ordering::SeqCst);
            while !self.try_write() {
                let _ = self.waiters.wait_while(Sleep::Uninterruptible, None, || {
                    self.state.load(Ordering::SeqCst) != 0
                });
            }
            self.writers_waiting.fetch_sub(1, Ordering::SeqCst);
        }
        WriteGuard { lock: self }
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: ?Sized> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock for reading.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> Deref for WriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock for writing.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock for writing.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        if self.lock.state.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.lock.waiters.wake_all();
        }
    }
}

impl<T: ?Sized> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.state.store(0, Ordering::SeqCst);
        self.lock.waiters.wake_all();
    }
}
