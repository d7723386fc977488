//! Radix: page offset → frame number, for one page cache.
//!
//! Nodes of 64 slots; a slot is 0, a node's address, or a frame number shifted left with bit 0 set. The
//! root word is 0, a frame (of offset 0, height 0), or a node's address with the height in bits 1..6.
//!
//! Changes need the lock. [`Radix::peek`] needs interrupts off only: nodes come from a type-stable slab
//! (frames go back only after an acknowledged IPI round) and are freed empty, so a stale descent ends in a
//! slot of some node: what it finds is a frame number that the caller must check against the frame.
//!
//! Frames are marked and found by their marks (those that may be dirty), all under the lock: a slot's bit is set in its node when a
//! frame below it is marked. A frame that is alone in a tree without nodes counts as marked.

use crate::addr::Pfn;
use crate::phys::{Hw, NoFrame, slab};
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use crate::sync::{Class, SpinGuard, SpinLock};
use core::ptr::NonNull;

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
/// Enough for 2^54 pages.
const MAX_HEIGHT: u32 = 9;
const PAGE: usize = 1;

/// An inner or leaf node.
#[repr(C, align(64))]
pub struct Node {
    slots: [AtomicUsize; SLOTS],
    /// Slots in use; under the lock.
    used: AtomicU32,
    /// Slots with a mark, bit by bit; under the lock. None of a node that is not in use.
    marks: AtomicU64,
}

// SAFETY: number 2 is the radix nodes'; all fields are atomics.
unsafe impl slab::SlabObject for Node {
    const SLAB: usize = 2;
    fn fresh() -> Self {
        Self {
            slots: [const { AtomicUsize::new(0) }; SLOTS],
            used: AtomicU32::new(0),
            marks: AtomicU64::new(0),
        }
    }
}

impl Node {
    /// Sets or takes away the mark of slot `i`; whether that has changed whether the node has any.
    fn set_mark(&self, i: usize, on: bool) -> bool {
        let old = self.marks.load(Relaxed);
        let new = if on { old | 1 << i } else { old & !(1 << i) };
        self.marks.store(new, Relaxed);
        (old == 0) != (new == 0)
    }
}

/// See the module.
pub struct Radix {
    root: AtomicUsize,
    lock: SpinLock<()>,
}

impl Default for Radix {
    fn default() -> Self {
        Self::new()
    }
}

#[inline]
fn node<'a>(slot: usize) -> &'a Node {
    // SAFETY: private to this file, called on words that hold a node's address (PAGE clear, not zero),
    // which `insert` wrote from the slab; stale ones still lie in type-stable memory (module doc).
    unsafe { &*((slot & !(SLOTS - 1)) as *const Node) }
}

#[inline]
fn is_page(slot: usize) -> bool {
    slot & PAGE != 0
}

#[inline]
fn page(pfn: Pfn) -> usize {
    (pfn.0 as usize) << 1 | PAGE
}

#[inline]
fn pfn(slot: usize) -> Pfn {
    Pfn((slot >> 1) as u64)
}

#[inline]
fn height(root: usize) -> u32 {
    if is_page(root) {
        0
    } else {
        (root as u32 >> 1) & 31
    }
}

#[inline]
fn root_word(slot: usize, height: u32) -> usize {
    if height == 0 {
        slot
    } else {
        slot | (height as usize) << 1
    }
}

#[inline]
fn digit(index: u64, level: u32) -> usize {
    (index >> (BITS * level)) as usize & (SLOTS - 1)
}

/// Whether a tree of this height has room for `index`.
#[inline]
fn reaches(height: u32, index: u64) -> bool {
    index >> (BITS * height) == 0
}

impl Radix {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            root: AtomicUsize::new(0),
            lock: SpinLock::new(Class::FileCache, ()),
        }
    }

    /// The frame at `index`; a hint unless the lock is held. Interrupts are off, or the lock is held.
    #[inline]
    pub fn peek(&self, index: u64) -> Option<Pfn> {
        let leaf = self.peek_leaf(index)?;
        let slot = match leaf {
            Leaf::Root(slot) => slot, // always a page
            Leaf::Node(n) => n.slots[digit(index, 0)].load(Acquire),
        };
        is_page(slot).then(|| pfn(slot))
    }

    /// Every frame at `first..=last`, which share their upper bits (one leaf node), under the rules of
    /// [`Self::peek`].
    #[inline]
    pub fn peek_run(&self, first: u64, last: u64, mut f: impl FnMut(u64, Pfn)) {
        debug_assert!(first >> BITS == last >> BITS);
        match self.peek_leaf(first) {
            None => {}
            Some(Leaf::Root(slot)) => f(0, pfn(slot)),
            Some(Leaf::Node(n)) => {
                for index in first..=last {
                    let slot = n.slots[digit(index, 0)].load(Acquire);
                    if is_page(slot) {
                        f(index, pfn(slot));
                    }
                }
            }
        }
    }

    #[inline]
    fn peek_leaf(&self, index: u64) -> Option<Leaf<'_>> {
        let root = self.root.load(Acquire);
        if root == 0 || !reaches(height(root), index) {
            return None;
        }
        if is_page(root) {
            return Some(Leaf::Root(root));
        }
        let mut at = node(root);
        for level in (1..height(root)).rev() {
            let slot = at.slots[digit(index, level)].load(Acquire);
            if slot == 0 || is_page(slot) {
                return None;
            }
            at = node(slot);
        }
        Some(Leaf::Node(at))
    }

    /// Takes the lock.
    #[inline]
    pub fn lock<H: Hw>(&self, hw: H) -> RadixGuard<'_, H> {
        RadixGuard {
            radix: self,
            hw,
            _lock: self.lock.lock(hw),
        }
    }
}

enum Leaf<'a> {
    Root(usize),
    Node(&'a Node),
}

/// The right to change.
pub struct RadixGuard<'a, H: Hw> {
    radix: &'a Radix,
    hw: H,
    _lock: SpinGuard<'a, (), H>,
}

/// Nodes made ready for one insertion.
struct Spare<H: Hw>(H, [Option<NonNull<Node>>; MAX_HEIGHT as usize + 1]);

impl<H: Hw> Spare<H> {
    fn take(&mut self) -> usize {
        match self.1.iter_mut().find_map(Option::take) {
            Some(n) => n.as_ptr() as usize,
            None => unreachable!("nodes are counted before an insertion begins"),
        }
    }
}

impl<H: Hw> Drop for Spare<H> {
    fn drop(&mut self) {
        for n in self.1.iter_mut().filter_map(Option::take) {
            // SAFETY: from the slab, not used, still empty.
            unsafe { slab::free(self.0, n) };
        }
    }
}

impl<H: Hw> RadixGuard<'_, H> {
    /// The frame at `index`.
    #[inline]
    pub fn get(&self, index: u64) -> Option<Pfn> {
        self.radix.peek(index)
    }

    /// Puts a frame where none is, or tells which one is there. `NoFrame` changes nothing; an offset above
    /// 2^54 is `NoFrame`, too.
    #[inline]
    pub fn insert(&mut self, index: u64, frame: Pfn) -> Result<Option<Pfn>, NoFrame> {
        match self.radix.peek_leaf(index) {
            Some(Leaf::Root(there)) => Ok(Some(pfn(there))),
            Some(Leaf::Node(n)) => {
                let slot = &n.slots[digit(index, 0)];
                let there = slot.load(Relaxed);
                if there != 0 {
                    return Ok(Some(pfn(there)));
                }
                slot.store(page(frame), Release);
                n.used.store(n.used.load(Relaxed) + 1, Relaxed);
                Ok(None)
            }
            None => self.insert_slow(index, frame).map(|()| None),
        }
    }

    /// The leaf node for `index` is missing.
    #[inline(never)]
    fn insert_slow(&mut self, index: u64, frame: Pfn) -> Result<(), NoFrame> {
        let mut root = self.radix.root.load(Relaxed);
        let mut tall = if root == 0 { 0 } else { height(root) };
        let want = (0..=MAX_HEIGHT)
            .find(|&h| reaches(h, index))
            .ok_or(NoFrame)?
            .max(tall);
        let mut spare = self.prepare(root, tall, want, index)?;
        if root == 0 {
            // An empty tree is made as tall as the index needs.
            root = if want == 0 {
                page(frame)
            } else {
                root_word(spare.take(), want)
            };
            tall = want;
        }
        while tall < want {
            let top = spare.take();
            let n = node(top);
            n.slots[0].store(slot_of_root(root), Relaxed);
            n.used.store(1, Relaxed);
            n.set_mark(
                0,
                is_page(root) || node(slot_of_root(root)).marks.load(Relaxed) != 0,
            );
            tall += 1;
            root = root_word(top, tall);
        }
        if tall > 0 {
            let mut at = node(root);
            for level in (1..tall).rev() {
                let slot = &at.slots[digit(index, level)];
                let mut down = slot.load(Relaxed);
                if down == 0 {
                    down = spare.take();
                    slot.store(down, Release);
                    at.used.store(at.used.load(Relaxed) + 1, Relaxed);
                }
                at = node(down);
            }
            at.slots[digit(index, 0)].store(page(frame), Release);
            at.used.store(at.used.load(Relaxed) + 1, Relaxed);
        }
        self.radix.root.store(root, Release);
        Ok(())
    }

    /// Allocates the nodes that `insert` will need.
    fn prepare(&self, root: usize, tall: u32, want: u32, index: u64) -> Result<Spare<H>, NoFrame> {
        // Levels above the old root, and levels of the path below where it ends. Level h node: digit h-1.
        let need = if root == 0 {
            want
        } else {
            let above = want - tall;
            let mut have = 0;
            if above == 0 && tall > 0 {
                let mut at = node(root);
                have = 1;
                for level in (1..tall).rev() {
                    let slot = at.slots[digit(index, level)].load(Relaxed);
                    if slot == 0 {
                        break;
                    }
                    have += 1;
                    at = node(slot);
                }
                tall - have
            } else {
                // The index is outside the old root's reach: its path is new below the new top.
                above + want.saturating_sub(1) - have
            }
        };
        let mut spare = Spare(self.hw, [None; MAX_HEIGHT as usize + 1]);
        for _ in 0..need {
            let n = slab::alloc(self.hw).ok_or(NoFrame)?;
            match spare.1.iter_mut().find(|s| s.is_none()) {
                Some(s) => *s = Some(n),
                None => {
                    // SAFETY: just allocated, unused.
                    unsafe { slab::free(self.hw, n) };
                    return Err(NoFrame);
                }
            }
        }
        Ok(spare)
    }

    /// The nodes that lead to the frame at `index`, by level, how many, and the frame.
    fn path(&self, index: u64) -> Option<([usize; MAX_HEIGHT as usize], u32, Pfn)> {
        let mut word = self.radix.root.load(Relaxed);
        if word == 0 || !reaches(height(word), index) {
            return None;
        }
        let mut path = [0usize; MAX_HEIGHT as usize];
        let tall = height(word);
        for level in (0..tall).rev() {
            if word == 0 {
                return None;
            }
            path[level as usize] = word;
            word = node(word).slots[digit(index, level)].load(Relaxed);
        }
        is_page(word).then(|| (path, tall, pfn(word)))
    }

    /// Marks `frame`, if it is at `index`.
    pub fn mark(&mut self, index: u64, frame: Pfn) {
        // Often it is marked.
        if let Some(Leaf::Node(n)) = self.radix.peek_leaf(index)
            && n.marks.load(Relaxed) >> digit(index, 0) & 1 != 0
        {
            return;
        }
        if self.get(index) == Some(frame) {
            self.set_mark(index, true);
        }
    }

    /// Takes the mark of the frame at `index` away.
    pub fn unmark(&mut self, index: u64) {
        self.set_mark(index, false);
    }

    fn set_mark(&mut self, index: u64, on: bool) {
        if let Some((path, tall, _)) = self.path(index) {
            let _ = (0..tall)
                .find(|&level| !node(path[level as usize]).set_mark(digit(index, level), on));
        }
    }

    /// Takes the frame at `index` out, and frees nodes that are empty then.
    pub fn remove(&mut self, index: u64) -> Option<Pfn> {
        let (path, tall, frame) = self.path(index)?;
        if tall == 0 {
            self.radix.root.store(0, Release);
            return Some(frame);
        }
        self.unmark(index);
        for level in 0..tall {
            let n = node(path[level as usize]);
            n.slots[digit(index, level)].store(0, Release);
            let used = n.used.load(Relaxed) - 1;
            n.used.store(used, Relaxed);
            if used != 0 {
                return Some(frame);
            }
            if level + 1 == tall {
                self.radix.root.store(0, Release);
            }
            // SAFETY: from the slab; empty, and nothing leads here but words that stale readers hold. The
            // slot above is cleared in the next round, before the lock is given up.
            unsafe { slab::free(self.hw, NonNull::from(n)) };
        }
        Some(frame)
    }

    /// The first frame at or after `from`.
    pub fn next(&self, from: u64) -> Option<(u64, Pfn)> {
        self.search(from, |_| !0)
    }

    /// The first with a mark.
    pub fn next_marked(&self, from: u64) -> Option<(u64, Pfn)> {
        self.search(from, |n| n.marks.load(Relaxed))
    }

    /// The first frame at or after `from`, where only slots in which `which` has a bit are looked at.
    #[inline(always)]
    fn search(&self, from: u64, which: fn(&Node) -> u64) -> Option<(u64, Pfn)> {
        let root = self.radix.root.load(Relaxed);
        if root == 0 || !reaches(height(root), from) {
            return None;
        }
        if is_page(root) {
            return Some((0, pfn(root)));
        }
        scan(node(root), height(root) - 1, from, 0, which)
    }
}

/// The first frame at or after `from` under a node of which `level` is the digit and `base` the offset.
fn scan(n: &Node, level: u32, from: u64, base: u64, which: fn(&Node) -> u64) -> Option<(u64, Pfn)> {
    let step = 1 << (BITS * level);
    let first = (from.saturating_sub(base) / step) as usize;
    if first >= SLOTS {
        return None;
    }
    let mut left = which(n) >> first << first;
    while left != 0 {
        let i = left.trailing_zeros() as usize;
        left &= left - 1;
        let slot = n.slots[i].load(Relaxed);
        let at = base + i as u64 * step;
        if slot == 0 {
            continue;
        }
        if level == 0 {
            return Some((at, pfn(slot)));
        }
        if let Some(hit) = scan(node(slot), level - 1, from, at, which) {
            return Some(hit);
        }
    }
    None
}

/// A root as it stands in a slot above.
fn slot_of_root(root: usize) -> usize {
    if is_page(root) {
        root
    } else {
        root & !(SLOTS - 1)
    }
}

#[cfg(all(test, feature = "sim"))]
#[path = "cache_tests.rs"]
mod tests;
