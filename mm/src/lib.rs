//! The memory subsystem: page tables, faults, VMAs, page cache, pins.
//!
//! Rooms, lower first; an import points only to an earlier one (`tests/layers.rs`):
//! words (`addr errno hw wait sync race`) → `phys` what memory is → `table` what the MMU sees → `object` what
//! pages are made from → `space` what a process sees → `rmap` from a folio to its mappers → `fault` from
//! an address to a folio → `gup` taking hold of a user's pages → `ops` what a process asks for. Beside: `sim`, a machine for tests.
//!
#![doc = include_str!("../docs/locks.md")]
#![cfg_attr(not(any(test, feature = "sim")), no_std)]

extern crate alloc;

pub mod addr;
pub mod errno;
pub mod hw;
pub mod race;
pub mod sync;
pub mod wait;

pub mod phys;

pub mod table;

pub mod object;

pub mod space;

pub mod rmap;

pub mod fault;

pub mod gup;

pub mod ops;

#[cfg(feature = "sim")]
pub mod sim;

pub use addr::{PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr, USER_END, UserRange, UserVa};
pub use errno::Errno;
pub use object::FileObject;
pub use phys::Hw;
pub use space::AddressSpace;
pub use wait::{CanWait, IrqOff};
