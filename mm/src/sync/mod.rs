//! Locks and atomics of mm: one shim, so that the model checker can stand in for the machine.

pub mod class;
pub mod lockdep;
pub mod rwsem;
pub mod section;
pub mod seq;
pub mod spin;

pub use class::Class;
pub use rwsem::RwSem;
pub use section::SectionLock;
pub use seq::SeqCount;
pub use spin::{SpinGuard, SpinLock};

/// The atomics that the protocols use.
pub mod atomic {
    pub use core::sync::atomic::{
        AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering,
        fence,
    };
}
