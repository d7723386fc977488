//! Entries that cannot be (SPEC section 6): whoever meets one reports it, touches nothing behind it, and goes on.

mod bare;
mod common;
mod lab;

use bare::{NOWHERE, done_with, frames, map, plant_entry};
use common::{BASE, P, R, W};
use lab::{ANON, BUS, Lab, MINOR, NONE, PRIVATE, SHARED, slots};
use linux_raw_sys::general as sys;
use mm::gup::{self, GupFlags};
use mm::hw::Warning;
use mm::ops;
use mm::phys::Hw;
use mm::sim::mmu::Want;
use mm::table::pte::bit;
use mm::table::{Caching, LeafBits, Pte, walk};
use mm::{Errno, Pfn};

/// What was reported since the last time, each of `va`.
fn reported(lab: &Lab, va: u64, e: Pte) -> usize {
    let all = lab.sim.warnings();
    for w in &all {
        let Warning::BadEntry {
            va: at,
            entry,
            start,
            ..
        } = *w
        else {
            panic!("{w:?}");
        };
        assert_eq!((at, Pte(entry), start), (va, e, BASE));
    }
    all.len()
}

/// A frame that has a descriptor and was never the allocator's, as those of a hole between two pieces of memory.
const NOBODYS: u64 = 0;

/// PFN-1, PFN-8: an entry of a frame that has no descriptor, or nobody's, in an ordinary mapping. Nobody looks for one: each who
/// meets it says so and goes on as if nothing was counted there.
#[test]
fn pfn_8_an_entry_that_leads_nowhere() {
    let shared = SHARED | sys::MAP_ANONYMOUS;
    let kinds = [(ANON, 0), (ANON, bit::MLOCKED), (shared, 0)];
    let each = |frame| kinds.iter().map(move |&(kind, marks)| (frame, kind, marks));
    for (frame, kind, marks) in [NOWHERE, NOBODYS].into_iter().flat_map(each) {
        let lab = Lab::new();
        let (s, wait) = (lab.space(), &mut lab.sim.can_wait());
        let va = lab.map(s, 0, 3, R | W, kind);
        lab.store_each(s, va, 3, 1);
        let at = va + P;
        lab.dontneed(s, at, 1);
        let rss = s.rss_total();
        let bad = Pte::leaf(Pfn(frame), LeafBits::user(true, false, false));
        plant_entry(&lab, s, at, bad.with(marks | bit::SOFT_DIRTY));
        let bad = lab.entry(s, at);
        let read = gup::get_user_pages_remote(s, wait, at, NONE, slots(1));
        assert_eq!(read.err(), Some(Errno::EEXIST));
        assert_eq!(reported(&lab, at, bad), 1, "gup");
        // Without a lock nobody knows the VMA: it is left to those who do.
        lab.run(s);
        let fast = gup::get_user_pages_fast(s, wait, va, NONE, slots(3));
        assert_eq!(fast.map(|pages| pages.len()).ok(), Some(1));
        assert_eq!(reported(&lab, at, bad), 1, "gup fast");
        if kind == ANON && frame == NOWHERE {
            assert_eq!(lab.fault(s, at, Want::Write, true), BUS);
            assert!(reported(&lab, at, bad) > 0, "a write");
        }
        // Who has nothing to ask of a page passes.
        lab.protect(s, va, 3, R);
        lab.protect(s, va, 3, R | W);
        ops::mlock(s, wait, va, P, sys::MLOCK_ONFAULT).unwrap();
        ops::mlock(s, wait, at, P, sys::MLOCK_ONFAULT).unwrap();
        ops::munlock(s, wait, va, 2 * P).unwrap();
        let bad = lab.entry(s, at);
        assert_eq!(bad.pfn(), Pfn(frame));
        let child = lab.fork(s);
        // A child looks at what its parent cannot find again. Where there is a descriptor the copy is in nobody's way, and who
        // takes either away says so.
        let seen = usize::from(kind == ANON && frame == NOWHERE);
        assert_eq!(reported(&lab, at, bad), seen, "fork");
        assert_eq!(lab.load(child, va + 2 * P), Some(3));
        if kind == ANON {
            assert!(lab.entry(child, at).special(), "nobody believes it twice");
        }
        lab.exit(child);
        lab.sim.warnings();
        let bad = lab.entry(s, at);
        let met = lab.sim.phys().bad_entries();
        lab.unmap(s, va, 3);
        assert_eq!(reported(&lab, at, bad), 1, "zap");
        assert_eq!(lab.sim.phys().bad_entries(), met + 1);
        assert_eq!((rss, s.rss_total()), (2, 0));
        lab.done();
    }
}

/// PFN-8: a write to what an entry shows of a frame that is nobody's takes a copy, as of any frame that nobody counts.
#[test]
fn pfn_8_a_write_to_what_is_nobodys() {
    let lab = Lab::new();
    let s = lab.space();
    lab.sim.frames_born(Pfn(NOBODYS), mm::addr::Order::ZERO);
    lab.poke(Pfn(NOBODYS), 30);
    for marks in [0, bit::MLOCKED] {
        let va = lab.map(s, 0, 1, R | W, ANON);
        let bad = Pte::leaf(Pfn(NOBODYS), LeafBits::user(true, false, false)).with(marks);
        plant_entry(&lab, s, va, bad);
        lab.store(s, va + 1, 3);
        assert_eq!((lab.load(s, va), reported(&lab, va, bad)), (Some(30), 1));
        assert_eq!(s.rss_total(), 1);
        let d = lab.sim.desc(Pfn(NOBODYS));
        assert_eq!((d.ref_count(), d.map_count()), (0, 0));
        lab.unmap(s, va, 1);
    }
    lab.exit(s);
    lab.done();
}

/// PFN-8: the same of huge leaves, whose first page may be a folio's and a later one nobody's.
#[test]
fn pfn_8_a_huge_leaf_that_leads_nowhere() {
    let lab = Lab::new();
    let (s, wait) = (lab.space(), &mut lab.sim.can_wait());
    let va = lab.map(s, 0, 512, R | W, ANON);
    let end = lab.sim.frames_end();
    let bits = LeafBits::user(true, true, false);
    for (first, page) in [(NOWHERE, 0), (NOBODYS, 0), (end - 8, 8), (end - 8, 500)] {
        let leaf = Pte::leaf(Pfn(first), bits).with(bit::PS);
        let i = walk::index(va, 2);
        let table = || s.tables.huge_table_alloc(va, 2, &lab::Sure).unwrap();
        table().install(i, leaf);
        let at = va + page * P;
        for flags in [NONE, GupFlags::WRITE] {
            let got = gup::get_user_pages_remote(s, wait, at, flags, slots(1));
            assert_eq!(got.err(), Some(Errno::EEXIST), "{first:#x} {page}");
            assert_eq!(reported(&lab, at, leaf), 1);
        }
        lab.run(s);
        let fast = gup::get_user_pages_fast(s, wait, at, NONE, slots(1));
        assert_eq!(fast.err(), Some(Errno::EEXIST));
        assert_eq!(reported(&lab, at, leaf), 1, "by the slow way");
        table().take(i);
    }
    lab.done();
}

/// PFN-1, PFN-8: a bare frame where no driver has put one, and in a private window one that is not the frame of its page.
#[test]
fn pfn_8_a_frame_that_nobody_mapped() {
    let lab = Lab::new();
    let f = frames(&lab, 30);
    let s = lab.space();
    let raw = |n: u64| {
        Pte::raw(
            Pfn(f.pfn().0 + n),
            LeafBits::user(true, false, false),
            Caching::Back,
        )
    };
    let va = lab.map(s, 0, 2, R | W, ANON);
    let zero = lab.load(s, va + P);
    plant_entry(&lab, s, va, raw(0));
    lab.unmap(s, va, 2);
    assert_eq!(
        (reported(&lab, va, raw(0)), zero),
        (1, Some(0)),
        "the zero page may"
    );
    // As any special entry it is copied by a write, and counted by nobody.
    let va = lab.map(s, 0, 1, R | W, ANON);
    plant_entry(&lab, s, va, raw(0));
    lab.store(s, va + 1, 3);
    assert_eq!((lab.load(s, va), reported(&lab, va, raw(0))), (Some(30), 1));
    lab.unmap(s, va, 1);
    for (kind, wrong) in [(SHARED, 0), (PRIVATE, 1)] {
        let va = map(&lab, s, 2, R, kind, f.pfn());
        plant_entry(&lab, s, va, raw(1));
        let child = lab.fork(s);
        assert_eq!(reported(&lab, va, raw(1)), wrong, "fork");
        lab.exit(child);
        lab.sim.warnings();
        lab.unmap(s, va, 2);
        assert_eq!(reported(&lab, va, raw(1)), wrong, "zap");
    }
    lab.exit(s);
    done_with(lab, f);
}

/// PFN-8, WALK-2: bits of no kind: the access is SIGBUS and not tried for ever, `gup` is refused, a child does not get them, and
/// they go with the mapping.
#[test]
fn pfn_8_bits_of_no_kind() {
    let lab = Lab::new();
    let file = lab.file(4);
    let s = lab.space();
    for bad in [Pte(7 << 9), Pte(1 << 63 | 1 << 9), Pte(3 << 9 | 7 << 1)] {
        for (kind, file) in [(ANON, None), (SHARED, Some(file)), (PRIVATE, Some(file))] {
            let va = lab.map_file(s, 0, 4, R | W, kind, file);
            lab.store(s, va + P, 9);
            plant_entry(&lab, s, va, bad);
            for want in [Want::Read, Want::Write] {
                assert_eq!(lab.fault(s, va, want, false), BUS, "{bad:?} {want:?}");
                assert_eq!(reported(&lab, va, bad), 1);
            }
            let wait = &mut lab.sim.can_wait();
            let got = gup::get_user_pages_remote(s, wait, va, NONE, slots(1));
            assert_eq!(
                (got.err(), reported(&lab, va, bad)),
                (Some(Errno::EFAULT), 1)
            );
            lab.protect(s, va, 4, R);
            assert_eq!(lab.load(s, va + P), Some(9));
            let child = lab.fork(s);
            let private = usize::from(kind != SHARED);
            assert_eq!(reported(&lab, va, bad), private, "fork");
            let read = lab.fault(child, va, Want::Read, false);
            assert_eq!(read, MINOR, "the child's is empty");
            lab.exit(child);
            lab.unmap(s, va, 4);
            assert_eq!(reported(&lab, va, bad), 1, "zap");
            assert_eq!(s.rss_total(), 0);
        }
    }
    lab.done();
}
