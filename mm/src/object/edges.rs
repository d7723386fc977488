//! Who maps me: every VMA that may map pages of an owner (file object or anonymous family) has an edge
//! in the owner's list. `space` links and unlinks, `rmap` walks; this room knows nothing of VMAs.
//!
//! 1. Links change under the list's spin lock, held as an [`RmapGuard`]. So do the range and offset of a
//!    VMA whose edge is linked: a walker sees both ends of a split or none.
//! 2. An edge is unlinked after its VMA's entries were zapped and before its tables may be freed, so
//!    under the guard the tables that an edge leads to stay. The guard may zap and never install.
//! 3. The lock is a leaf above the table locks. Its holder may await acknowledgements (interrupts are
//!    on), hence nobody takes it with interrupts off.
//! 4. A long walk lets go of the lock between pieces of work: an edge that was dealt with goes to the
//!    tail and is stamped with the walk's number; a new edge, or one whose VMA grew, enters at the head without a stamp. The walk
//!    is over when the head bears its number. The owner admits one stamping walk at a time.

use crate::phys::Hw;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};
use crate::sync::{Class, SpinGuard, SpinLock};
use crate::table::permit::StableVma;
use core::ptr::{NonNull, null_mut};

/// A VMA's place in an owner's list.
#[derive(Debug)]
pub struct MapEdge {
    prev: AtomicPtr<MapEdge>,
    next: AtomicPtr<MapEdge>,
    /// The stamping walk that last dealt with it.
    walk: AtomicU64,
    /// Where in the owner (in pages) that walk, if it is not through, goes on.
    resume: AtomicU64,
}

impl Default for MapEdge {
    fn default() -> Self {
        Self::new()
    }
}

impl MapEdge {
    /// In no list.
    pub const fn new() -> Self {
        Self {
            prev: AtomicPtr::new(null_mut()),
            next: AtomicPtr::new(null_mut()),
            walk: AtomicU64::new(0),
            resume: AtomicU64::new(0),
        }
    }
}

/// What the lock protects.
#[derive(Debug)]
pub struct Ends {
    head: *mut MapEdge,
    tail: *mut MapEdge,
    len: u64,
    walks: u64,
}

// SAFETY: the pointers are followed only under the list's lock, and `link`'s contract keeps what they
// point at alive and in place.
unsafe impl Send for Ends {}

/// An owner's list.
pub struct EdgeList {
    ends: SpinLock<Ends>,
}

impl EdgeList {
    /// An empty list; `class` is FileEdges or AnonEdges.
    pub const fn new(class: Class) -> Self {
        Self {
            ends: SpinLock::new(
                class,
                Ends {
                    head: null_mut(),
                    tail: null_mut(),
                    len: 0,
                    walks: 0,
                },
            ),
        }
    }

    /// Takes the lock. Interrupts are on (rule 3).
    #[inline]
    pub fn lock<H: Hw>(&self, hw: H) -> RmapGuard<'_, H> {
        RmapGuard {
            ends: self.ends.lock(hw),
        }
    }
}

/// The mappers of one owner, held: permission to zap what its edges lead to, and not to install:
///
/// ```compile_fail,E0277
/// use mm::{Hw, object::RmapGuard, table::Tables};
/// fn f<H: Hw>(t: &Tables<H>, g: &RmapGuard<'_, H>) { let _ = t.pte_table_alloc(0, g); }
/// ```
pub struct RmapGuard<'a, H: Hw> {
    ends: SpinGuard<'a, Ends, H>,
}

// SAFETY: rules 1 and 2: while the list is locked no edge leaves it, so the VMAs it leads to keep their
// range and their tables.
unsafe impl<H: Hw> StableVma<H> for RmapGuard<'_, H> {}

/// The edge behind a non-null link.
#[inline]
fn edge<'a>(p: *mut MapEdge) -> &'a MapEdge {
    // SAFETY: private to this file; every caller holds the list's lock and read the link under it, and
    // a linked edge stays alive and in place until it was unlinked (`link`'s contract).
    unsafe { &*p }
}

impl<H: Hw> RmapGuard<'_, H> {
    /// Adds an edge at the head.
    ///
    /// # Safety
    /// `e` is in no list, and stays alive and in place until [`Self::unlink`] took it out of this one.
    #[inline]
    pub unsafe fn link(&mut self, e: NonNull<MapEdge>) {
        edge(e.as_ptr()).walk.store(0, Relaxed);
        self.put_first(e.as_ptr());
        self.ends.len += 1;
    }

    /// Adds an edge behind another one: a stamping walk that deals with `other` comes to `e` later or has been
    /// through with `other` before (fork: what is copied from a VMA after that was zapped already).
    ///
    /// # Safety
    /// As [`Self::link`]; `other` is in this list.
    pub unsafe fn link_behind(&mut self, e: NonNull<MapEdge>, other: NonNull<MapEdge>) {
        let (p, prev) = (e.as_ptr(), other.as_ptr());
        let next = edge(prev).next.load(Relaxed);
        edge(p).walk.store(0, Relaxed);
        edge(p).prev.store(prev, Relaxed);
        edge(p).next.store(next, Relaxed);
        edge(prev).next.store(p, Relaxed);
        if next.is_null() {
            self.ends.tail = p;
        } else {
            edge(next).prev.store(p, Relaxed);
        }
        self.ends.len += 1;
    }

    /// Takes an edge out.
    ///
    /// # Safety
    /// `e` is in this list.
    #[inline]
    pub unsafe fn unlink(&mut self, e: NonNull<MapEdge>) {
        self.take_out(e.as_ptr());
        self.ends.len -= 1;
    }

    /// The VMA of an edge covers more than before: a stamping walk looks at it again.
    ///
    /// # Safety
    /// `e` is in this list.
    pub unsafe fn renew(&mut self, e: NonNull<MapEdge>) {
        self.take_out(e.as_ptr());
        edge(e.as_ptr()).walk.store(0, Relaxed);
        self.put_first(e.as_ptr());
    }

    /// How many edges.
    pub fn len(&self) -> u64 {
        self.ends.len
    }

    /// Whether nobody maps the owner.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ends.head.is_null()
    }

    /// Every edge, newest first.
    pub fn edges(&self) -> impl Iterator<Item = NonNull<MapEdge>> + '_ {
        let mut at = self.ends.head;
        core::iter::from_fn(move || {
            let e = NonNull::new(at)?;
            at = edge(at).next.load(Relaxed);
            Some(e)
        })
    }

    /// Begins a stamping walk (rule 4).
    pub fn begin_walk(&mut self) -> Walk {
        self.ends.walks += 1;
        Walk(self.ends.walks)
    }

    /// The next edge that the walk has not dealt with, and where in the owner to go on with it.
    pub fn walk_next(&self, walk: &Walk) -> Option<(NonNull<MapEdge>, u64)> {
        let e = NonNull::new(self.ends.head)?;
        let m = edge(e.as_ptr());
        match m.walk.load(Relaxed) {
            stamp if stamp != walk.0 => Some((e, 0)),
            _ => match m.resume.load(Relaxed) {
                u64::MAX => None,
                page => Some((e, page)),
            },
        }
    }

    /// The walk is through with the head.
    pub fn walk_done(&mut self, walk: &Walk) {
        self.walk_pause(walk, u64::MAX);
        let e = self.ends.head;
        if !e.is_null() {
            self.take_out(e);
            self.put_last(e);
        }
    }

    /// The walk has dealt with the head up to page `resume` of the owner and lets go of the lock.
    pub fn walk_pause(&mut self, walk: &Walk, resume: u64) {
        if !self.ends.head.is_null() {
            let m = edge(self.ends.head);
            m.walk.store(walk.0, Relaxed);
            m.resume.store(resume, Relaxed);
        }
    }

    #[inline]
    fn put_first(&mut self, p: *mut MapEdge) {
        let head = self.ends.head;
        edge(p).prev.store(null_mut(), Relaxed);
        edge(p).next.store(head, Relaxed);
        if head.is_null() {
            self.ends.tail = p;
        } else {
            edge(head).prev.store(p, Relaxed);
        }
        self.ends.head = p;
    }

    fn put_last(&mut self, p: *mut MapEdge) {
        let tail = self.ends.tail;
        edge(p).next.store(null_mut(), Relaxed);
        edge(p).prev.store(tail, Relaxed);
        if tail.is_null() {
            self.ends.head = p;
        } else {
            edge(tail).next.store(p, Relaxed);
        }
        self.ends.tail = p;
    }

    #[inline]
    fn take_out(&mut self, p: *mut MapEdge) {
        let prev = edge(p).prev.load(Relaxed);
        let next = edge(p).next.load(Relaxed);
        if prev.is_null() {
            self.ends.head = next;
        } else {
            edge(prev).next.store(next, Relaxed);
        }
        if next.is_null() {
            self.ends.tail = prev;
        } else {
            edge(next).prev.store(prev, Relaxed);
        }
    }
}

/// The number of a stamping walk.
#[derive(Debug)]
pub struct Walk(u64);
