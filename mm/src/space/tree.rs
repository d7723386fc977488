//! VmaTree: the ranges of a space, disjoint and ordered, and the gaps between them.
//!
//! An AVL tree threaded with a doubly linked list, intrusive in the VMAs: an edit allocates nothing,
//! so an edit cannot fail, and what a change needs to have ready is VMAs only. Every node carries the
//! largest gap below any node of its subtree; a gap ends at a node's start less its `guard` (what is
//! kept free below a stack) and begins at its predecessor's end.
//!
//! Who may be here:
//! - Edits need the mmap write lock. They go through [`TreeEdit`], which holds the sequence count odd
//!   while links are inconsistent.
//! - [`VmaTree::find`], iteration and gap search need the mmap lock in either mode.
//! - [`VmaTree::peek`] needs nothing but interrupts off: nodes live in type-stable memory whose frames
//!   are returned only after an acknowledged IPI round, all fields are atomic, and the descent is bounded.
//!   What it finds is a hint until the caller has seen the sequence count unchanged around it.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::*, fence};

/// Deeper than an AVL tree of 2^24 nodes; where a torn descent gives up.
const MAX_DEPTH: u32 = 36;

type Ptr = *mut VmaNode;

/// The part of a VMA that the tree owns.
#[repr(C)]
#[derive(Debug)]
pub struct VmaNode {
    start: AtomicU64,
    end: AtomicU64,
    left: AtomicPtr<VmaNode>,
    right: AtomicPtr<VmaNode>,
    parent: AtomicPtr<VmaNode>,
    prev: AtomicPtr<VmaNode>,
    next: AtomicPtr<VmaNode>,
    /// Largest gap below any node of this subtree.
    max_gap: AtomicU64,
    height: AtomicU32,
    /// Bytes kept free below `start`.
    guard: AtomicU32,
}

/// The range is not free.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Overlap;

impl VmaNode {
    /// A node in no tree.
    pub const fn new(start: u64, end: u64, guard: u32) -> Self {
        Self {
            start: AtomicU64::new(start),
            end: AtomicU64::new(end),
            left: AtomicPtr::new(null_mut()),
            right: AtomicPtr::new(null_mut()),
            parent: AtomicPtr::new(null_mut()),
            prev: AtomicPtr::new(null_mut()),
            next: AtomicPtr::new(null_mut()),
            max_gap: AtomicU64::new(0),
            height: AtomicU32::new(0),
            guard: AtomicU32::new(guard),
        }
    }

    /// First byte.
    #[inline]
    pub fn start(&self) -> u64 {
        self.start.load(Relaxed)
    }

    /// One past the last byte.
    #[inline]
    pub fn end(&self) -> u64 {
        self.end.load(Relaxed)
    }

    /// Sets the range of a node that is in no tree.
    pub fn prepare(&self, start: u64, end: u64, guard: u32) {
        self.start.store(start, Relaxed);
        self.end.store(end, Relaxed);
        self.guard.store(guard, Relaxed);
    }

    /// Chains nodes that are in no tree.
    pub(super) fn chain(&self, next: Option<NonNull<VmaNode>>) {
        self.next
            .store(next.map_or(null_mut(), NonNull::as_ptr), Relaxed);
    }

    /// Where the free space below must end: the start, less what a stack keeps below itself.
    #[inline]
    pub fn guarded_start(&self) -> u64 {
        self.start()
            .saturating_sub(u64::from(self.guard.load(Relaxed)))
    }

    /// The node before in address order.
    #[inline]
    pub fn prev(&self) -> Option<NonNull<VmaNode>> {
        NonNull::new(self.prev.load(Relaxed))
    }

    /// The node after in address order.
    #[inline]
    pub fn next(&self) -> Option<NonNull<VmaNode>> {
        NonNull::new(self.next.load(Relaxed))
    }

    fn gap_start(&self) -> u64 {
        self.prev().map_or(0, |p| at(p.as_ptr()).end())
    }

    fn gap(&self) -> u64 {
        self.guarded_start().saturating_sub(self.gap_start())
    }
}

/// The node behind a non-null link.
#[inline]
fn at<'t>(p: Ptr) -> &'t VmaNode {
    // SAFETY: private to this file and called on non-null links only. A link is written by an edit,
    // from a pointer that `TreeEdit::insert`'s contract keeps valid until the node is removed; a stale
    // one read by `peek` points into type-stable memory (module doc), where all fields are atomic.
    unsafe { &*p }
}

#[inline]
fn height(p: Ptr) -> u32 {
    if p.is_null() {
        0
    } else {
        at(p).height.load(Relaxed)
    }
}

#[inline]
fn max_gap(p: Ptr) -> u64 {
    if p.is_null() {
        0
    } else {
        at(p).max_gap.load(Relaxed)
    }
}

/// The ranges of one space.
#[derive(Debug)]
pub struct VmaTree {
    root: AtomicPtr<VmaNode>,
    first: AtomicPtr<VmaNode>,
    last: AtomicPtr<VmaNode>,
    count: AtomicU32,
    /// Odd while an edit is under way; every edit leaves another even value.
    seq: AtomicU64,
}

impl Default for VmaTree {
    fn default() -> Self {
        Self::new()
    }
}

impl VmaTree {
    /// An empty tree.
    pub const fn new() -> Self {
        Self {
            root: AtomicPtr::new(null_mut()),
            first: AtomicPtr::new(null_mut()),
            last: AtomicPtr::new(null_mut()),
            count: AtomicU32::new(0),
            seq: AtomicU64::new(0),
        }
    }

    /// How many nodes.
    #[inline]
    pub fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// The lowest node.
    #[inline]
    pub fn first(&self) -> Option<NonNull<VmaNode>> {
        NonNull::new(self.first.load(Relaxed))
    }

    /// The highest node.
    #[inline]
    pub fn last(&self) -> Option<NonNull<VmaNode>> {
        NonNull::new(self.last.load(Relaxed))
    }

    /// The sequence count, before a [`peek`](Self::peek).
    #[inline]
    pub fn seq(&self) -> u64 {
        self.seq.load(Acquire)
    }

    /// Whether nothing was edited since `seq` was read.
    #[inline]
    pub fn unchanged(&self, seq: u64) -> bool {
        fence(Acquire);
        self.seq.load(Relaxed) == seq
    }

    /// The first node that ends after `va`. Under the mmap lock.
    #[inline]
    pub fn find(&self, va: u64) -> Option<NonNull<VmaNode>> {
        let mut best = null_mut();
        let mut p = self.root.load(Relaxed);
        while !p.is_null() {
            let n = at(p);
            if va < n.end() {
                best = p;
                if va >= n.start() {
                    break;
                }
                p = n.left.load(Relaxed);
            } else {
                p = n.right.load(Relaxed);
            }
        }
        NonNull::new(best)
    }

    /// The node that contains `va`, without a lock: interrupts are off, and the result counts only if
    /// the sequence count was even before and is [`unchanged`](Self::unchanged) after.
    #[inline]
    pub fn peek(&self, va: u64) -> Option<NonNull<VmaNode>> {
        let mut p = self.root.load(Relaxed);
        for _ in 0..MAX_DEPTH {
            let node = NonNull::new(p)?;
            let n = at(p);
            if va >= n.end() {
                p = n.right.load(Relaxed);
            } else if va < n.start() {
                p = n.left.load(Relaxed);
            } else {
                return Some(node);
            }
        }
        None
    }

    /// Begins an edit.
    ///
    /// # Safety
    /// The caller holds the mmap write lock, and there is no other edit of this tree.
    #[inline]
    pub unsafe fn edit(&self) -> TreeEdit<'_> {
        self.seq.store(self.seq.load(Relaxed) + 1, Relaxed);
        fence(Release);
        TreeEdit { tree: self }
    }
}

#[path = "balance.rs"]
mod balance;
pub use balance::TreeEdit;

#[path = "gap.rs"]
mod gap;

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
