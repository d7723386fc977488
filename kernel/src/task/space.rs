//! The address space as threads hold it, and which one a CPU has loaded.
//!
//! Threads and processes share a [`Space`] by `Arc`; when the last reference goes, everything it maps
//! is unmapped. A CPU keeps the last user space loaded while it runs kernel threads; it stays in that
//! space's CPU set and leaves it when it loads another one, or when a shootdown asks it to.

use alloc::sync::Arc;
use core::ops::Deref;
use core::ptr;
use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicUsize, Ordering};

use mm::gup::GupFlags;
use mm::hw::Cpu;
use spin::Mutex as Spin;

use mm::{AddressSpace, CanWait, Errno, IrqOff, ops};

pub use mm::space::FutexKey;

use super::current;
use super::process::{Limit, NRLIMITS, RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK};
use crate::arch::{self, MAX_CPUS, X86};
use crate::syscall::aio::Contexts;

/// What a process sees.
pub struct Space {
    inner: Arc<AddressSpace<X86>>,
    /// Processes that use it (a vfork's child makes two).
    processes: AtomicUsize,
    /// Pages pinned for long on its behalf: VmPin.
    pinned: AtomicI64,
    /// Its asynchronous requests.
    pub aio: Contexts,
    /// The auxiliary vector that exec wrote, up to its AT_NULL.
    pub auxv: Spin<[u64; AUXV_WORDS]>,
}

/// Words of the auxiliary vector that are kept.
pub const AUXV_WORDS: usize = 44;

impl Deref for Space {
    type Target = AddressSpace<X86>;
    #[inline(always)]
    fn deref(&self) -> &AddressSpace<X86> {
        &self.inner
    }
}

/// The right to wait, for code of this thread that holds no lock.
///
/// # Panics
/// In debug builds, with interrupts off.
pub fn can_wait() -> CanWait<X86> {
    // SAFETY: system calls and kernel threads run with interrupts on, and callers hold no spin lock:
    // this is called at the outermost level of an operation only.
    unsafe { CanWait::assume(X86) }
}

impl Space {
    /// An empty one.
    pub fn create(limits: &[Limit; NRLIMITS]) -> Option<Arc<Space>> {
        let space = Arc::new(Space {
            inner: AddressSpace::new(X86)?,
            processes: AtomicUsize::new(1),
            pinned: AtomicI64::new(0),
            aio: Contexts::default(),
            auxv: Spin::new([0; AUXV_WORDS]),
        });
        space.set_limits(limits);
        Some(space)
    }

    /// A copy for a forked child.
    pub fn fork(&self) -> Result<Arc<Space>, Errno> {
        let inner = ops::fork(self, &mut can_wait())?;
        Ok(Arc::new(Space {
            inner,
            processes: AtomicUsize::new(1),
            pinned: AtomicI64::new(0),
            aio: Contexts::default(),
            auxv: Spin::new(*self.auxv.lock()),
        }))
    }

    /// So many more pages are pinned for long, or fewer.
    pub fn count_pinned(&self, pages: i64) {
        self.pinned.fetch_add(pages, Ordering::Relaxed);
    }

    /// Pages pinned for long.
    pub fn pinned(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed).max(0) as u64
    }

    /// Another process uses it (true), or no longer does.
    pub(super) fn count_process(&self, more: bool) {
        if more {
            self.processes.fetch_add(1, Ordering::Relaxed);
        } else {
            self.processes.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether several processes use it.
    pub fn is_shared(&self) -> bool {
        self.processes.load(Ordering::Relaxed) > 1
    }

    /// Upgrades as long as the space is not emptied.
    pub fn watch(&self) -> alloc::sync::Weak<AddressSpace<X86>> {
        Arc::downgrade(&self.inner)
    }

    /// Tells it the limits that are its business.
    pub fn set_limits(&self, l: &[Limit; NRLIMITS]) {
        let soft = |n: u32| l[n as usize].soft;
        self.limits
            .address_space
            .store(soft(RLIMIT_AS), Ordering::Relaxed);
        self.limits.data.store(soft(RLIMIT_DATA), Ordering::Relaxed);
        self.limits
            .stack
            .store(soft(RLIMIT_STACK), Ordering::Relaxed);
        self.limits
            .memlock
            .store(soft(RLIMIT_MEMLOCK), Ordering::Relaxed);
    }

    /// Copies memory out for a debugger, whatever the program may do with it; EFAULT if there is none.
    pub fn peek(&self, at: u64, to: &mut [u8]) -> Result<usize, Errno> {
        ops::access::read(self, &mut can_wait(), at, to, GupFlags::FORCE)
    }

    /// Copies a debugger's bytes in. What is private is changed for this process only, be it writable or not; what
    /// is shared must be writable.
    pub fn poke(&self, at: u64, from: &[u8]) -> Result<usize, Errno> {
        ops::access::write(self, &mut can_wait(), at, from, GupFlags::FORCE)
    }

    /// Largest resident set so far, in KiB.
    pub fn max_rss_kib(&self) -> u64 {
        self.rss_peak() * 4
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.aio.end();
        let was_on = arch::irq_save();
        leave_if_loaded(self);
        arch::irq_restore(was_on);
        ops::exit(self, &mut can_wait());
    }
}

/// The user space that each CPU has loaded or had loaded last. Valid while the CPU's root is not the
/// kernel's: the space cannot go away before this CPU has left it.
static LOADED: [AtomicPtr<AddressSpace<X86>>; MAX_CPUS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CPUS];

/// Loads `space` on this CPU. Interrupts off.
#[inline]
pub(super) fn load(space: &Space, cpu: usize) {
    let root = space.tlb.root();
    let loaded = X86.loaded_root();
    if loaded == root {
        return;
    }
    // SAFETY: the caller has interrupts off.
    let irq = unsafe { IrqOff::assume(X86) };
    let inner: *const AddressSpace<X86> = &*space.inner;
    let old = LOADED[cpu].swap(inner.cast_mut(), Ordering::Relaxed);
    space.activate(&irq);
    if loaded != crate::memory::kspace::kernel_root() {
        // SAFETY: a CPU whose root is not the kernel's keeps that space alive (see LOADED).
        if let Some(old) = unsafe { old.as_ref() } {
            old.leave(&irq);
        }
    }
}

/// Leaves a space that is about to be emptied. Interrupts off.
fn leave_if_loaded(space: &Space) {
    if X86.loaded_root() == space.tlb.root() {
        // SAFETY: the caller has interrupts off.
        let irq = unsafe { IrqOff::assume(X86) };
        X86.load_kernel_root();
        space.leave(&irq);
    }
}

/// The key of a futex word of the running thread.
pub(super) fn futex_key(addr: u64, private: bool) -> Result<FutexKey, Errno> {
    let space = current().space().ok_or(Errno::EFAULT)?;
    if private {
        // No lookup: the word is checked when it is read.
        if addr >= mm::USER_END {
            return Err(Errno::EFAULT);
        }
        return Ok(FutexKey::Private {
            space: space.id(),
            va: addr,
        });
    }
    ops::futex_key(space, &mut can_wait(), addr)
}

/// Two words that tell keys apart, for hashing.
#[inline]
pub(super) fn key_words(key: &FutexKey) -> (u64, u64) {
    match *key {
        FutexKey::Private { space, va } => (space, va),
        FutexKey::Shared { object, offset } => (!object, offset),
    }
}
