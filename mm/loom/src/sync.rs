//! As `mm::sync`, on loom's atomics.

pub use super::atomic;

#[path = "../../src/sync/class.rs"]
pub mod class;
#[path = "../../src/sync/lockdep.rs"]
pub mod lockdep;
#[path = "../../src/sync/rwsem.rs"]
pub mod rwsem;
#[path = "../../src/sync/section.rs"]
pub mod section;
#[path = "../../src/sync/seq.rs"]
pub mod seq;
#[path = "../../src/sync/spin.rs"]
pub mod spin;

pub use class::Class;
pub use rwsem::RwSem;
pub use section::SectionLock;
pub use seq::SeqCount;
pub use spin::{SpinGuard, SpinLock};
