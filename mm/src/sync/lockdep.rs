//! Lock order and interrupt state, checked while running (feature `lockdep`; without it every function
//! here is empty).
//!
//! Each thread has a list of what it holds (`Held`, through the door). A lock may be taken only if its
//! [`Class`] comes after every class held, with three exceptions: classes that nest in themselves
//! ([`Class::nests`]), attempts that do not wait (`try_lock`), and interrupt-safe locks, which come last
//! and are counted per CPU, since a scheduler hands them from one thread to the next. Beyond order:
//!
//! 1. nobody sleeps with interrupts off or a lock held that others spin on;
//! 2. nobody awaits acknowledgements with interrupts off, an interrupt-safe lock held, or a lock held
//!    that others may spin on with interrupts off;
//! 3. a lock under which acknowledgements are awaited is not taken with interrupts off;
//! 4. no user copy with the mmap lock, a folio lock or a spin lock held: it may fault;
//! 5. an interrupt handler takes interrupt-safe locks only.
//!
//! What is wrong is said once, by a panic that lists what is held and where it was taken.

use super::Class;
use crate::hw::Cpu;

#[cfg(feature = "lockdep")]
use crate::hw::MAX_CPUS;
#[cfg(feature = "lockdep")]
use core::panic::Location;
#[cfg(feature = "lockdep")]
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering::Relaxed};

/// A thread holds no more than this at once.
#[cfg(feature = "lockdep")]
const MOST: usize = 48;

/// What a thread holds; written by that thread only.
#[cfg(feature = "lockdep")]
pub struct Held {
    len: AtomicU32,
    class: [AtomicU8; MOST],
    place: [AtomicPtr<Location<'static>>; MOST],
}

#[cfg(feature = "lockdep")]
impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(feature = "lockdep")]
impl Held {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            len: AtomicU32::new(0),
            class: [const { AtomicU8::new(0) }; MOST],
            place: [const { AtomicPtr::new(core::ptr::null_mut()) }; MOST],
        }
    }
    fn len(&self) -> usize {
        self.len.load(Relaxed) as usize
    }
    fn class(&self, i: usize) -> Class {
        Class::ALL[self.class[i].load(Relaxed) as usize]
    }
    fn classes(&self) -> impl Iterator<Item = Class> {
        (0..self.len()).map(|i| self.class(i))
    }
    /// Whether it holds nothing: asked when a thread returns to user mode, or ends.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn push(&self, c: Class, at: &'static Location<'static>) {
        let n = self.len();
        assert!(n < MOST, "lockdep: more than {MOST} locks held");
        self.class[n].store(c as u8, Relaxed);
        self.place[n].store(core::ptr::from_ref(at).cast_mut(), Relaxed);
        self.len.store(n as u32 + 1, Relaxed);
    }
    fn remove(&self, c: Class) -> bool {
        let n = self.len();
        let Some(at) = (0..n).rev().find(|&i| self.class(i) == c) else {
            return false;
        };
        for i in at..n - 1 {
            self.class[i].store(self.class[i + 1].load(Relaxed), Relaxed);
            self.place[i].store(self.place[i + 1].load(Relaxed), Relaxed);
        }
        self.len.store(n as u32 - 1, Relaxed);
        true
    }
}

/// Before a thread record exists (boot, tests of one thread for each CPU): one record for each CPU.
#[cfg(feature = "lockdep")]
pub static PER_CPU: [Held; MAX_CPUS] = [const { Held::new() }; MAX_CPUS];

/// Interrupt-safe locks and handlers, per CPU.
#[cfg(feature = "lockdep")]
#[repr(align(64))]
struct Irq {
    locks: AtomicU32,
    handlers: AtomicU32,
}

#[cfg(feature = "lockdep")]
static IRQ: [Irq; MAX_CPUS] = [const {
    Irq {
        locks: AtomicU32::new(0),
        handlers: AtomicU32::new(0),
    }
}; MAX_CPUS];

/// Set by the first complaint: a dying machine takes locks as it must.
#[cfg(feature = "lockdep")]
static DEAD: AtomicBool = AtomicBool::new(false);

/// Forgets an earlier complaint: for tests that provoke one.
#[cfg(feature = "lockdep")]
pub fn revive() {
    DEAD.store(false, Relaxed);
}

/// No more checks: the machine is going down.
#[inline(always)]
pub fn disable() {
    #[cfg(feature = "lockdep")]
    DEAD.store(true, Relaxed);
}

#[cfg(feature = "lockdep")]
struct List<'a>(&'a Held, u32, u32);

#[cfg(feature = "lockdep")]
impl core::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for i in 0..self.0.len() {
            // SAFETY: `push` stores pointers to `'static` locations only.
            let at = unsafe { &*self.0.place[i].load(Relaxed) };
            write!(f, "\n  {:?} taken at {at}", self.0.class(i))?;
        }
        if self.1 > 0 {
            write!(f, "\n  {} interrupt-safe lock(s)", self.1)?;
        }
        if self.2 > 0 {
            write!(f, "\n  in an interrupt handler")?;
        }
        Ok(())
    }
}

#[cfg(feature = "lockdep")]
#[cold]
fn complain<H: Cpu>(hw: H, at: &Location<'_>, what: core::fmt::Arguments<'_>) {
    if DEAD.swap(true, Relaxed) {
        return;
    }
    let irq = &IRQ[hw.cpu()];
    let list = List(
        hw.held(),
        irq.locks.load(Relaxed),
        irq.handlers.load(Relaxed),
    );
    panic!("lockdep: {what}\n at {at}; held, oldest first:{list}");
}

/// About to take a lock, waiting for it if need be.
#[inline(always)]
#[cfg_attr(feature = "lockdep", track_caller)]
pub fn acquire<H: Cpu>(_hw: H, _class: Class) {
    #[cfg(feature = "lockdep")]
    check_acquire(_hw, _class, Location::caller());
}

#[cfg(feature = "lockdep")]
fn check_acquire<H: Cpu>(hw: H, class: Class, at: &'static Location<'static>) {
    if DEAD.load(Relaxed) {
        return;
    }
    let irq = &IRQ[hw.cpu()];
    let held = hw.held();
    if irq.handlers.load(Relaxed) > 0 {
        complain(
            hw,
            at,
            format_args!("{class:?} is taken in an interrupt handler"),
        );
    } else if irq.locks.load(Relaxed) > 0 && (class.sleeps() || class.awaited_under()) {
        complain(
            hw,
            at,
            format_args!("{class:?} is taken under an interrupt-safe lock"),
        );
    }
    if let Some(c) = held
        .classes()
        .find(|&c| c > class || (c == class && !class.nests()))
    {
        complain(
            hw,
            at,
            format_args!("{class:?} is taken while {c:?} is held: wrong order"),
        );
    }
    if class.sleeps() {
        check_sleep(hw, at, "takes a sleeping lock");
    } else if class.awaited_under() && !hw.irqs_on() {
        complain(
            hw,
            at,
            format_args!(
                "{class:?} is taken with interrupts off, and its holders await acknowledgements"
            ),
        );
    }
    held.push(class, at);
}

/// Took a lock without waiting for it: no order to keep.
#[inline(always)]
#[cfg_attr(feature = "lockdep", track_caller)]
pub fn acquired_at_once<H: Cpu>(_hw: H, _class: Class) {
    #[cfg(feature = "lockdep")]
    if !DEAD.load(Relaxed) {
        _hw.held().push(_class, Location::caller());
    }
}

/// Gave a lock up.
#[inline(always)]
#[cfg_attr(feature = "lockdep", track_caller)]
pub fn release<H: Cpu>(_hw: H, _class: Class) {
    #[cfg(feature = "lockdep")]
    if !DEAD.load(Relaxed) && !_hw.held().remove(_class) {
        complain(
            _hw,
            Location::caller(),
            format_args!("{_class:?} is released and was not held"),
        );
    }
}

#[cfg(feature = "lockdep")]
fn check_sleep<H: Cpu>(hw: H, at: &'static Location<'static>, what: &str) {
    if !hw.irqs_on() {
        complain(
            hw,
            at,
            format_args!("this thread {what} with interrupts off"),
        );
    }
    let irq = &IRQ[hw.cpu()];
    if irq.locks.load(Relaxed) > 0 || irq.handlers.load(Relaxed) > 0 {
        complain(
            hw,
            at,
            format_args!("this thread {what} with an interrupt-safe lock held"),
        );
    }
    if let Some(c) = hw.held().classes().find(|c| !c.sleeps()) {
        complain(hw, at, format_args!("this thread {what} with {c:?} held"));
    }
}

/// About to sleep, or to yield the CPU.
#[inline(always)]
#[cfg_attr(feature = "lockdep", track_caller)]
pub fn may_sleep<H: Cpu>(_hw: H) {
    #[cfg(feature = "lockdep")]
    if !DEAD.load(Relaxed) {
        check_sleep(_hw, Location::caller(), "sleeps");
    }
}

/// About to wait for other CPUs' acknowledgements.
#[inline(always)]
#[cfg_attr(feature = "lockdep", track_caller)]
pub fn may_await<H: Cpu>(_hw: H) {
    #[cfg(feature = "lockdep")]
    if !DEAD.load(Relaxed) {
        let at = Location::caller();
        if !_hw.irqs_on() {
            complain(
                _hw,
                at,
                format_args!("acknowledgements are awaited with interrupts off"),
            );
        }
        let irq = &IRQ[_hw.cpu()];
        if irq.locks.load(Relaxed) > 0 || irq.handlers.load(Relaxed) > 0 {
            complain(
                _hw,
                at,
                format_args!("acknowledgements are awaited with an interrupt-safe lock held"),
            );
        }
        if let Some(c) = _hw
            .held()
            .classes()
            .find(|c| !c.sleeps() && !c.awaited_under())
        {
            complain(
                _hw,
                at,
                format_args!("acknowledgements are awaited with {c:?} held"),
            );
        }
    }
}

/// About to touch user memory in a way that may fault and sleep.
#[inline(always)]
#[cfg_attr(feature = "lockdep", track_caller)]
pub fn may_copy_user<H: Cpu>(_hw: H) {
    #[cfg(feature = "lockdep")]
    if !DEAD.load(Relaxed) {
        let at = Location::caller();
        check_sleep(_hw, at, "copies from or to user memory");
        if let Some(c) = _hw
            .held()
            .classes()
            .find(|c| matches!(c, Class::Mmap | Class::Folio))
        {
            complain(
                _hw,
                at,
                format_args!("this thread copies from or to user memory with {c:?} held"),
            );
        }
    }
}

/// An interrupt-safe lock was taken on this CPU (interrupts are off).
#[inline(always)]
pub fn irq_lock<H: Cpu>(_hw: H) {
    #[cfg(feature = "lockdep")]
    IRQ[_hw.cpu()].locks.fetch_add(1, Relaxed);
}

/// It is given up, by whichever thread runs here now.
#[inline(always)]
pub fn irq_unlock<H: Cpu>(_hw: H) {
    #[cfg(feature = "lockdep")]
    if IRQ[_hw.cpu()].locks.fetch_sub(1, Relaxed) == 0 {
        IRQ[_hw.cpu()].locks.store(0, Relaxed);
    }
}

/// An interrupt handler begins on this CPU.
#[inline(always)]
pub fn irq_enter<H: Cpu>(_hw: H) {
    #[cfg(feature = "lockdep")]
    IRQ[_hw.cpu()].handlers.fetch_add(1, Relaxed);
}

/// It ends; what runs on the way out of it may sleep.
#[inline(always)]
pub fn irq_exit<H: Cpu>(_hw: H) {
    #[cfg(feature = "lockdep")]
    IRQ[_hw.cpu()].handlers.fetch_sub(1, Relaxed);
}
