//! mm's protocols under the model checker: the very files of `mm/src`, on atomics that loom watches.
//!
//! Only `sync::atomic` differs (and, below it, frames: a handful of descriptors instead of a machine's).
//! Every interleaving and every value that a load may return within the bounds of [`check`] is tried.

#![allow(
    dead_code,
    reason = "not everything in the files that are shared is used here"
)]

pub mod atomic;

#[path = "../../src/addr.rs"]
pub mod addr;
#[path = "../../src/hw.rs"]
pub mod hw;
#[path = "../../src/wait.rs"]
pub mod wait;

pub mod sync;

pub mod phys;

use addr::Pfn;
use atomic::Ordering;
use hw::{AtomicCpuSet, Cpu, FlushReq, Park, Parked, Waiter};
use loom::sync::{Condvar, Mutex};
use phys::{FrameDesc, Hw, Phys};

/// Frames of a machine.
pub const FRAMES: usize = 3;
/// Threads of a model, the first included.
pub const THREADS: usize = 4;

/// One thread's bed.
struct Bed {
    /// Woken, killed.
    state: Mutex<(bool, bool)>,
    bell: Condvar,
}

/// A machine of loom's threads.
pub struct Model {
    descs: [FrameDesc; FRAMES],
    phys: Phys,
    beds: Vec<Bed>,
}

/// The handle; which thread holds it is part of it.
#[derive(Clone, Copy)]
pub struct Me {
    model: &'static Model,
    thread: usize,
}

// SAFETY: a handle is a reference to atomics and locks.
unsafe impl Send for Me {}
// SAFETY: as above.
unsafe impl Sync for Me {}

impl Model {
    /// One for each execution; leaked, as descriptors are `'static`.
    pub fn boot() -> Me {
        let model: &'static Model = Box::leak(Box::new(Model {
            descs: std::array::from_fn(|_| FrameDesc::default()),
            phys: Phys::default(),
            beds: (0..THREADS)
                .map(|_| Bed {
                    state: Mutex::new((false, false)),
                    bell: Condvar::new(),
                })
                .collect(),
        }));
        // loom's atomics come to be when they are first used; all of these before the threads do.
        for d in &model.descs {
            d.flags.load(Ordering::Relaxed);
            d.refs.load(Ordering::Relaxed);
            d.maps.load(Ordering::Relaxed);
            d.pins.load(Ordering::Relaxed);
            d.mapping.load(Ordering::Relaxed);
            d.lock.load(Ordering::Relaxed);
            d.prev.load(Ordering::Relaxed);
            d.next.load(Ordering::Relaxed);
        }
        model.phys.freed();
        let me = Me { model, thread: 0 };
        model.phys.aging(me);
        me
    }
}

impl Me {
    /// The handle of thread `n`.
    pub fn thread(self, n: usize) -> Me {
        Me {
            model: self.model,
            thread: n,
        }
    }
    /// A fatal signal for thread `n`.
    pub fn kill(self, n: usize) {
        let bed = &self.model.beds[n];
        bed.state.lock().unwrap().1 = true;
        bed.bell.notify_all();
    }
    /// The signal is forgotten.
    pub fn revive(self, n: usize) {
        self.model.beds[n].state.lock().unwrap().1 = false;
    }
    /// The right to wait.
    pub fn can_wait(self) -> wait::CanWait<Me> {
        // SAFETY: a test's thread, outside of every lock.
        unsafe { wait::CanWait::assume(self) }
    }
}

impl Cpu for Me {
    type IrqState = ();
    fn irq_save(self) {}
    fn irq_restore(self, _: ()) {}
    fn irqs_on(self) -> bool {
        true
    }
    fn cpu(self) -> usize {
        self.thread
    }
    fn spin_hint(self) {
        loom::thread::yield_now();
    }
    fn waiter(self) -> Waiter {
        Waiter(self.thread)
    }
    fn park(self, how: Park) -> Parked {
        let bed = &self.model.beds[self.thread];
        let mut s = bed.state.lock().unwrap();
        loop {
            if s.0 {
                s.0 = false;
                return Parked::Woken;
            }
            if s.1 && how == Park::Killable {
                return Parked::Killed;
            }
            s = bed.bell.wait(s).unwrap();
        }
    }
    fn unpark(self, w: Waiter) {
        let bed = &self.model.beds[w.0];
        bed.state.lock().unwrap().0 = true;
        bed.bell.notify_all();
    }
    fn fatal_signal_pending(self) -> bool {
        self.model.beds[self.thread].state.lock().unwrap().1
    }
    fn cond_resched(self) {
        loom::thread::yield_now();
    }
    fn load_root(self, _: Pfn, _: u64, _: u64) {}
    fn load_kernel_root(self) {}
    fn loaded_root(self) -> Pfn {
        Pfn(0)
    }
    fn flush_local(self, _: FlushReq) {}
    fn shootdown(self, _: &AtomicCpuSet, _: FlushReq) {}
    fn grace_period(self) {}
}

impl Hw for Me {
    fn frame_ptr(self, _: Pfn) -> *mut u8 {
        std::ptr::null_mut()
    }
    fn desc(self, pfn: Pfn) -> &'static FrameDesc {
        &self.model.descs[pfn.0 as usize]
    }
    fn phys(self) -> &'static Phys {
        &self.model.phys
    }
    fn clear_frame(self, _: *mut u8) {}
    fn hide_frame(self, _: Pfn) -> bool {
        false
    }
    fn show_frame(self, _: Pfn) {}
}

/// Tries every execution of `f` with at most `preemptions` involuntary switches.
pub fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut b = loom::model::Builder::new();
    b.preemption_bound = Some(preemptions);
    b.max_branches = 20_000;
    b.check(f);
}
