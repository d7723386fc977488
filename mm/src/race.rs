//! Forced interleavings and planted bugs (K-25), in test builds only (feature `race`).
//!
//! A [`Point`] is a named place in a protocol. A test *arms* it; the first thread that comes by *stands* there,
//! spinning with whatever it holds (interrupts off in a lockless walk, a lock in a modifier), until the test
//! *releases* it. So the other side of the race runs on another CPU, and an interleaving is forced, not hoped for.
//! Where nothing is held ([`point_unlocked`]) it gives its CPU away meanwhile, and one CPU is enough.
//!
//! [`planted`] tells whether this run shall have a historic bug again, by its number in the SPEC: each test of
//! a BUG-n must fail with bug n planted. One at a time.
//!
//! In a normal build [`point`] and [`planted`] are nothing, and the compiler removes what asks them.

#![forbid(unsafe_code)]

use crate::hw::Cpu;
use crate::wait::CanWait;

macro_rules! points {
    ($($(#[$doc:meta])* $id:ident $name:literal),* $(,)?) => {
        /// A named place; `ROOM.PLACE` says where.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Point { $($(#[$doc])* $id),* }

        impl Point {
            /// All of them.
            pub const ALL: &[Point] = &[$(Point::$id),*];
            /// As scripts write it.
            pub const fn name(self) -> &'static str {
                match self { $(Point::$id => $name),* }
            }
        }
    };
}

points! {
    /// The lockless walk has read a leaf and holds nothing.
    FastRead "fast.read",
    /// The lockless walk holds a reference and has not looked at the entry again.
    FastHeld "fast.held",
    /// fork has found a page not pinned and not yet made its entries read-only.
    ForkShare "fork.share",
    /// fork has copied the entries; the sequence is still odd, nothing is flushed.
    ForkCopied "fork.copied",
    /// Entries were emptied, no CPU was told.
    Zapped "zap.taken",
    /// A copy on write has its copy, and no lock on the table.
    CowCopied "cow.copied",
    /// A copy of a raw frame is about to be made, and no lock is held on the table.
    CowRaw "cow.raw",
    /// It could not be made, and nobody has looked why.
    CowUnread "cow.unread",
    /// The slow walk is about to take the mmap lock.
    SlowStart "slow.start",
    /// The slow walk needs a fault; its lock is still held.
    SlowMissed "slow.missed",
    /// The slow walk has faulted a page in and not yet followed it.
    SlowFaulted "slow.faulted",
    /// Pages are clean and not written yet.
    Writeback "writeback.cleaned",
    /// A page is about to be read in, or made ready to be written, for who has let go of every lock.
    FaultUnlocked "fault.unlocked",
    /// A page was read in, and nobody can find it yet.
    PageRead "page.read",
    /// The last user of a file system is gone, and nobody knows that it is to be unmounted.
    Unmount "unmount.last",
    /// A disk is claimed by who mounts it, and has not been read.
    Mount "mount.claimed",
    /// A device has done with a request, and its pages are still pinned.
    Landed "flight.landed",
}

impl Point {
    /// The one that a script means.
    pub fn by_name(name: &str) -> Option<Point> {
        Point::ALL.iter().copied().find(|p| p.name() == name)
    }
}

/// A thread is here. It stands still if a test armed the point.
#[inline(always)]
pub fn point<C: Cpu>(hw: C, at: Point) {
    #[cfg(feature = "sim")]
    hw.pause(at);
    #[cfg(feature = "race")]
    script::pass(at, || hw.spin_hint());
    #[cfg(not(feature = "race"))]
    let _ = (hw, at);
}

/// The same where one may sleep: others run on this CPU while the thread stands.
#[inline(always)]
pub fn point_unlocked<C: Cpu>(wait: &mut CanWait<C>, at: Point) {
    #[cfg(feature = "sim")]
    wait.hw().pause(at);
    #[cfg(feature = "race")]
    script::pass(at, || wait.hw().cond_resched());
    #[cfg(not(feature = "race"))]
    let _ = (wait, at);
}

/// Whether BUG-`n` is planted.
#[inline(always)]
pub fn planted(n: u8) -> bool {
    #[cfg(feature = "race")]
    return script::PLANTED.load(core::sync::atomic::Ordering::Relaxed) == n;
    #[cfg(not(feature = "race"))]
    {
        let _ = n;
        false
    }
}

/// The test's side.
#[cfg(feature = "race")]
pub mod script {
    use super::Point;
    use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

    const IDLE: u32 = 0;
    const ARMED: u32 = 1;
    const STANDING: u32 = 2;
    /// Above the state: how often it was released, so that nobody takes a later stand for their own.
    const RELEASED: u32 = 4;

    static STATE: [AtomicU32; Point::ALL.len()] =
        [const { AtomicU32::new(IDLE) }; Point::ALL.len()];
    pub(super) static PLANTED: AtomicU8 = AtomicU8::new(0);

    /// BUG-`n` from now on; 0: none.
    pub fn plant(n: u8) {
        PLANTED.store(n, SeqCst);
    }

    fn step(at: Point, from: u32, to: u32) -> Option<u32> {
        let state = &STATE[at as usize];
        let now = state.load(SeqCst);
        let next = now & !3 | to;
        (now & 3 == from && state.compare_exchange(now, next, SeqCst, SeqCst).is_ok())
            .then_some(next)
    }

    /// The next thread that comes by stands. `false`: the point is armed or occupied already.
    pub fn arm(at: Point) -> bool {
        step(at, IDLE, ARMED).is_some()
    }

    /// Whether a thread stands there.
    pub fn standing(at: Point) -> bool {
        STATE[at as usize].load(SeqCst) & 3 == STANDING
    }

    /// Lets the thread go on, or disarms the point. Whether one stood there.
    pub fn release(at: Point) -> bool {
        let state = &STATE[at as usize];
        let mut now = state.load(SeqCst);
        loop {
            let next = (now & !3).wrapping_add(RELEASED) | IDLE;
            match state.compare_exchange(now, next, SeqCst, SeqCst) {
                Ok(_) => return now & 3 == STANDING,
                Err(other) => now = other,
            }
        }
    }

    pub(super) fn pass(at: Point, meanwhile: impl Fn()) {
        if let Some(mine) = step(at, ARMED, STANDING) {
            while STATE[at as usize].load(SeqCst) == mine {
                meanwhile();
            }
        }
    }
}
