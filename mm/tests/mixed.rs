//! Bare frames beside counted pages, in one VMA that a driver fills entry by entry (SPEC section 6): what is held, copied,
//! forked and taken back of each.

mod bare;
mod common;
mod lab;

use bare::{NOWHERE, args, bare, done_with, frames, map, mixed, mixed_at, refs, ring};
use common::{BASE, P, R, W};
use lab::{ANON, BUS, Lab, MINOR, NONE, PRIVATE, Pins, SHARED, Space, slots};
use linux_raw_sys::general as sys;
use mm::gup::{self, GupFlags, Read, Write};
use mm::ops;
use mm::ops::insert::{Shown, insert_frame, insert_page};
use mm::phys::{Folio, Hw, Use};
use mm::race::Point;
use mm::sim::mmu::Want;
use mm::space::{RssKind, VmaFlags};
use mm::table::Caching;
use mm::table::pte::bit;
use mm::{Errno, Pfn};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// What a driver does to a page between the fault and the copy.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Meanwhile {
    /// It is gone, for good.
    Gone,
    /// It is gone, and back before anybody looks again.
    BackAtOnce,
    /// It is gone, and another is there when the writer looks.
    Another,
    /// It is replaced before the copy.
    Replaced,
    /// It is replaced after the copy, and before that is in place.
    ReplacedLate,
}

/// PFN-7, BUG-27: while a writer copies, another thread drops the page and its driver shows it again. Never zeroes: the
/// access comes again, or the copy is made where nobody can interfere.
#[test]
fn bug_27_a_copy_that_was_raced() {
    use Meanwhile::*;
    for what in [Gone, BackAtOnce, Another, Replaced, ReplacedLate] {
        let lab = Lab::new();
        let (s, sim) = (lab.space(), lab.sim);
        let f = frames(&lab, 50);
        let (one, two) = (f.pfn(), Pfn(f.pfn().0 + 1));
        let frame = |pfn| Shown::Frame {
            pfn,
            caching: Caching::Back,
        };
        let va = mixed(&lab, s, 1, R | W, PRIVATE, &[frame(one)]);
        let runs = AtomicU32::new(0);
        let show = move |pfn| {
            let guard = s.mmap_read(&mut sim.can_wait());
            let vma = guard.find(va).unwrap();
            insert_frame(s, &guard, vma, va, pfn, Caching::Back).unwrap();
        };
        let other = move |at| {
            sim.on(1);
            match at {
                Point::CowUnread if what == BackAtOnce => show(one),
                Point::CowUnread if what == Another => show(two),
                Point::CowUnread => {}
                _ => {
                    let drop = sys::MADV_DONTNEED;
                    ops::madvise(s, &mut sim.can_wait(), va, P, drop).unwrap();
                    if matches!(what, Replaced | ReplacedLate) {
                        show(two);
                    }
                }
            }
        };
        let dropped_at = match what {
            ReplacedLate => Point::CowCopied,
            _ => Point::CowRaw,
        };
        sim.on_pause(move |at| {
            let first = at == dropped_at && runs.fetch_add(1, SeqCst) == 0;
            if first || at == Point::CowUnread {
                std::thread::scope(|t| t.spawn(|| other(at)).join().unwrap());
            }
        });
        let mut last = lab.fault(s, va, Want::Write, true);
        assert_eq!(last, MINOR, "{what:?}: the access comes again");
        if what == BackAtOnce {
            assert!(lab.entry(s, va).is_counted(), "copied at the first fault");
        }
        while last == MINOR && !lab.entry(s, va).writable() {
            let present = lab.entry(s, va).present();
            last = lab.fault(s, va, Want::Write, present);
        }
        sim.no_pause();
        if what == Gone {
            assert_eq!((last, s.rss_total()), (BUS, 0));
        } else {
            let seen = if what == BackAtOnce { 50 } else { 51 };
            assert_eq!(last, MINOR);
            assert_eq!(lab.load(s, va), Some(seen), "{what:?}");
            lab.store(s, va, 1);
            assert_eq!((lab.peek(one), lab.peek(two)), (50, 51));
        }
        lab.exit(s);
        done_with(lab, f);
    }
}

/// PFN-6: the same frame, bare when the copy was begun and counted when it would be put in place: another entry, whose count is
/// not to be lost.
#[test]
fn pfn_6_a_frame_that_is_counted_meanwhile() {
    let lab = Lab::new();
    let (s, sim, page) = (lab.space(), lab.sim, ring(&lab, 7));
    let bare = Shown::Frame {
        pfn: page.pfn(),
        caching: Caching::Back,
    };
    let va = mixed(&lab, s, 1, R | W, PRIVATE, &[bare]);
    let (runs, counted) = (AtomicU32::new(0), page.clone());
    let other = move || {
        sim.on(1);
        let wait = &mut sim.can_wait();
        ops::madvise(s, wait, va, P, sys::MADV_DONTNEED).unwrap();
        let guard = s.mmap_read(wait);
        let vma = guard.find(va).unwrap();
        insert_page(s, &guard, vma, va, &counted, 0).unwrap();
    };
    sim.on_pause(move |at| {
        if at == Point::CowCopied && runs.fetch_add(1, SeqCst) == 0 {
            std::thread::scope(|t| t.spawn(&other).join().unwrap());
        }
    });
    lab.store(s, va, 9);
    sim.no_pause();
    assert_eq!((lab.load(s, va), lab.peek(page.pfn())), (Some(9), 7));
    assert_eq!((s.rss_total(), page.desc().map_count()), (1, 0));
    lab.exit(s);
    assert_eq!(page.desc().ref_count(), 1);
    drop(page);
    lab.done();
}

/// PFN-5: a driver takes its memory back from everybody who maps it: bare frames and pages go, and what was copied of them; what
/// lies before stays.
#[test]
fn pfn_5_a_driver_takes_its_memory_back() {
    let lab = Lab::new();
    let f = frames(&lab, 10);
    let before = refs(&lab, f.pfn());
    for kind in [SHARED, PRIVATE] {
        let (s, ring) = (lab.space(), ring(&lab, 20));
        let wait = &mut lab.sim.can_wait();
        let frame = |n: u64| bare(&f, n);
        let shown = [frame(0), frame(1), Shown::Page(&ring, 0), frame(2)];
        let a = args(&lab, 0, 4, R | W, kind);
        let object = a.file.as_ref().unwrap().object.clone();
        object.set_size(wait, 4 * P);
        let va = ops::mmap_mixed(s, wait, a, &shown).unwrap();
        lab.store(s, va + 3 * P, 99);
        let child = lab.fork(s);
        // The processor remembers it, and must not when its driver has it back.
        assert_eq!(lab.load(s, va + P), Some(11));
        object.set_size(wait, P);
        for space in [s, child] {
            let seen: Vec<Option<u8>> = (0..4).map(|n| lab.load(space, va + n * P)).collect();
            assert_eq!(seen, [Some(10), None, None, None], "{kind}");
            assert_eq!(space.rss_total(), 0);
        }
        assert_eq!((ring.desc().ref_count(), ring.desc().map_count()), (1, 0));
        assert_eq!(refs(&lab, f.pfn()), before);
        lab.poke(Pfn(f.pfn().0 + 2), 12);
        lab.exit(child);
        lab.exit(s);
    }
    done_with(lab, f);
}

/// PFN-5, PIN-2: the same of a large folio's pages, and with a hole in the middle: what lies around it stays, and so do
/// private copies.
#[test]
fn pfn_5_a_driver_takes_some_of_it_back() {
    let lab = Lab::new();
    let f = frames(&lab, 10);
    let order = mm::addr::Order::new(2).unwrap();
    let large = lab.sim.phys().alloc_order(lab.sim, order, Use::Kernel);
    let large = Folio::make_large(lab.sim, large.unwrap().zero(lab.sim));
    let wait = &mut lab.sim.can_wait();
    let s = lab.space();
    let a = args(&lab, 0, 6, R | W, SHARED);
    let object = a.file.as_ref().unwrap().object.clone();
    object.set_size(wait, 6 * P);
    let page = |n| Shown::Page(&large, n);
    let shown = [bare(&f, 0), page(3), page(0), page(1), bare(&f, 1), page(2)];
    let va = ops::mmap_mixed(s, wait, a, &shown).unwrap();
    lab.store_each(s, va, 6, 30);
    let child = lab.fork(s);
    assert_eq!((large.desc().ref_count(), s.rss_total()), (9, 4));
    object.punch_hole(wait, P, 5 * P);
    for space in [s, child] {
        // In the hole the object's own pages are all there is: zeroes.
        let seen: Vec<Option<u8>> = (0..6).map(|n| lab.load(space, va + n * P)).collect();
        let all = [30, 0, 0, 0, 0, 35].map(Some);
        assert_eq!(seen, all);
    }
    assert_eq!(large.desc().ref_count(), 3);
    let maps: Vec<i32> = (0..4)
        .map(|n| lab.sim.desc(Pfn(large.pfn().0 + n)).map_count())
        .collect();
    assert_eq!(maps, [0, 0, 2, 0]);
    lab.exit(child);
    lab.exit(s);
    assert_eq!(large.desc().ref_count(), 1);
    drop(object);
    // A private one keeps what was copied, and no frame.
    let s = lab.space();
    let a = args(&lab, 0, 2, R | W, PRIVATE);
    let object = a.file.as_ref().unwrap().object.clone();
    object.set_size(wait, 2 * P);
    let va = ops::mmap_mixed(s, wait, a, &[bare(&f, 2), bare(&f, 3)]).unwrap();
    lab.store(s, va, 77);
    object.punch_hole(wait, 0, 2 * P);
    assert_eq!((lab.load(s, va), lab.load(s, va + P)), (Some(77), Some(0)));
    lab.exit(s);
    drop((object, large));
    done_with(lab, f);
}

fn pin<A: gup::Access>(
    lab: &Lab,
    s: Space,
    va: u64,
    n: usize,
    fast: bool,
) -> Result<Pins<A>, Errno> {
    lab.run(s);
    let (wait, slots) = (&mut lab.sim.can_wait(), slots(n));
    match fast {
        true => gup::pin_user_pages_fast(s, wait, va, NONE, slots),
        false => gup::pin_user_pages_remote(s, wait, va, NONE, slots),
    }
}

/// PFN-1, PFN-3, PFN-4, PFN-5, PFN-6, PFN-10: pages and bare frames side by side in one VMA. Of the entries only those of frames
/// are special, descriptor or not; the pages are counted, and forked, dropped, pinned and copied like any others.
#[test]
fn pfn_10_a_ring_and_its_doorbell() {
    let lab = Lab::new();
    let f = frames(&lab, 60);
    let before = refs(&lab, f.pfn());
    for kind in [SHARED, PRIVATE] {
        let (s, ring) = (lab.space(), ring(&lab, 70));
        let frame = |n: u64| bare(&f, n);
        let shown = [
            Shown::Page(&ring, 0),
            frame(0),
            Shown::Hole,
            frame(1),
            Shown::Page(&ring, 0),
        ];
        let va = mixed(&lab, s, 6, R | W, kind, &shown);
        assert_eq!(
            lab.vma_flags(s, va) & VmaFlags::SPECIAL,
            VmaFlags::MIXEDMAP,
            "and nothing else of the kind"
        );
        let special: Vec<bool> = (0..6).map(|n| lab.entry(s, va + n * P).special()).collect();
        assert_eq!(special, [false, true, false, true, false, false]);
        let see =
            |s: Space| -> Vec<Option<u8>> { (0..6).map(|n| lab.load(s, va + n * P)).collect() };
        let all = [Some(70), Some(60), None, Some(61), Some(70), None];
        assert_eq!(see(s), all);
        let count = || (ring.desc().ref_count(), ring.desc().map_count());
        assert_eq!((s.rss_total(), count()), (2, (3, 2)));
        for want in [Want::Read, Want::Write] {
            assert_eq!(lab.fault(s, va + 2 * P, want, false), BUS);
        }
        // Held: the page, up to the frame; asked only to be there: all of it.
        for fast in [true, false] {
            let pins = pin::<Read>(&lab, s, va, 2, fast).unwrap();
            assert_eq!((pins.len(), pins.pages()[0].pfn()), (1, ring.pfn()));
            drop(pins);
            let got = pin::<Read>(&lab, s, va + P, 1, fast).map(|p| p.len());
            assert_eq!(got, Err(Errno::EEXIST));
        }
        let wait = &mut lab.sim.can_wait();
        // A program, or its debugger, is told what it can make sense of.
        let mut byte = [0];
        let peeked = ops::access::read(s, wait, va + P, &mut byte, NONE);
        assert_eq!(peeked, Err(Errno::EFAULT));
        assert_eq!(gup::fault_in_pages(s, wait, va, 2, NONE), Ok(2));
        assert_eq!(gup::fault_in_pages(s, wait, va, 3, NONE), Ok(2));
        let clean = lab.entry(s, va + P).dirty();
        assert!(!clean);
        // fork: the frame is copied as it is, the page counted once more.
        let child = lab.fork(s);
        let copied = lab.entry(child, va + P);
        assert!(
            copied.special() && !copied.young(),
            "nobody has used it there"
        );
        let used = gup::fault_in_pages(child, wait, va, 2, NONE);
        assert_eq!(used, Ok(2));
        assert!(lab.entry(child, va + P).young());
        assert_eq!(see(child), all);
        assert_eq!((child.rss_total(), count()), (2, (5, 4)));
        // Written: through to what a shared one shows, to a copy of either in a private one.
        lab.run(s);
        let written = gup::fault_in_pages(s, wait, va, 2, GupFlags::WRITE);
        assert_eq!(written, Ok(2));
        // Used, and known to be written, before any CPU has.
        assert!(lab.entry(s, va + P).dirty() && lab.entry(s, va + P).soft_dirty());
        lab.store(s, va, 71);
        lab.store(s, va + P, 81);
        let shared = kind == SHARED;
        assert_eq!(lab.entry(s, va + P).special(), shared);
        let there = (lab.peek(ring.pfn()), lab.peek(f.pfn()));
        assert_eq!(there, if shared { (71, 81) } else { (70, 60) });
        let anon = if shared { 0 } else { 2 };
        assert_eq!((s.rss(RssKind::Anon), s.rss_total()), (anon, 2 + anon / 2));
        for fast in [true, false] {
            let got = pin::<Write>(&lab, s, va, 2, fast).map(|p| p.len());
            assert_eq!(got, Ok(if shared { 1 } else { 2 }));
        }
        // Written again once nobody remembers that it was: through to the same.
        ops::clear_refs(s, wait, ops::ClearRefs::SoftDirty).unwrap();
        assert!(!lab.entry(s, va + P).writable());
        lab.store(s, va + P, 82);
        let e = lab.entry(s, va + P);
        assert_eq!((e.special(), e.soft_dirty()), (shared, true));
        assert_eq!(lab.peek(f.pfn()), if shared { 82 } else { 60 });
        lab.poke(f.pfn(), 60);
        lab.poke(ring.pfn(), 70);
        // Dropped, by the child's own choice: nothing comes back, and nothing was the frame's to lose.
        lab.dontneed(child, va, 6);
        assert_eq!((see(child), child.rss_total()), (vec![None; 6], 0));
        lab.exit(child);
        lab.unmap(s, va + 3 * P, 1);
        lab.exit(s);
        assert_eq!((count(), refs(&lab, f.pfn())), ((1, 0), before.clone()));
        assert_eq!(lab.sim.phys().bad_entries(), 0);
        drop(ring);
    }
    done_with(lab, f);
}

/// What a driver may not show, and what a program gets of it then: no mapping at all.
#[test]
fn pfn_10_what_a_driver_may_show() {
    let lab = Lab::new();
    let s = lab.space();
    let one = ring(&lab, 1);
    let order = mm::addr::Order::new(1).unwrap();
    let two = lab.sim.phys().alloc_order(lab.sim, order, Use::Kernel);
    let two = Folio::make_large(lab.sim, two.unwrap().zero(lab.sim));
    let far = Shown::Frame {
        pfn: Pfn(1 << 40),
        caching: Caching::Off,
    };
    for (kind, bad) in [
        (SHARED, Shown::Page(&one, 1)),
        (SHARED, far),
        (PRIVATE, Shown::Page(&two, 1)),
        (PRIVATE, Shown::Page(&two, 0)),
    ] {
        let shown = [Shown::Page(&one, 0), bad];
        let got = mixed_at(&lab, s, 0, 2, R, kind, &shown);
        assert_eq!(got, Err(Errno::EINVAL));
        assert_eq!((lab.load(s, BASE), s.rss_total()), (None, 0));
    }
    let mut without = args(&lab, 0, 1, R, SHARED | sys::MAP_ANONYMOUS);
    without.file = None;
    let got = ops::mmap_mixed(s, &mut lab.sim.can_wait(), without, &[]);
    assert_eq!(got, Err(Errno::EINVAL));
    let own = lab.map(s, 5, 1, R | W, ANON);
    lab.store(s, own, 1);
    let own = lab.folio(lab.entry(s, own).pfn()).get();
    let got = mixed_at(&lab, s, 0, 1, R, SHARED, &[Shown::Page(&own, 0)]);
    assert_eq!(got, Err(Errno::EINVAL), "a process's");
    drop(own);
    let raw = map(&lab, s, 1, R, SHARED, Pfn(NOWHERE));
    let va = mixed_at(&lab, s, 10, 2, R, SHARED, &[Shown::Page(&two, 1)]).unwrap();
    lab.poke(Pfn(two.pfn().0 + 1), 42);
    assert_eq!(lab.load(s, va), Some(42));
    {
        let guard = s.mmap_read(&mut lab.sim.can_wait());
        let (raw, mixed) = (guard.find(raw).unwrap(), guard.find(va).unwrap());
        let frame = |vma, at| insert_frame(s, &guard, vma, at, Pfn(7), Caching::Back);
        assert_eq!(frame(raw, raw.start()), Err(Errno::EINVAL), "not mixed");
        assert_eq!(frame(mixed, va), Err(Errno::EBUSY));
        assert_eq!(frame(mixed, va - 1), Err(Errno::EINVAL));
        assert_eq!(frame(mixed, va + 2 * P), Err(Errno::EINVAL));
        assert_eq!(
            insert_page(s, &guard, mixed, va, &two, 0),
            Err(Errno::EBUSY)
        );
        let last = insert_frame(s, &guard, mixed, va + P, Pfn(7), Caching::Off);
        assert_eq!(last, Ok(()));
    }
    let dump = ops::madvise(s, &mut lab.sim.can_wait(), va, P, sys::MADV_DODUMP);
    assert_eq!(dump, Err(Errno::EINVAL));
    let uncached = bit::PCD | bit::PWT;
    assert_eq!(lab.entry(s, va + P).0 & uncached, uncached);
    lab.exit(s);
    assert_eq!((one.desc().ref_count(), two.desc().ref_count()), (1, 1));
    drop((one, two));
    lab.done();
}

/// PFN-7, PFN-10: a debugger's write to a bare frame's private copy: only the program itself can read what is there, for the
/// debugger's own addresses mean something else.
#[test]
fn pfn_7_only_the_program_itself_can_copy() {
    let lab = Lab::new();
    let f = frames(&lab, 5);
    let (s, debugger) = (lab.space(), lab.space());
    let frame = [bare(&f, 0)];
    let va = mixed(&lab, s, 1, R, PRIVATE, &frame);
    lab.store(debugger, lab.map(debugger, 0, 1, R | W, ANON), 99);
    lab.run(debugger);
    let force = GupFlags::WRITE | GupFlags::FORCE;
    let wait = &mut lab.sim.can_wait();
    let got = gup::get_user_pages_remote(s, wait, va, force, slots(1));
    assert_eq!(got.err(), Some(Errno::EFAULT));
    assert_eq!((lab.load(s, va), s.rss_total()), (Some(5), 0));
    lab.run(s);
    let got = gup::get_user_pages_remote(s, wait, va, force, slots(1)).unwrap();
    assert_eq!(lab.dma_read(got.pages()[0]), 5);
    drop(got);
    lab.exit(s);
    done_with(lab, f);
}

/// The tests above see what they are for.
#[test]
fn planted_bugs_are_caught() {
    lab::catches(&[(27, "bug_27_a_copy_that_was_raced")]);
}
