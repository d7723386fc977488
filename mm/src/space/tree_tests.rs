//! The tree against a sorted list, gap search against trying every page.

use super::{Overlap, VmaNode, VmaTree, at, height, max_gap};
use proptest::prelude::*;
use std::ptr::NonNull;

const P: u64 = 4096;

/// A tree with its nodes, which live as long as the test.
#[derive(Default)]
struct Bed {
    tree: VmaTree,
    nodes: Vec<(u64, u64, u32, NonNull<VmaNode>)>,
}

impl Bed {
    fn insert(&mut self, start: u64, end: u64, guard: u32) -> Result<(), Overlap> {
        let node = NonNull::from(Box::leak(Box::new(VmaNode::new(start, end, guard))));
        // SAFETY: leaked, so it stays; the bed is the only user.
        unsafe { self.tree.edit().insert(node) }?;
        self.nodes.push((start, end, guard, node));
        self.nodes.sort_by_key(|n| n.0);
        Ok(())
    }

    fn remove(&mut self, i: usize) {
        let (.., node) = self.nodes.remove(i);
        // SAFETY: the bed is the only user.
        unsafe { self.tree.edit() }.remove(node);
    }

    fn check(&self) {
        fn sub(p: *mut VmaNode, parent: *mut VmaNode, out: &mut Vec<u64>) -> (u32, u64) {
            if p.is_null() {
                return (0, 0);
            }
            let n = at(p);
            assert_eq!(n.parent.load(super::Relaxed), parent);
            let l = sub(n.left.load(super::Relaxed), p, out);
            out.push(n.start());
            let r = sub(n.right.load(super::Relaxed), p, out);
            assert!(l.0.abs_diff(r.0) <= 1, "unbalanced");
            assert_eq!(height(p), l.0.max(r.0) + 1);
            assert_eq!(max_gap(p), n.gap().max(l.1).max(r.1));
            (height(p), max_gap(p))
        }
        let mut seen = Vec::new();
        sub(
            self.tree.root.load(super::Relaxed),
            std::ptr::null_mut(),
            &mut seen,
        );
        let want: Vec<u64> = self.nodes.iter().map(|n| n.0).collect();
        assert_eq!(seen, want);
        let mut list = Vec::new();
        let mut cur = self.tree.first();
        while let Some(p) = cur {
            list.push(at(p.as_ptr()).start());
            cur = at(p.as_ptr()).next();
        }
        assert_eq!(list, want);
        let mut cur = self.tree.last();
        while let Some(p) = cur {
            assert_eq!(list.pop(), Some(at(p.as_ptr()).start()));
            cur = at(p.as_ptr()).prev();
        }
        assert!(list.is_empty());
        assert_eq!(self.tree.count() as usize, want.len());
    }

    /// Whether `start..start+len` is free and ends below the guard of what follows.
    fn free(&self, start: u64, len: u64) -> bool {
        let next = self.nodes.iter().find(|n| n.1 > start);
        next.is_none_or(|&(s, _, g, _)| start + len <= s.saturating_sub(g.into()))
    }
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64, u64, bool),
    Remove(prop::sample::Index),
    Trim(prop::sample::Index, bool),
}

const SPAN: u64 = 160;

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..SPAN, 1..6u64, prop::bool::weighted(0.2)).prop_map(|(s, l, g)| Op::Insert(s, l, g)),
        2 => any::<prop::sample::Index>().prop_map(Op::Remove),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(i, b)| Op::Trim(i, b)),
    ]
}

proptest! {
    #[test]
    fn the_tree_is_a_sorted_list(ops in prop::collection::vec(op(), 0..120), probe in 0..SPAN + 8,
                                 len in 1..24u64, low in 0..SPAN, high in 0..SPAN + 40) {
        let mut bed = Bed::default();
        for op in ops {
            match op {
                Op::Insert(s, l, g) => {
                    let clash = bed.nodes.iter().any(|&(a, b, ..)| s * P < b && (s + l) * P > a);
                    let got = bed.insert(s * P, (s + l) * P, if g { 3 * P as u32 } else { 0 });
                    prop_assert_eq!(got.is_err(), clash);
                }
                Op::Remove(i) if !bed.nodes.is_empty() => bed.remove(i.index(bed.nodes.len())),
                Op::Trim(i, at_start) if !bed.nodes.is_empty() => {
                    let i = i.index(bed.nodes.len());
                    let (s, e, g, node) = bed.nodes[i];
                    if e - s > P {
                        let (s, e) = if at_start { (s + P, e) } else { (s, e - P) };
                        // SAFETY: the bed is the only user.
                        unsafe { bed.tree.edit() }.set_range(node, s, e, g);
                        bed.nodes[i] = (s, e, g, node);
                    }
                }
                _ => {}
            }
            bed.check();
        }
        let va = probe * P + 5;
        let want = bed.nodes.iter().find(|n| n.1 > va).map(|n| n.3);
        prop_assert_eq!(bed.tree.find(va), want);
        prop_assert_eq!(bed.tree.peek(va), want.filter(|n| at(n.as_ptr()).start() <= va));

        let starts = (low..high.saturating_sub(len - 1)).filter(|&s| s + len <= high && bed.free(s * P, len * P));
        let (lowest, highest) = (starts.clone().min(), starts.max());
        prop_assert_eq!(bed.tree.gap_top_down(len * P, low * P, high * P), highest.map(|s| s * P));
        prop_assert_eq!(bed.tree.gap_bottom_up(len * P, low * P, high * P), lowest.map(|s| s * P));
    }
}

#[test]
fn a_stacks_guard_hides_no_gap_of_its_neighbours() {
    let mut bed = Bed::default();
    bed.insert(32 * P, 33 * P, 0).unwrap();
    bed.insert(33 * P, 34 * P, 3 * P as u32).unwrap();
    assert_eq!(bed.tree.gap_top_down(P, 30 * P, 31 * P), Some(30 * P));
    assert_eq!(bed.tree.gap_bottom_up(P, 30 * P, 31 * P), Some(30 * P));
}

#[test]
fn a_thousand_in_order_stay_balanced() {
    let mut bed = Bed::default();
    for i in 0..1000 {
        bed.insert(i * 2 * P, (i * 2 + 1) * P, 0).unwrap();
    }
    bed.check();
    assert!(height(bed.tree.root.load(super::Relaxed)) <= 14);
    while !bed.nodes.is_empty() {
        bed.remove(bed.nodes.len() / 3);
    }
    bed.check();
}

#[test]
fn an_edit_is_seen_by_its_sequence_count() {
    let mut bed = Bed::default();
    let before = bed.tree.seq();
    assert_eq!(before & 1, 0);
    bed.insert(P, 2 * P, 0).unwrap();
    assert!(!bed.tree.unchanged(before));
    // SAFETY: the bed is the only user.
    let edit = unsafe { bed.tree.edit() };
    assert_eq!(bed.tree.seq() & 1, 1);
    drop(edit);
    assert_eq!(bed.tree.seq() & 1, 0);
}
