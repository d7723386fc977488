//! What a process sees: VMAs in a tree, the locks that keep them stable, the space around them.
//!
//! `tree` ranges and gaps · `vma`, `flags` one range and its meaning · `stack` growing down · `locks`
//! the guards · `edit` insert, split, merge, change · `place` where to, and counts · `detach` out of sight,
//! then freed · `address_space` all of it with tables and counters · `futex` what a futex word is known by · `allows` whether
//! the kernel may take hold of a VMA's pages · `normal` whether a page stands behind an entry.

pub mod address_space;
pub mod allows;
pub mod detach;
pub mod edit;
pub mod flags;
pub mod futex;
pub mod keys;
pub mod locks;
pub mod normal;
pub mod place;
pub mod stack;
pub mod tree;
pub mod vma;

pub use address_space::{AddressSpace, RssKind};
pub use allows::Ask;
pub use detach::{Detached, Unreachable};
pub use flags::VmaFlags;
pub use futex::FutexKey;
pub use keys::Keys;
pub use locks::{MmapReadGuard, MmapWriteGuard, VmaReadGuard, Vmas};
pub use stack::GrowError;
pub use vma::{NewVma, Vma};
