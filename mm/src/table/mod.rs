//! What the MMU sees: entries, the tables that hold them, their locks, and forgetting.

pub mod lock;
pub mod permit;
pub mod pte;
pub mod tlb;
pub mod walk;

pub use lock::{CopyStep, Leaves, Place, PtGuard, Tables};
pub use permit::{MayFree, MayInstall, StableVma, Unmovable};
pub use pte::{Caching, LeafBits, Pte, PteState};
pub use tlb::{Flushed, PtPage, TlbBatch, TlbState};
pub use walk::{Level, PteCell};
