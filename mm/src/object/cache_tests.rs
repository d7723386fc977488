//! The radix tree against a map; the cache against counts of frames; truncation against mappings.

use super::*;
use crate::addr::{PAGE_SIZE as P, UserRange};
use crate::object::{CacheError, FileObject};
use crate::phys::folio::MAPPING_ANON;
use crate::phys::{Folio, Use};
use crate::rmap::{Owner, walk_folio};
use crate::sim::{Config, Machine, Sim};
use crate::space::{AddressSpace, NewVma, RssKind, VmaFlags};
use crate::table::{LeafBits, PtGuard, Pte, TlbBatch};
use alloc::sync::Arc;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn machine(frames: u64) -> Machine {
    Sim::new(Config {
        mischief: 0,
        frames,
        ..Config::default()
    })
    .on(0)
}

fn index() -> impl Strategy<Value = u64> {
    prop_oneof![0..200u64, (0..40u64).prop_map(|s| 1 << s), 0..1u64 << 20]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_radix_tree_is_a_map(ops in prop::collection::vec((index(), 0..6u8, 0..5u64), 1..150), from in index()) {
        let sim = machine(512);
        let tree = Radix::new();
        let mut model = BTreeMap::new();
        // Those with a mark; a frame without a node has one.
        let (mut marked, mut alone) = (BTreeSet::new(), false);
        for (i, (index, what, fail)) in ops.into_iter().enumerate() {
            let mut t = tree.lock(sim);
            prop_assert_eq!(t.get(index), model.get(&index).copied());
            // Likely one that is there.
            let near = model.range(index..).next().map_or(index, |m: (&u64, &Pfn)| *m.0);
            if what < 3 {
                if let Some(there) = t.get(index) {
                    prop_assert_eq!(t.insert(index, Pfn(9999)), Ok(Some(there)));
                } else {
                    sim.phys().fail_after(fail);
                    let r = t.insert(index, Pfn(i as u64 + 1));
                    sim.phys().fail_after(0);
                    if let Ok(there) = r {
                        prop_assert_eq!(there, None);
                        alone = model.is_empty() && index == 0;
                        model.insert(index, Pfn(i as u64 + 1));
                        marked.extend(alone.then_some(0));
                    }
                }
            } else if what == 3 {
                // As of another frame it has no effect.
                t.mark(near, model.get(&near).copied().filter(|_| fail > 0).unwrap_or(Pfn(9999)));
                marked.extend((fail > 0 && model.contains_key(&near)).then_some(near));
            } else if what == 4 && !alone {
                t.unmark(near);
                marked.remove(&near);
            } else {
                prop_assert_eq!(t.remove(near), model.remove(&near));
                marked.remove(&near);
            }
            let found: Vec<_> = std::iter::successors(t.next_marked(0), |&(i, _)| t.next_marked(i + 1)).collect();
            let want: Vec<_> = marked.iter().map(|i| (*i, model[i])).collect();
            prop_assert_eq!(found, want);
            let found: Vec<_> = std::iter::successors(t.next(0), |&(i, _)| t.next(i + 1)).collect();
            let want: Vec<_> = model.iter().map(|(&i, &p)| (i, p)).collect();
            prop_assert_eq!(found, want);
        }
        let mut run = Vec::new();
        let first = from & !63;
        tree.peek_run(first, first + 63, |i, p| run.push((i, p)));
        let want: Vec<_> = model.range(first..first + 64).map(|(&i, &p)| (i, p)).collect();
        prop_assert_eq!(run, want);
        let mut t = tree.lock(sim);
        for &i in model.keys() {
            prop_assert!(t.remove(i).is_some());
        }
        drop(t);
        slab::shrink(sim);
        prop_assert_eq!(slab::frames(sim), 0);
    }
}

#[test]
fn not_one_frame_is_lost() {
    let sim = machine(1024);
    let mut wait = sim.can_wait();
    let free = sim.phys().free_frames(sim);
    let o = FileObject::new(sim).unwrap();
    assert!(matches!(o.get_or_create(0), Err(CacheError::Beyond)));
    o.set_size(&mut wait, 300 * P + 5);
    for i in [0, 5, 64, 299, 300] {
        let f = o.get_or_create(i).unwrap();
        assert!(o.owns(f.folio(), i));
        // SAFETY: the test owns the machine; a whole page lies behind the pointer.
        unsafe { f.ptr().write_bytes(7, P as usize) };
    }
    assert!(matches!(o.get_or_create(301), Err(CacheError::Beyond)));
    assert_eq!(o.pages(), 5);
    let held = o.lookup(64).unwrap();
    o.set_size(&mut wait, 5 * P + 100);
    assert_eq!(o.pages(), 2);
    assert!(!o.owns(held.folio(), 64), "the page is nobody's now");
    drop(held);
    let last = o.lookup(5).unwrap();
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(last.ptr(), P as usize) };
    assert_eq!((bytes[99], bytes[100], bytes[4095]), (7, 0, 0));
    drop(last);
    o.set_size(&mut wait, 10 * P);
    o.punch_hole(&mut wait, 50, P + 1);
    let f = o.lookup(0).unwrap();
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(f.ptr(), P as usize) };
    assert_eq!((bytes[49], bytes[50]), (7, 0));
    drop(f);
    o.punch_hole(&mut wait, 0, 6 * P);
    assert_eq!(o.pages(), 0);
    drop(o.write_page(20).unwrap());
    o.set_size(&mut wait, o.size());
    assert_eq!(o.pages(), 0, "what was written past the end and not kept");
    drop(o.write_page(20).unwrap());
    o.extend(20 * P + 1);
    assert!(o.get_or_create(20).is_ok());
    drop(o);
    slab::shrink(sim);
    assert_eq!(sim.phys().free_frames(sim), free);
}

#[test]
fn truncation_takes_the_mappings_away_and_the_walk_finds_those_that_stay() {
    const BASE: u64 = 0x4000_0000;
    let sim = machine(1024);
    let mut wait = sim.can_wait();
    let o = FileObject::new(sim).unwrap();
    o.set_size(&mut wait, 8 * P);
    let space = AddressSpace::new(sim).unwrap();
    let range = UserRange::from_len(BASE, 8 * P).unwrap();
    {
        let mut g = space.mmap_write(&mut wait);
        let flags = VmaFlags::READ | VmaFlags::SHARED | VmaFlags::MAYSHARE;
        g.insert(NewVma {
            range,
            flags,
            pgoff: 0,
            object: Some(o.clone()),
        })
        .unwrap();
        for i in 0..8 {
            let folio = o.get_or_create(i).unwrap();
            let mut t = space.tables.pte_table_alloc(BASE + i * P, &g).unwrap();
            let bits = LeafBits::user(true, false, false);
            folio.desc().map_inc();
            t.install(
                PtGuard::<Machine>::index(BASE + i * P),
                Pte::leaf(folio.pfn(), bits),
            );
            space.add_rss(RssKind::Shmem, 1);
            let _ = folio.into_folio();
        }
        let family = g.find(BASE).unwrap().join_family();
        // A private copy of page 6, as a write would have left it.
        let mut t = space.tables.pte_table(BASE + 6 * P, &g).unwrap();
        let old = t.take(PtGuard::<Machine>::index(BASE + 6 * P));
        let was = Folio::new(sim, old.pfn());
        was.desc().map_dec();
        was.put();
        space.add_rss(RssKind::Shmem, -1);
        let frame = sim.phys().alloc(sim, Use::Movable).unwrap();
        let copy = Folio::init_anon(sim, frame, family.word(), 6);
        assert_eq!(copy.mapping(), family.word() | MAPPING_ANON);
        space.add_rss(RssKind::Anon, 1);
        let bits = LeafBits::user(true, false, false);
        t.install(
            PtGuard::<Machine>::index(BASE + 6 * P),
            Pte::leaf(copy.pfn(), bits),
        );
    }
    assert_eq!(space.rss_total(), 8);
    let mut seen = 0;
    let folio = o.lookup(3).unwrap();
    walk_folio(sim, Owner::File(&o), folio.folio(), |s, v, va, t, i| {
        assert_eq!((s.id(), v.start(), va), (space.id(), BASE, BASE + 3 * P));
        assert_eq!(t.get(i).pfn(), folio.pfn());
        seen += 1;
        true
    });
    assert_eq!(seen, 1);
    drop(folio);

    o.punch_hole(&mut wait, 5 * P, 7 * P);
    assert_eq!(space.rss(RssKind::Shmem), 6);
    assert_eq!(space.rss(RssKind::Anon), 1, "the copy is the process's own");
    o.set_size(&mut wait, P + 1);
    assert_eq!(space.rss(RssKind::Shmem), 2);
    assert_eq!(space.rss(RssKind::Anon), 0, "truncation takes copies, too");
    o.set_size(&mut wait, 0);
    assert_eq!((space.rss_total(), o.pages()), (0, 0));
    assert_eq!(space.rss_peak(), 8);

    let mut g = space.mmap_write(&mut wait);
    let gone = g.unlink_all().unlink_edges();
    let mut batch = TlbBatch::begin(&wait, &space.tlb);
    let tables = &space.tables;
    tables.free_tables(gone.span(), gone.bounds(), &mut batch, &gone);
    drop((batch, gone, g));
    drop(space);
    assert_eq!(Arc::strong_count(&o), 1);
    sim.check();
}

/// Free frames, once every slab has the frame that it keeps.
fn free(sim: Machine) -> u64 {
    let warm = FileObject::new_secret(sim);
    warm.extend(P << 20);
    drop((warm.get_or_create(0), warm.get_or_create(1 << 18)));
    drop(warm);
    crate::phys::slab::shrink(sim);
    sim.phys().free_frames(sim)
}

/// VMA-11: a secret page is out of the kernel's reach until its last reference goes, and is clean then.
#[test]
fn a_secret_is_out_of_reach_and_ends_as_zeroes() {
    use crate::phys::flag;
    let sim = machine(512);
    let before = free(sim);
    let object = FileObject::new_secret(sim);
    object.extend(4 * P);
    let page = object.get_or_create(1).expect("memory");
    let again = object.get_or_create(1).expect("there");
    assert_eq!(page.pfn(), again.pfn());
    drop(again);
    assert!(sim.desc(page.pfn()).has(flag::SECRET));
    // Its process writes it.
    let bytes = sim.ram().ptr(page.pfn());
    // SAFETY: a frame of this machine, 4096 bytes, which nobody else uses.
    unsafe { bytes.write_bytes(0x55, P as usize) };
    let pfn = page.pfn();
    drop(object);
    // SAFETY: as above.
    assert_eq!(unsafe { bytes.read() }, 0x55, "a reference keeps it");
    drop(page);
    assert!(!sim.desc(pfn).has(flag::SECRET));
    // SAFETY: as above; free, and nobody has taken it since.
    let left = unsafe { std::slice::from_raw_parts(bytes.cast_const(), P as usize) };
    assert!(left.iter().all(|b| *b == 0));
    assert_eq!(free(sim), before, "frames");
    sim.check();
}

/// The machine notices what looks at a secret by the direct map.
#[test]
fn a_look_at_a_secret_is_noticed() {
    let sim = machine(512);
    let object = FileObject::new_secret(sim);
    object.extend(P);
    let page = object.get_or_create(0).expect("memory");
    let _ = page.ptr();
    assert!(
        sim.violation()
            .is_some_and(|v| v.contains("left the direct map"))
    );
}

/// No frame for it, or no place in the tree: nothing is left hidden.
#[test]
fn a_secret_that_cannot_be_made_leaves_nothing() {
    let sim = machine(512);
    let before = free(sim);
    for n in 1..4 {
        let object = FileObject::new_secret(sim);
        object.extend(P << 20);
        sim.phys().fail_after(n);
        let made = (0..3)
            .map(|i| object.get_or_create(i << 18))
            .filter(|p| p.is_err());
        assert_eq!(made.count(), 1, "failure {n}");
        sim.phys().fail_after(0);
        drop(object);
        assert_eq!(free(sim), before, "failure {n}");
    }
    sim.check();
}
