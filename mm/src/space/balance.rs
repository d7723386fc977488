//! Edits of the tree: links, heights and gap summaries. The tree's module says who may be here.

use super::{Overlap, Ptr, VmaNode, VmaTree, at, height};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering::*};

/// An edit under way; lookups without a lock fail until it is dropped.
#[derive(Debug)]
pub struct TreeEdit<'t> {
    pub(super) tree: &'t VmaTree,
}

impl Drop for TreeEdit<'_> {
    #[inline]
    fn drop(&mut self) {
        let seq = &self.tree.seq;
        seq.store(seq.load(Relaxed) + 1, Release);
    }
}

impl TreeEdit<'_> {
    /// Puts a node at its place.
    ///
    /// # Safety
    /// `node` is in no tree, stays where it is until it was removed, and its memory is type-stable as
    /// the module doc demands.
    pub unsafe fn insert(&mut self, node: NonNull<VmaNode>) -> Result<(), Overlap> {
        let t = self.tree;
        let p = node.as_ptr();
        let n = at(p);
        let (start, end) = (n.start(), n.end());
        let (mut parent, mut prev, mut next) = (null_mut(), null_mut(), null_mut());
        let mut place = &t.root;
        loop {
            let cur = place.load(Relaxed);
            if cur.is_null() {
                break;
            }
            let c = at(cur);
            parent = cur;
            if end <= c.start() {
                next = cur;
                place = &c.left;
            } else if start >= c.end() {
                prev = cur;
                place = &c.right;
            } else {
                return Err(Overlap);
            }
        }
        n.left.store(null_mut(), Relaxed);
        n.right.store(null_mut(), Relaxed);
        n.parent.store(parent, Relaxed);
        n.prev.store(prev, Relaxed);
        n.next.store(next, Relaxed);
        n.height.store(0, Relaxed);
        place.store(p, Release);
        self.next_of(prev).store(p, Relaxed);
        self.prev_of(next).store(p, Relaxed);
        t.count.store(t.count.load(Relaxed) + 1, Relaxed);
        self.retrace(p);
        self.retrace(next);
        Ok(())
    }

    /// Takes a node out.
    pub fn remove(&mut self, node: NonNull<VmaNode>) {
        let t = self.tree;
        let p = node.as_ptr();
        let n = at(p);
        let (left, right) = (n.left.load(Relaxed), n.right.load(Relaxed));
        let (parent, prev, next) = (
            n.parent.load(Relaxed),
            n.prev.load(Relaxed),
            n.next.load(Relaxed),
        );
        let from;
        if left.is_null() || right.is_null() {
            let child = if left.is_null() { right } else { left };
            self.replace_child(parent, p, child);
            from = parent;
        } else {
            // The successor is the leftmost of the right side: it takes the place and the summary,
            // which the retrace of `next` below makes true.
            let s = at(next);
            let s_parent = s.parent.load(Relaxed);
            if s_parent == p {
                from = next;
            } else {
                let s_right = s.right.load(Relaxed);
                self.replace_child(s_parent, next, s_right);
                s.right.store(right, Relaxed);
                at(right).parent.store(next, Relaxed);
                from = s_parent;
            }
            s.left.store(left, Relaxed);
            at(left).parent.store(next, Relaxed);
            s.height.store(n.height.load(Relaxed), Relaxed);
            s.max_gap.store(n.max_gap.load(Relaxed), Relaxed);
            self.replace_child(parent, p, next);
        }
        self.next_of(prev).store(next, Relaxed);
        self.prev_of(next).store(prev, Relaxed);
        t.count.store(t.count.load(Relaxed) - 1, Relaxed);
        self.retrace(from);
        self.retrace(next);
    }

    /// Forgets all nodes; their `next` links stay, for whoever owns them now.
    pub fn clear(&mut self) {
        let t = self.tree;
        for link in [&t.root, &t.first, &t.last] {
            link.store(null_mut(), Release);
        }
        t.count.store(0, Relaxed);
    }

    /// Changes a node's range; order and disjointness stay as they were.
    pub fn set_range(&mut self, node: NonNull<VmaNode>, start: u64, end: u64, guard: u32) {
        let n = at(node.as_ptr());
        debug_assert!(start < end);
        debug_assert!(n.gap_start() <= start);
        n.prepare(start, end, guard);
        self.retrace(node.as_ptr());
        self.retrace(n.next.load(Relaxed));
    }

    /// The link that leads forward out of `prev`, or into the tree.
    fn next_of(&self, prev: Ptr) -> &AtomicPtr<VmaNode> {
        if prev.is_null() {
            &self.tree.first
        } else {
            &at(prev).next
        }
    }

    fn prev_of(&self, next: Ptr) -> &AtomicPtr<VmaNode> {
        if next.is_null() {
            &self.tree.last
        } else {
            &at(next).prev
        }
    }

    /// Hangs `new` where `old` hangs under `parent`.
    fn replace_child(&self, parent: Ptr, old: Ptr, new: Ptr) {
        let place = if parent.is_null() {
            &self.tree.root
        } else if at(parent).left.load(Relaxed) == old {
            &at(parent).left
        } else {
            &at(parent).right
        };
        place.store(new, Release);
        if !new.is_null() {
            at(new).parent.store(parent, Relaxed);
        }
    }

    /// Makes summaries true and heights balanced from `p` up to the first that does not change.
    fn retrace(&self, mut p: Ptr) {
        while !p.is_null() {
            let n = at(p);
            let old = (n.height.load(Relaxed), n.max_gap.load(Relaxed));
            let parent = n.parent.load(Relaxed);
            let (hl, gl) = summary(n.left.load(Relaxed));
            let (hr, gr) = summary(n.right.load(Relaxed));
            let new = if hl > hr + 1 || hr > hl + 1 {
                summary(self.balance(p))
            } else {
                let new = (hl.max(hr) + 1, n.gap().max(gl).max(gr));
                n.height.store(new.0, Relaxed);
                n.max_gap.store(new.1, Relaxed);
                new
            };
            if new == old {
                break;
            }
            p = parent;
        }
    }

    /// Levels a node one of whose sides is two higher than the other; gives the node that took its place.
    #[cold]
    fn balance(&self, p: Ptr) -> Ptr {
        let n = at(p);
        let (left, right) = (n.left.load(Relaxed), n.right.load(Relaxed));
        let (hl, hr) = (height(left), height(right));
        if hl > hr + 1 {
            let l = at(left);
            if height(l.left.load(Relaxed)) < height(l.right.load(Relaxed)) {
                self.rotate(left, true);
            }
            self.rotate(p, false)
        } else {
            let r = at(right);
            if height(r.right.load(Relaxed)) < height(r.left.load(Relaxed)) {
                self.rotate(right, false);
            }
            self.rotate(p, true)
        }
    }

    /// Rotates `p` down (`to_left`: to the left) and gives the node that took its place.
    fn rotate(&self, p: Ptr, to_left: bool) -> Ptr {
        let n = at(p);
        let (up_link, down_link) = if to_left {
            (&n.right, at(n.right.load(Relaxed)))
        } else {
            (&n.left, at(n.left.load(Relaxed)))
        };
        let up = up_link.load(Relaxed);
        let inner_link = if to_left {
            &down_link.left
        } else {
            &down_link.right
        };
        let inner = inner_link.load(Relaxed);
        self.replace_child(n.parent.load(Relaxed), p, up);
        up_link.store(inner, Relaxed);
        if !inner.is_null() {
            at(inner).parent.store(p, Relaxed);
        }
        inner_link.store(p, Relaxed);
        n.parent.store(up, Relaxed);
        summarise(p);
        summarise(up);
        up
    }
}

fn summarise(p: Ptr) {
    let n = at(p);
    let (hl, gl) = summary(n.left.load(Relaxed));
    let (hr, gr) = summary(n.right.load(Relaxed));
    n.height.store(hl.max(hr) + 1, Relaxed);
    n.max_gap.store(n.gap().max(gl).max(gr), Relaxed);
}

/// Height and largest gap of a side.
#[inline]
fn summary(p: Ptr) -> (u32, u64) {
    if p.is_null() {
        (0, 0)
    } else {
        (at(p).height.load(Relaxed), at(p).max_gap.load(Relaxed))
    }
}
