//! Edits against a map of pages, with an allocation failing now and then; merge rules one by one.

use super::*;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE as P};
use crate::object::FileObject;
use crate::sim::{Config, Machine, Sim};
use crate::space::{AddressSpace, GrowError, stack::GUARD_GAP};
use crate::sync::atomic::Ordering::Relaxed;
use crate::table::TlbBatch;
use crate::wait::CanWait;
use alloc::sync::Arc;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

type Space = Arc<AddressSpace<Machine>>;

const BASE: u64 = 0x10_0000_0000;
const RW: VmaFlags = VmaFlags::READ
    .union(VmaFlags::WRITE)
    .union(VmaFlags::MAYREAD)
    .union(VmaFlags::MAYWRITE);

struct Bed {
    sim: Machine,
    space: Space,
    wait: CanWait<Machine>,
}

impl Bed {
    fn new() -> Self {
        let sim = Sim::new(Config {
            mischief: 0,
            frames: 512,
            ..Config::default()
        });
        let sim = sim.on(0);
        let space = AddressSpace::new(sim).unwrap();
        space.layout.mmap_base.store(BASE + 4096 * P, Relaxed);
        Self {
            sim,
            space,
            wait: sim.can_wait(),
        }
    }

    fn map(&mut self, start: u64, pages: u64, flags: VmaFlags) -> Result<(), NoFrame> {
        let range = UserRange::from_len(BASE + start * P, pages * P).unwrap();
        self.map_object(range, flags, range.start() >> PAGE_SHIFT, None)
    }

    fn map_object(
        &mut self,
        range: UserRange,
        flags: VmaFlags,
        pgoff: u64,
        object: Option<Arc<FileObject<Machine>>>,
    ) -> Result<(), NoFrame> {
        let mut g = self.space.mmap_write(&mut self.wait);
        g.insert(NewVma {
            range,
            flags,
            pgoff,
            object,
        })
        .map(drop)
    }

    fn unmap(&mut self, start: u64, pages: u64) -> Result<(), NoFrame> {
        let range = UserRange::from_len(BASE + start * P, pages * P).unwrap();
        let space = self.space.clone();
        let mut g = space.mmap_write(&mut self.wait);
        let gone = g.unlink(range)?.unlink_edges();
        let mut batch = TlbBatch::begin(&self.wait, &space.tlb);
        space
            .tables
            .free_tables(gone.span(), gone.bounds(), &mut batch, &gone);
        Ok(())
    }

    fn protect(&mut self, start: u64, pages: u64, flags: VmaFlags) -> Result<(), NoFrame> {
        let range = UserRange::from_len(BASE + start * P, pages * P).unwrap();
        self.space
            .mmap_write(&mut self.wait)
            .change(range, |v| (v.flags() - VmaFlags::ACCESS) | flags)
    }

    /// (start page, pages, flags, pgoff, has object) of every VMA.
    fn list(&mut self) -> Vec<(u64, u64, VmaFlags, u64, bool)> {
        let g = self.space.mmap_read(&mut self.wait);
        g.all()
            .map(|v| {
                (
                    v.start().wrapping_sub(BASE) / P,
                    v.pages(),
                    v.flags(),
                    v.pgoff(),
                    v.object().is_some(),
                )
            })
            .collect()
    }

    fn shape(&mut self) -> Vec<(u64, u64)> {
        self.list().iter().map(|v| (v.0, v.1)).collect()
    }

    fn clear(&mut self) {
        let space = self.space.clone();
        let mut g = space.mmap_write(&mut self.wait);
        drop(g.unlink_all());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.clear();
        }
    }
}

#[test]
fn neighbours_of_one_kind_become_one() {
    let mut b = Bed::new();
    b.map(0, 2, RW).unwrap();
    b.map(4, 2, RW).unwrap();
    assert_eq!(b.shape(), [(0, 2), (4, 2)]);
    b.map(2, 2, RW).unwrap();
    assert_eq!(b.shape(), [(0, 6)], "the middle joins both");
    b.map(6, 1, RW - VmaFlags::WRITE).unwrap();
    assert_eq!(b.shape(), [(0, 6), (6, 1)], "other rights stay apart");
    b.map(7, 1, RW | VmaFlags::DONTEXPAND).unwrap();
    b.map(8, 1, RW | VmaFlags::DONTEXPAND).unwrap();
    assert_eq!(
        b.shape(),
        [(0, 6), (6, 1), (7, 1), (8, 1)],
        "special ones never merge"
    );
}

#[test]
fn file_mappings_merge_only_where_the_offset_goes_on() {
    let mut b = Bed::new();
    let file = FileObject::new(b.sim).unwrap();
    let other = FileObject::new(b.sim).unwrap();
    let at = |page, n| UserRange::from_len(BASE + page * P, n * P).unwrap();
    b.map_object(at(0, 2), RW, 10, Some(file.clone())).unwrap();
    b.map_object(at(2, 2), RW, 12, Some(file.clone())).unwrap();
    b.map_object(at(4, 2), RW, 15, Some(file.clone())).unwrap();
    b.map_object(at(6, 2), RW, 17, Some(other.clone())).unwrap();
    assert_eq!(b.shape(), [(0, 4), (4, 2), (6, 2)]);
    assert_eq!(file.edges().lock(b.sim).len(), 2);
    b.unmap(1, 1).unwrap();
    assert_eq!(b.list()[1].3, 12, "the upper part keeps its offset");
    assert_eq!(file.edges().lock(b.sim).len(), 3);
    b.clear();
    assert_eq!(file.edges().lock(b.sim).len(), 0);
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn protecting_a_piece_splits_and_protecting_it_back_merges() {
    let mut b = Bed::new();
    b.map(0, 8, RW).unwrap();
    b.protect(2, 3, VmaFlags::READ).unwrap();
    assert_eq!(b.shape(), [(0, 2), (2, 3), (5, 3)]);
    b.protect(2, 3, VmaFlags::READ | VmaFlags::WRITE).unwrap();
    assert_eq!(b.shape(), [(0, 8)]);
    b.protect(0, 8, VmaFlags::READ).unwrap();
    assert_eq!(b.shape(), [(0, 8)]);
    assert_eq!(b.space.counts.data_vm.load(Relaxed), 0);
    assert_eq!(b.space.counts.total_vm.load(Relaxed), 8);
}

#[test]
fn a_stack_keeps_its_gap_from_others_and_from_growth() {
    let mut b = Bed::new();
    let gap = GUARD_GAP / P;
    b.map(2000, 4, RW | VmaFlags::GROWSDOWN).unwrap();
    b.map(100, 2, RW).unwrap();
    let space = b.space.clone();
    let mut g = space.mmap_write(&mut b.wait);
    // Below mmap_base there is room above the stack only for small ones.
    let top = BASE + 4096 * P;
    assert_eq!(g.find_gap(P, 0, P), Some(top - P));
    let below = BASE + 2000 * P - GUARD_GAP;
    assert_eq!(
        g.find_gap(4000 * P, 0, P),
        Some(BASE - 3900 * P),
        "below all"
    );
    assert_eq!(
        g.find_gap(2092 * P, 0, P),
        Some(BASE + 2004 * P),
        "all above the stack"
    );
    assert_eq!(g.find_gap(2093 * P, 0, P), Some(BASE - 1993 * P));
    // A hint inside the guard is not taken, one just below it is.
    let inside = BASE + (2000 - gap) * P;
    assert_ne!(g.find_gap(P, inside, P), Some(inside));
    assert_eq!(inside, below);
    assert_eq!(g.find_gap(P, inside - P, P), Some(inside - P));

    assert!(g.expand_down(BASE + 1990 * P + 17).is_ok());
    assert_eq!(
        g.find(BASE + 1990 * P).unwrap().pgoff(),
        (BASE >> PAGE_SHIFT) + 1990
    );
    let low = 102 + gap;
    assert_eq!(
        g.expand_down(BASE + (low - 1) * P).err(),
        Some(GrowError::Gap)
    );
    assert!(g.expand_down(BASE + low * P).is_ok());
    assert_eq!(g.expand_down(BASE + 99 * P).err(), Some(GrowError::NoStack));
    space.limits.stack.store(P, Relaxed);
    drop(g);
    b.unmap(100, 2).unwrap();
    let mut g = space.mmap_write(&mut b.wait);
    assert_eq!(g.expand_down(BASE + 200 * P).err(), Some(GrowError::Limit));
}

#[test]
fn a_read_lock_is_refused_while_its_vma_is_write_locked() {
    let mut b = Bed::new();
    b.map(0, 2, RW).unwrap();
    b.map(4, 2, RW - VmaFlags::WRITE).unwrap();
    let space = b.space.clone();
    b.sim.on(1);
    let mut other = b.sim.can_wait();
    let held = space.vma_read(&other.irq_off(), BASE + 5 * P).unwrap();
    assert_eq!(held.start(), BASE + 4 * P);
    drop(held);
    b.sim.on(0);
    let g = space.mmap_write(&mut b.wait);
    g.write_lock_vma(g.find(BASE).unwrap());
    b.sim.on(1);
    assert!(space.vma_read(&other.irq_off(), BASE).is_none());
    // Another VMA can be entered although the mmap lock is held for writing.
    assert!(space.vma_read(&other.irq_off(), BASE + 4 * P).is_some());
    assert!(space.vma_read(&other.irq_off(), BASE + 2 * P).is_none());
    b.sim.on(0);
    drop(g);
    assert!(space.vma_read(&other.irq_off(), BASE).is_some());
}

#[test]
fn a_child_joins_the_family_where_the_parent_had() {
    let mut b = Bed::new();
    b.map(0, 2, RW).unwrap();
    b.map(4, 2, RW).unwrap();
    let child = AddressSpace::new_child(&b.space).unwrap();
    let space = b.space.clone();
    let mut wait = b.sim.can_wait();
    {
        let g = space.mmap_write(&mut b.wait);
        g.find(BASE).unwrap().join_family();
        let mut c = child.mmap_write(&mut wait);
        for v in g.all() {
            g.write_lock_vma(v);
            c.insert_copy(v, v.flags()).unwrap();
        }
        assert!(c.find(BASE).unwrap().family().is_some());
        assert!(c.find(BASE + 4 * P).unwrap().family().is_none());
    }
    assert_eq!(space.anon_family().edges().lock(b.sim).len(), 2);
    drop(child.mmap_write(&mut wait).unlink_all());
    assert_eq!(space.anon_family().edges().lock(b.sim).len(), 1);
    assert_eq!(child.counts.total_vm.load(Relaxed), 0);
}

#[derive(Debug, Clone)]
enum Op {
    Map(u64, u64, bool, bool),
    Unmap(u64, u64),
    Protect(u64, u64, bool),
    Join(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let span = (0..40u64, 1..12u64);
    prop_oneof![
        4 => (span.clone(), any::<bool>(), any::<bool>()).prop_map(|((s, n), w, f)| Op::Map(s, n, w, f)),
        2 => span.clone().prop_map(|(s, n)| Op::Unmap(s, n)),
        3 => (span, any::<bool>()).prop_map(|((s, n), w)| Op::Protect(s, n, w)),
        1 => (0..50u64).prop_map(Op::Join),
    ]
}

#[test]
fn a_space_fits_the_heap_of_small_things() {
    assert!(size_of::<AddressSpace<Machine>>() <= 2048);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Every operation either does what the page map does, or fails and leaves every VMA as it was.
    #[test]
    fn edits_are_right_or_did_not_happen(ops in prop::collection::vec((op(), 0..6u64), 1..60)) {
        let mut b = Bed::new();
        let file = FileObject::new(b.sim).unwrap();
        // page → (writable, page of the file)
        let mut model = BTreeMap::<u64, (bool, Option<u64>)>::new();
        let rights = |w| if w { VmaFlags::READ | VmaFlags::WRITE } else { VmaFlags::READ };
        for (op, fail) in ops {
            let before = b.list();
            b.sim.quietly(|| crate::phys::Hw::phys(b.sim).fail_after(fail));
            let done = match op {
                Op::Map(s, n, w, f) => {
                    let flags = (RW - VmaFlags::ACCESS) | rights(w);
                    let range = UserRange::from_len(BASE + s * P, n * P).unwrap();
                    let off = if f { s + 7 } else { range.start() >> PAGE_SHIFT };
                    if (s..s + n).any(|p| model.contains_key(&p)) {
                        Ok(())
                    } else {
                        let r = b.map_object(range, flags, off, f.then(|| file.clone()));
                        if r.is_ok() {
                            model.extend((s..s + n).map(|p| (p, (w, f.then_some(p + 7)))));
                        }
                        r
                    }
                }
                Op::Unmap(s, n) => {
                    let r = b.unmap(s, n);
                    if r.is_ok() {
                        model.retain(|p, _| !(s..s + n).contains(p));
                    }
                    r
                }
                Op::Protect(s, n, w) => {
                    let r = b.protect(s, n, rights(w));
                    if r.is_ok() {
                        for (_, m) in model.range_mut(s..s + n) {
                            m.0 = w;
                        }
                    }
                    r
                }
                Op::Join(p) => {
                    let g = b.space.mmap_read(&mut b.wait);
                    if let Some(v) = g.find(BASE + p * P) {
                        v.join_family();
                    }
                    Ok(())
                }
            };
            b.sim.quietly(|| crate::phys::Hw::phys(b.sim).fail_after(0));
            let after = b.list();
            if done.is_err() {
                prop_assert_eq!(&before, &after);
            }
            let mut seen = BTreeMap::new();
            let mut files = 0;
            for &(s, n, flags, off, f) in &after {
                files += u64::from(f);
                for i in 0..n {
                    let page = f.then_some(off + i);
                    if !f {
                        prop_assert_eq!(off + i, (BASE >> PAGE_SHIFT) + s + i);
                    }
                    seen.insert(s + i, (flags.contains(VmaFlags::WRITE), page));
                }
            }
            prop_assert_eq!(&seen, &model);
            prop_assert_eq!(file.edges().lock(b.sim).len(), files);
            let g = b.space.mmap_read(&mut b.wait);
            let joined = g.all().filter(|v| v.family().is_some()).count() as u64;
            drop(g);
            prop_assert_eq!(b.space.anon_family().edges().lock(b.sim).len(), joined);
            prop_assert_eq!(b.space.counts.total_vm.load(Relaxed), model.len() as u64);
            // What is alike and adjacent is one, unless only a failure kept it apart.
            let data = model.values().filter(|m| m.0).count() as u64;
            prop_assert_eq!(b.space.counts.data_vm.load(Relaxed), data);
        }
        b.clear();
        prop_assert_eq!(Arc::strong_count(&file), 1);
    }
}
