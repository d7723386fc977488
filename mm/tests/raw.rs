//! Mappings of bare frames (SPEC section 6): what is counted (nothing), what a write to a private one copies, what fork,
//! unmap, split and move make of it, and who may not take hold of it; bare frames beside counted pages; and entries that
//! cannot be.

mod common;
mod lab;

use common::{BASE, P, R, W, trap};
use lab::{ANON, Lab, PRIVATE, SHARED, Space};
use linux_raw_sys::general as sys;
use mm::fault::FaultResult;
use mm::gup::{self, GupFlags, PageSlot, PinnedPages, Read, Write};
use mm::hw::Warning;
use mm::object::FileObject;
use mm::ops::insert::{Shown, insert_frame, insert_page};
use mm::ops::{self, FileMap, MmapArgs};
use mm::phys::{Folio, FolioRef, Hw, Use};
use mm::race::Point;
use mm::sim::Machine;
use mm::sim::mmu::{PageFault, Want};
use mm::space::{RssKind, VmaFlags};
use mm::table::pte::bit;
use mm::table::{Caching, LeafBits, PtGuard, Pte, PteState, walk};
use mm::{Errno, Pfn};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Past the machine's memory: a device that does not answer.
const NOWHERE: u64 = 1 << 30;
const NONE: GupFlags = GupFlags::empty();
const BUS: FaultResult = FaultResult::Bus { code: 2 };
const DONE: FaultResult = FaultResult::Done { major: false };

fn args(lab: &Lab, at: u64, pages: u64, prot: u32, flags: u32) -> MmapArgs<Machine> {
    MmapArgs {
        addr: BASE + at * P,
        len: pages * P,
        prot,
        flags: flags | lab::FIXED,
        file: Some(FileMap {
            object: FileObject::new(lab.sim).unwrap(),
            pgoff: 0,
            readable: true,
            writable: true,
            append: false,
            executable: true,
        }),
    }
}

fn map_at(
    lab: &Lab,
    s: Space,
    at: u64,
    pages: u64,
    prot: u32,
    flags: u32,
    first: Pfn,
) -> Result<u64, Errno> {
    let args = args(lab, at, pages, prot, flags);
    ops::mmap_raw(s, &mut lab.sim.can_wait(), args, first, Caching::Back)
}

fn map(lab: &Lab, s: Space, pages: u64, prot: u32, flags: u32, first: Pfn) -> u64 {
    map_at(lab, s, 0, pages, prot, flags, first).unwrap()
}

/// Frames in a row that are nobody's, each beginning with `byte` and its number.
fn frames(lab: &Lab, byte: u8) -> mm::phys::Frame<mm::phys::Owned> {
    let order = mm::addr::Order::new(2).unwrap();
    let frames = lab
        .sim
        .phys()
        .alloc_order(lab.sim, order, Use::Movable)
        .unwrap();
    for i in 0..4 {
        poke(lab, Pfn(frames.pfn().0 + i), byte + i as u8);
    }
    frames
}

/// Frees them, and nothing is left.
fn done_with(lab: Lab, f: mm::phys::Frame<mm::phys::Owned>) {
    lab.sim.phys().free(lab.sim, f);
    lab.done();
}

fn poke(lab: &Lab, pfn: Pfn, byte: u8) {
    // SAFETY: a frame of the tests' machine, atomics to everybody.
    unsafe { lab.sim.frame_ptr(pfn).write_volatile(byte) };
}

fn peek(lab: &Lab, pfn: Pfn) -> u8 {
    // SAFETY: as above.
    unsafe { lab.sim.frame_ptr(pfn).read_volatile() }
}

fn touch(lab: &Lab, s: Space, va: u64, want: Want, present: bool) -> FaultResult {
    let fault = PageFault {
        va,
        want,
        present,
        key: false,
    };
    lab.run(s);
    trap(lab.sim, s, fault)
}

/// The entry of `va`.
fn entry(lab: &Lab, s: Space, va: u64) -> Pte {
    let guard = s.mmap_read(&mut lab.sim.can_wait());
    match walk::lookup(lab.sim, s.tables.root(), va, &guard).1 {
        PteState::Leaf(entry) => entry,
        PteState::Absent => Pte::EMPTY,
        other => panic!("{other:?}"),
    }
}

fn flags(lab: &Lab, s: Space, va: u64) -> VmaFlags {
    let guard = s.mmap_read(&mut lab.sim.can_wait());
    guard.find(va).unwrap().flags()
}

/// Puts `e` where nothing is, or in place of what is there, which stays uncounted as it was.
fn plant_entry(lab: &Lab, s: Space, va: u64, e: Pte) {
    let guard = s.mmap_read(&mut lab.sim.can_wait());
    let mut pt = s.tables.pte_table_alloc(va, &guard).unwrap();
    let i = PtGuard::<Machine>::index(va);
    pt.take(i);
    pt.install(i, e);
}

fn refs(lab: &Lab, first: Pfn) -> Vec<(i32, i32)> {
    (0..4)
        .map(|i| {
            let d = lab.sim.desc(Pfn(first.0 + i));
            (d.ref_count(), d.map_count())
        })
        .collect()
}

/// PFN-2, PFN-5, PFN-13: a window is the frames themselves, and leaves no trace in their descriptors.
#[test]
fn pfn_2_a_shared_window_counts_nothing() {
    let lab = Lab::new();
    let f = frames(&lab, 10);
    let before = refs(&lab, f.pfn());
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, SHARED, f.pfn());
    assert_eq!(lab.load(s, va + 2 * P), Some(12));
    lab.store(s, va + 3 * P, 99);
    assert_eq!(peek(&lab, Pfn(f.pfn().0 + 3)), 99);
    assert_eq!((s.rss_total(), refs(&lab, f.pfn())), (0, before.clone()));
    let raw = VmaFlags::IO | VmaFlags::PFNMAP | VmaFlags::DONTEXPAND | VmaFlags::DONTDUMP;
    assert!(flags(&lab, s, va).contains(raw));
    // Rights go and come.
    lab.protect(s, va + P, 1, 0);
    assert_eq!(lab.load(s, va + P), None);
    lab.protect(s, va + P, 1, R | W);
    lab.store(s, va + P, 77);
    assert_eq!(peek(&lab, Pfn(f.pfn().0 + 1)), 77);
    // PFN-4: a child has it, too, though nothing could be faulted in.
    let child = lab.fork(s);
    assert_eq!(lab.load(child, va + 2 * P), Some(12));
    lab.store(child, va, 55);
    assert_eq!(lab.load(s, va), Some(55));
    lab.unmap(s, va + P, 2);
    assert_eq!(refs(&lab, f.pfn()), before);
    lab.exit(child);
    lab.exit(s);
    assert_eq!(refs(&lab, f.pfn()), before);
    done_with(lab, f);
}

/// PFN-3, PFN-6, BUG-35: the window shows another process's page, which looks just like one of our own: anonymous, exclusive.
/// A private write copies; the page keeps its content, its counts, and its owner.
#[test]
fn bug_35_another_process_in_the_window() {
    let lab = Lab::new();
    let (owner, s) = (lab.space(), lab.space());
    // The window shows another process's anonymous page.
    let theirs = lab.map(owner, 0, 1, R | W, ANON);
    lab.store(owner, theirs, 42);
    let none = GupFlags::empty();
    let slots = vec![PageSlot::EMPTY; 1];
    let held = gup::get_user_pages_remote(owner, &mut lab.sim.can_wait(), theirs, none, slots);
    let pfn = held.unwrap().pages()[0].pfn();
    let before = (lab.sim.desc(pfn).ref_count(), lab.sim.desc(pfn).map_count());
    let va = map(&lab, s, 1, R | W, PRIVATE, pfn);
    assert_eq!(lab.load(s, va), Some(42));
    let child = lab.fork(s);
    lab.store(s, va + 1, 1);
    assert_eq!(lab.load(owner, theirs + 1), Some(0), "the owner sees it");
    assert_eq!((lab.load(s, va), lab.load(s, va + 1)), (Some(42), Some(1)));
    assert_eq!((s.rss(RssKind::Anon), s.rss_total()), (1, 1));
    lab.store(child, va, 2);
    assert_eq!(
        (lab.load(owner, theirs), lab.load(s, va)),
        (Some(42), Some(42))
    );
    let grandchild = lab.fork(child);
    assert_eq!(
        lab.load(grandchild, va),
        Some(2),
        "the copy is shared as any page"
    );
    lab.unmap(s, va, 1);
    lab.exit(child);
    lab.exit(grandchild);
    let after = (lab.sim.desc(pfn).ref_count(), lab.sim.desc(pfn).map_count());
    assert_eq!(after, before);
    assert_eq!(lab.load(owner, theirs), Some(42));
    lab.done();
}

/// PFN-1, BUG-13: the copy happens to be the very frame that the window shows. It is a page all the same: freed once, counted by
/// fork.
#[test]
fn bug_13_a_copy_that_is_the_predicted_frame() {
    let lab = Lab::new();
    let s = lab.space();
    let f = lab.sim.phys().alloc(lab.sim, Use::Movable).unwrap();
    let pfn = f.pfn();
    let va = map(&lab, s, 1, R | W, PRIVATE, pfn);
    // A window into free memory, at which nobody has looked yet.
    lab.sim.phys().free(lab.sim, f);
    let present = touch(&lab, s, va, Want::Write, true);
    assert_eq!(present, DONE);
    let entry = entry(&lab, s, va);
    assert!(entry.is_counted());
    assert_eq!(entry.pfn(), pfn, "the test has the frame that it wants");
    let child = lab.fork(s);
    assert_eq!(lab.sim.desc(pfn).map_count(), 2);
    lab.exit(child);
    assert_eq!(lab.sim.desc(pfn).map_count(), 1);
    lab.unmap(s, va, 1);
    lab.done(); // freed once
}

/// PFN-7: what cannot be read is not zeroes.
#[test]
fn pfn_7_a_copy_that_cannot_be_made() {
    let lab = Lab::new();
    let s = lab.space();
    let va = map(&lab, s, 2, R | W, PRIVATE, Pfn(NOWHERE));
    assert_eq!(touch(&lab, s, va, Want::Write, true), BUS);
    assert_eq!((s.rss_total(), entry(&lab, s, va).pfn().0), (0, NOWHERE));
    lab.done();
}

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
        let mut last = touch(&lab, s, va, Want::Write, true);
        assert_eq!(last, DONE, "{what:?}: the access comes again");
        if what == BackAtOnce {
            assert!(entry(&lab, s, va).is_counted(), "copied at the first fault");
        }
        while last == DONE && !entry(&lab, s, va).writable() {
            let present = entry(&lab, s, va).present();
            last = touch(&lab, s, va, Want::Write, present);
        }
        sim.no_pause();
        if what == Gone {
            assert_eq!((last, s.rss_total()), (BUS, 0));
        } else {
            let seen = if what == BackAtOnce { 50 } else { 51 };
            assert_eq!(last, DONE);
            assert_eq!(lab.load(s, va), Some(seen), "{what:?}");
            lab.store(s, va, 1);
            assert_eq!((peek(&lab, one), peek(&lab, two)), (50, 51));
        }
        lab.exit(s);
        done_with(lab, f);
    }
}

/// PFN-9, VMA-3: no growth, nothing comes of itself, advice to drop is refused, and nobody takes hold of it.
#[test]
fn pfn_9_a_window_is_all_there_is() {
    let lab = Lab::new();
    let f = frames(&lab, 1);
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, PRIVATE, f.pfn());
    let wait = &mut lab.sim.can_wait();
    let grow = ops::MremapArgs {
        addr: va,
        old_len: 4 * P,
        new_len: 5 * P,
        flags: sys::MREMAP_MAYMOVE,
        new_addr: 0,
    };
    assert_eq!(ops::mremap(s, wait, grow).err(), Some(Errno::EFAULT));
    let drop = ops::madvise(s, wait, va, P, sys::MADV_DONTNEED);
    assert_eq!(drop, Err(Errno::EINVAL));
    for flags in [GupFlags::empty(), GupFlags::WRITE, GupFlags::FORCE] {
        let slots = vec![PageSlot::EMPTY; 1];
        let held = gup::get_user_pages_remote(s, wait, va, flags, slots);
        assert_eq!(held.err(), Some(Errno::EFAULT));
    }
    // PFN-12: split, and moved.
    lab.store(s, va + P, 9);
    lab.protect(s, va + 2 * P, 1, R);
    let moved = ops::MremapArgs {
        addr: va + 2 * P,
        old_len: P,
        new_len: P,
        flags: sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
        new_addr: BASE + 100 * P,
    };
    let there = ops::mremap(s, wait, moved).unwrap();
    assert_eq!(lab.load(s, there), Some(3));
    assert_eq!(
        touch(&lab, s, va + 2 * P, Want::Read, false),
        FaultResult::Segv { code: 1 }
    );
    assert_eq!(
        (
            lab.load(s, va),
            lab.load(s, va + P),
            lab.load(s, va + 3 * P)
        ),
        (Some(1), Some(9), Some(4))
    );
    let end = map_at(&lab, s, 200, 2, R, SHARED, Pfn((1 << 40) - 1));
    assert_eq!(end, Err(Errno::EINVAL));
    lab.exit(s);
    done_with(lab, f);
}

/// PFN-2: no frame for a table, or for a copy: nothing stays.
#[test]
fn a_window_without_memory() {
    let lab = Lab::new();
    let f = frames(&lab, 1);
    let s = lab.space();
    lab.store(s, lab.map(s, 1500, 1, R | W, ANON), 1);
    for n in 1..8 {
        lab.sim.phys().fail_after(n);
        let mapped = map_at(&lab, s, 0, 4, R | W, PRIVATE, f.pfn());
        lab.sim.phys().fail_after(0);
        if let Ok(va) = mapped {
            lab.sim.phys().fail_after(1);
            let none = touch(&lab, s, va, Want::Write, true);
            lab.sim.phys().fail_after(0);
            assert_eq!(none, FaultResult::Oom);
            assert_eq!(lab.load(s, va), Some(1));
            lab.unmap(s, va, 4);
        }
    }
    lab.exit(s);
    done_with(lab, f);
}

/// PFN-2, PFN-3, PFN-12: what an entry says about caching survives every change of rights, a move and a fork; the private copy is
/// ordinary memory.
#[test]
fn pfn_2_a_device_is_never_cached() {
    let lab = Lab::new();
    let f = frames(&lab, 1);
    let uncached = bit::PCD | bit::PWT;
    for kind in [SHARED, PRIVATE] {
        for caching in [Caching::Back, Caching::Combining, Caching::Off] {
            let s = lab.space();
            let a = args(&lab, 0, 4, R | W, kind);
            let va = ops::mmap_raw(s, &mut lab.sim.can_wait(), a, f.pfn(), caching).unwrap();
            let want = caching.bits();
            let check = |s: Space, va: u64, nth: u64, what: &str| {
                let e = entry(&lab, s, va);
                assert!(e.special() && !e.mlocked(), "{what}: {e:?}");
                assert_eq!(e.0 & uncached, want, "{what}: {e:?}");
                assert_eq!(e.pfn().0, f.pfn().0 + nth, "{what}");
            };
            check(s, va, 0, "mapped");
            for prot in [R, 0, R | W, W, mm_exec(), R | W] {
                lab.protect(s, va + P, 1, prot);
                check(s, va + P, 1, "protected");
            }
            let moved = ops::MremapArgs {
                addr: va + 2 * P,
                old_len: P,
                new_len: P,
                flags: sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
                new_addr: BASE + 100 * P,
            };
            let there = ops::mremap(s, &mut lab.sim.can_wait(), moved).unwrap();
            check(s, there, 2, "moved");
            let child = lab.fork(s);
            check(child, va + P, 1, "forked");
            check(child, there, 2, "moved and forked");
            check(s, there, 2, "shared with a child");
            if kind == PRIVATE {
                lab.store(child, there, 5);
                let copy = entry(&lab, child, there);
                assert!(copy.is_counted() && copy.writable());
                assert_eq!(copy.0 & uncached, 0, "a copy is memory");
            }
            lab.exit(child);
            lab.exit(s);
        }
    }
    done_with(lab, f);
}

fn mm_exec() -> u32 {
    R | common::X
}

/// PFN-1, PFN-5, PFN-12: a private window with copies in it is split, moved and unmapped piece by piece: page and frame follow
/// from each other in every piece, and each copy is freed once.
#[test]
fn pfn_12_the_pieces_of_a_window() {
    let lab = Lab::new();
    let f = frames(&lab, 1);
    let before = refs(&lab, f.pfn());
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, PRIVATE, f.pfn());
    lab.store(s, va + P, 21);
    lab.store(s, va + 3 * P, 23);
    lab.protect(s, va + P, 1, R);
    lab.protect(s, va + 2 * P, 1, 0);
    let moved = ops::MremapArgs {
        addr: va + 3 * P,
        old_len: P,
        new_len: P,
        flags: sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
        new_addr: BASE + 600 * P,
    };
    let there = ops::mremap(s, &mut lab.sim.can_wait(), moved).unwrap();
    let child = lab.fork(s);
    for space in [s, child] {
        let guard = space.mmap_read(&mut lab.sim.can_wait());
        let pieces: Vec<(u64, u64)> = guard
            .all()
            .map(|v| (v.start(), v.pgoff() - f.pfn().0))
            .collect();
        let expect = [(va, 0), (va + P, 1), (va + 2 * P, 2), (there, 3)];
        assert_eq!(pieces, expect, "one VMA each: they never merge");
        for vma in guard.all() {
            for n in 0..4 {
                let shows = vma.would_show(vma.start(), Pfn(f.pfn().0 + n));
                assert_eq!(shows, vma.pgoff() == f.pfn().0 + n);
            }
        }
    }
    assert_eq!(s.rss(RssKind::Anon), 2);
    lab.protect(s, va + 2 * P, 1, R | W);
    for space in [s, child] {
        assert_eq!(lab.load(space, va), Some(1));
        assert_eq!(lab.load(space, va + P), Some(21));
        assert_eq!(lab.load(space, there), Some(23));
    }
    assert_eq!(lab.load(s, va + 2 * P), Some(3));
    assert_eq!(lab.load(child, va + 2 * P), None);
    for (at, left) in [(va, 2), (va + 2 * P, 2), (there, 1), (va + P, 0)] {
        lab.unmap(s, at, 1);
        assert_eq!(s.rss(RssKind::Anon), left);
    }
    assert_eq!((s.rss_total(), refs(&lab, f.pfn())), (0, before.clone()));
    lab.exit(child);
    assert_eq!(refs(&lab, f.pfn()), before);
    assert_eq!((peek(&lab, f.pfn()), lab.sim.phys().bad_entries()), (1, 0));
    lab.exit(s);
    done_with(lab, f);
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
        let frame = |n: u64| Shown::Frame {
            pfn: Pfn(f.pfn().0 + n),
            caching: Caching::Back,
        };
        let shown = [frame(0), frame(1), Shown::Page(&ring, 0), frame(2)];
        let a = args(&lab, 0, 4, R | W, kind);
        let object = a.file.as_ref().unwrap().object.clone();
        object.set_size(wait, 4 * P);
        let va = ops::mmap_mixed(s, wait, a, &shown).unwrap();
        lab.store(s, va + 3 * P, 99);
        let child = lab.fork(s);
        object.set_size(wait, P);
        for space in [s, child] {
            let seen: Vec<Option<u8>> = (0..4).map(|n| lab.load(space, va + n * P)).collect();
            assert_eq!(seen, [Some(10), None, None, None], "{kind}");
            assert_eq!(space.rss_total(), 0);
        }
        assert_eq!((ring.desc().ref_count(), ring.desc().map_count()), (1, 0));
        assert_eq!(refs(&lab, f.pfn()), before);
        poke(&lab, Pfn(f.pfn().0 + 2), 12);
        lab.exit(child);
        lab.exit(s);
    }
    done_with(lab, f);
}

/// PFN-9: an entry that a driver took away leaves a hole, which nothing fills: neither a page of zeroes nor one of the empty object.
#[test]
fn pfn_9_a_hole_stays_a_hole() {
    let lab = Lab::new();
    let f = frames(&lab, 1);
    for kind in [SHARED, PRIVATE] {
        let s = lab.space();
        let va = map(&lab, s, 4, R | W, kind, f.pfn());
        {
            let mut wait = lab.sim.can_wait();
            let guard = s.mmap_read(&mut wait);
            let mut pt = s.tables.pte_table(va + P, &guard).unwrap();
            assert!(pt.take(PtGuard::<Machine>::index(va + P)).special());
        }
        for want in [Want::Read, Want::Write] {
            assert_eq!(touch(&lab, s, va + P, want, false), BUS);
        }
        let child = lab.fork(s);
        assert_eq!(touch(&lab, child, va + P, Want::Write, false), BUS);
        assert_eq!((s.rss_total(), lab.load(s, va + 2 * P)), (0, Some(3)));
        lab.exit(child);
        lab.exit(s);
    }
    done_with(lab, f);
}

/// POP-3, POP-4: a driver's memory is never locked nor counted as such, however it is asked; but the limit is asked first.
#[test]
fn a_window_is_not_locked() {
    use std::sync::atomic::Ordering::Relaxed;
    let lab = Lab::new();
    let f = frames(&lab, 1);
    let s = lab.space();
    let wait = &mut lab.sim.can_wait();
    s.limits.memlock.store(16 * P, Relaxed);
    lab.run(s);
    let locked = || s.counts.locked_vm.load(Relaxed);
    let frame = [Shown::Frame {
        pfn: f.pfn(),
        caching: Caching::Back,
    }];
    for kind in [SHARED, PRIVATE] {
        let asked = kind | sys::MAP_LOCKED;
        let windows = [
            map(&lab, s, 4, R | W, asked, f.pfn()),
            mixed_at(&lab, s, 10, 4, R | W, asked, &frame).unwrap(),
        ];
        for va in windows {
            let none = |what: &str| {
                let f = flags(&lab, s, va);
                assert!(!f.intersects(VmaFlags::LOCKED_MASK), "{what}: {f:?}");
                let e = entry(&lab, s, va);
                assert_eq!((locked(), e.mlocked()), (0, false), "{what}");
            };
            none("MAP_LOCKED");
            for how in [0, sys::MLOCK_ONFAULT] {
                ops::mlock(s, wait, va, P, how).unwrap();
                none("mlock");
            }
            for how in [0, sys::MCL_ONFAULT] {
                ops::mlockall(s, wait, sys::MCL_CURRENT | how).unwrap();
                none("mlockall");
            }
            ops::munlock(s, wait, va, P).unwrap();
        }
    }
    assert_eq!(
        map_at(&lab, s, 0, 17, R, SHARED | sys::MAP_LOCKED, f.pfn()),
        Err(Errno::EAGAIN)
    );
    for how in [0, sys::MCL_ONFAULT] {
        ops::mlockall(s, wait, sys::MCL_FUTURE | how).unwrap();
        let va = map(&lab, s, 4, R | W, SHARED, f.pfn());
        assert!(!flags(&lab, s, va).intersects(VmaFlags::LOCKED_MASK));
        assert_eq!(locked(), 0);
        let own = lab.map(s, 30, 1, R | W, ANON);
        assert!(flags(&lab, s, own).contains(VmaFlags::LOCKED));
        assert_eq!(locked(), 1);
        lab.unmap(s, own, 1);
    }
    lab.exit(s);
    done_with(lab, f);
}

fn mixed_at(
    lab: &Lab,
    s: Space,
    at: u64,
    pages: u64,
    prot: u32,
    flags: u32,
    shown: &[Shown<'_, Machine>],
) -> Result<u64, Errno> {
    let args = args(lab, at, pages, prot, flags);
    ops::mmap_mixed(s, &mut lab.sim.can_wait(), args, shown)
}

fn mixed(
    lab: &Lab,
    s: Space,
    pages: u64,
    prot: u32,
    flags: u32,
    shown: &[Shown<'_, Machine>],
) -> u64 {
    mixed_at(lab, s, 0, pages, prot, flags, shown).unwrap()
}

/// A page of a driver's.
fn ring(lab: &Lab, byte: u8) -> FolioRef<Machine> {
    let frame = lab.sim.phys().alloc(lab.sim, Use::Kernel).unwrap();
    let folio = Folio::make_large(lab.sim, frame.zero(lab.sim));
    poke(lab, folio.pfn(), byte);
    folio
}

type Pins<A> = PinnedPages<Machine, A, Vec<PageSlot>>;

fn pin<A: gup::Access>(
    lab: &Lab,
    s: Space,
    va: u64,
    n: usize,
    fast: bool,
) -> Result<Pins<A>, Errno> {
    lab.run(s);
    let (wait, slots) = (&mut lab.sim.can_wait(), vec![PageSlot::EMPTY; n]);
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
        let frame = |n: u64| Shown::Frame {
            pfn: Pfn(f.pfn().0 + n),
            caching: Caching::Back,
        };
        let shown = [
            Shown::Page(&ring, 0),
            frame(0),
            Shown::Hole,
            frame(1),
            Shown::Page(&ring, 0),
        ];
        let va = mixed(&lab, s, 6, R | W, kind, &shown);
        assert_eq!(
            flags(&lab, s, va) & VmaFlags::SPECIAL,
            VmaFlags::MIXEDMAP,
            "and nothing else of the kind"
        );
        let special: Vec<bool> = (0..6)
            .map(|n| entry(&lab, s, va + n * P).special())
            .collect();
        assert_eq!(special, [false, true, false, true, false, false]);
        let see =
            |s: Space| -> Vec<Option<u8>> { (0..6).map(|n| lab.load(s, va + n * P)).collect() };
        let all = [Some(70), Some(60), None, Some(61), Some(70), None];
        assert_eq!(see(s), all);
        let count = || (ring.desc().ref_count(), ring.desc().map_count());
        assert_eq!((s.rss_total(), count()), (2, (3, 2)));
        for want in [Want::Read, Want::Write] {
            assert_eq!(touch(&lab, s, va + 2 * P, want, false), BUS);
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
        assert_eq!(gup::fault_in_pages(s, wait, va, 2, NONE), Ok(2));
        assert_eq!(gup::fault_in_pages(s, wait, va, 3, NONE), Ok(2));
        let clean = entry(&lab, s, va + P).dirty();
        assert!(!clean);
        // fork: the frame is copied as it is, the page counted once more.
        let child = lab.fork(s);
        assert_eq!(see(child), all);
        assert_eq!((child.rss_total(), count()), (2, (5, 4)));
        assert!(entry(&lab, child, va + P).special());
        // Written: through to what a shared one shows, to a copy of either in a private one.
        lab.run(s);
        let written = gup::fault_in_pages(s, wait, va, 2, GupFlags::WRITE);
        assert_eq!(written, Ok(2));
        // Used, and known to be written, before any CPU has.
        assert!(entry(&lab, s, va + P).dirty() && entry(&lab, s, va + P).soft_dirty());
        lab.store(s, va, 71);
        lab.store(s, va + P, 81);
        let shared = kind == SHARED;
        assert_eq!(entry(&lab, s, va + P).special(), shared);
        let there = (peek(&lab, ring.pfn()), peek(&lab, f.pfn()));
        assert_eq!(there, if shared { (71, 81) } else { (70, 60) });
        let anon = if shared { 0 } else { 2 };
        assert_eq!((s.rss(RssKind::Anon), s.rss_total()), (anon, 2 + anon / 2));
        for fast in [true, false] {
            let got = pin::<Write>(&lab, s, va, 2, fast).map(|p| p.len());
            assert_eq!(got, Ok(if shared { 1 } else { 2 }));
        }
        poke(&lab, f.pfn(), 60);
        poke(&lab, ring.pfn(), 70);
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
    let raw = map(&lab, s, 1, R, SHARED, Pfn(NOWHERE));
    let va = mixed_at(&lab, s, 10, 2, R, SHARED, &[Shown::Page(&two, 1)]).unwrap();
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
        assert_eq!(frame(mixed, va + P), Ok(()));
    }
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
    let frame = [Shown::Frame {
        pfn: f.pfn(),
        caching: Caching::Back,
    }];
    let va = mixed(&lab, s, 1, R, PRIVATE, &frame);
    lab.store(debugger, lab.map(debugger, 0, 1, R | W, ANON), 99);
    lab.run(debugger);
    let force = GupFlags::WRITE | GupFlags::FORCE;
    let wait = &mut lab.sim.can_wait();
    let got = gup::get_user_pages_remote(s, wait, va, force, vec![PageSlot::EMPTY]);
    assert_eq!(got.err(), Some(Errno::EFAULT));
    assert_eq!((lab.load(s, va), s.rss_total()), (Some(5), 0));
    lab.run(s);
    let got = gup::get_user_pages_remote(s, wait, va, force, vec![PageSlot::EMPTY]).unwrap();
    assert_eq!(lab.dma_read(got.pages()[0]), 5);
    drop(got);
    lab.exit(s);
    done_with(lab, f);
}

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

/// PFN-1, PFN-8: an entry of a frame that has no descriptor, in an ordinary mapping. Nobody looks for one: each who meets it says
/// so and goes on as if nothing was counted there.
#[test]
fn pfn_8_an_entry_that_leads_nowhere() {
    let shared = SHARED | sys::MAP_ANONYMOUS;
    for (kind, marks) in [(ANON, 0), (ANON, bit::MLOCKED), (shared, 0)] {
        let lab = Lab::new();
        let (s, wait) = (lab.space(), &mut lab.sim.can_wait());
        let va = lab.map(s, 0, 3, R | W, kind);
        lab.store_each(s, va, 3, 1);
        let at = va + P;
        lab.dontneed(s, at, 1);
        let rss = s.rss_total();
        let bad = Pte::leaf(Pfn(NOWHERE), LeafBits::user(true, false, false));
        plant_entry(&lab, s, at, bad.with(marks | bit::SOFT_DIRTY));
        let bad = entry(&lab, s, at);
        let read = gup::get_user_pages_remote(s, wait, at, NONE, vec![PageSlot::EMPTY; 1]);
        assert_eq!(read.err(), Some(Errno::EEXIST));
        assert_eq!(reported(&lab, at, bad), 1, "gup");
        if kind == ANON {
            assert_eq!(touch(&lab, s, at, Want::Write, true), BUS);
            assert!(reported(&lab, at, bad) > 0, "a write");
        }
        // Who has nothing to ask of a page passes.
        lab.protect(s, va, 3, R);
        lab.protect(s, va, 3, R | W);
        ops::mlock(s, wait, va, P, sys::MLOCK_ONFAULT).unwrap();
        ops::mlock(s, wait, at, P, sys::MLOCK_ONFAULT).unwrap();
        ops::munlock(s, wait, va, 2 * P).unwrap();
        let bad = entry(&lab, s, at);
        assert_eq!(bad.pfn(), Pfn(NOWHERE));
        let child = lab.fork(s);
        // A child looks at what its parent cannot find again.
        let seen = usize::from(kind == ANON);
        assert_eq!(reported(&lab, at, bad), seen, "fork");
        assert_eq!(lab.load(child, va + 2 * P), Some(3));
        lab.exit(child);
        lab.sim.warnings();
        let bad = entry(&lab, s, at);
        let met = lab.sim.phys().bad_entries();
        lab.unmap(s, va, 3);
        assert_eq!(reported(&lab, at, bad), 1, "zap");
        assert_eq!(lab.sim.phys().bad_entries(), met + 1);
        assert_eq!((rss, s.rss_total()), (2, 0));
        lab.done();
    }
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
                assert_eq!(touch(&lab, s, va, want, false), BUS, "{bad:?} {want:?}");
                assert_eq!(reported(&lab, va, bad), 1);
            }
            let wait = &mut lab.sim.can_wait();
            let got = gup::get_user_pages_remote(s, wait, va, NONE, vec![PageSlot::EMPTY]);
            assert_eq!(
                (got.err(), reported(&lab, va, bad)),
                (Some(Errno::EFAULT), 1)
            );
            lab.protect(s, va, 4, R);
            assert_eq!(lab.load(s, va + P), Some(9));
            let child = lab.fork(s);
            let private = usize::from(kind != SHARED);
            assert_eq!(reported(&lab, va, bad), private, "fork");
            let read = touch(&lab, child, va, Want::Read, false);
            assert_eq!(read, DONE, "the child's is empty");
            lab.exit(child);
            lab.unmap(s, va, 4);
            assert_eq!(reported(&lab, va, bad), 1, "zap");
            assert_eq!(s.rss_total(), 0);
        }
    }
    lab.done();
}

/// The tests above see what they are for.
#[test]
fn planted_bugs_are_caught() {
    lab::catches(&[
        (13, "bug_13_a_copy_that_is_the_predicted_frame"),
        (27, "bug_27_a_copy_that_was_raced"),
        (35, "bug_35_another_process_in_the_window"),
    ]);
}
