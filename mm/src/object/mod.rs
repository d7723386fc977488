//! What pages are made from: anonymous families and memory-backed files, and who maps them.
//!
//! A VMA without a [`FileObject`] is anonymous; with one it maps the object's page cache, and if it is
//! private it may hold anonymous copies as well.

pub mod anon;
pub mod cache;
pub mod edges;
pub mod radix;

pub use anon::{AnonFamily, FamilyRef};
pub use cache::{CacheError, FileObject, Source, Unfilled};
pub use edges::{EdgeList, MapEdge, RmapGuard};
