//! Windows onto bare frames (SPEC section 6): what is counted (nothing), what a write to a private one copies, what fork,
//! unmap, split and move make of it, and who may not take hold of it.

mod bare;
mod common;
mod lab;

use bare::{NOWHERE, args, bare, done_with, frames, map, map_at, mixed_at, move_page, refs};
use common::{BASE, P, R, W, X};
use lab::{ANON, BUS, Lab, MINOR, NONE, PRIVATE, SHARED, Space, slots};
use linux_raw_sys::general as sys;
use mm::fault::FaultResult;
use mm::gup::{self, GupFlags};
use mm::ops;
use mm::phys::{Hw, Use};
use mm::sim::Machine;
use mm::sim::mmu::Want;
use mm::space::{RssKind, VmaFlags};
use mm::table::pte::bit;
use mm::table::{Caching, PtGuard};
use mm::{Errno, Pfn};

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
    assert_eq!(lab.peek(Pfn(f.pfn().0 + 3)), 99);
    assert_eq!((s.rss_total(), refs(&lab, f.pfn())), (0, before.clone()));
    let raw = VmaFlags::IO | VmaFlags::PFNMAP | VmaFlags::DONTEXPAND | VmaFlags::DONTDUMP;
    assert!(lab.vma_flags(s, va).contains(raw));
    // Rights go and come.
    lab.protect(s, va + P, 1, 0);
    assert_eq!(lab.load(s, va + P), None);
    lab.protect(s, va + P, 1, R | W);
    lab.store(s, va + P, 77);
    assert_eq!(lab.peek(Pfn(f.pfn().0 + 1)), 77);
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
    let held = gup::get_user_pages_remote(owner, &mut lab.sim.can_wait(), theirs, NONE, slots(1));
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
    let present = lab.fault(s, va, Want::Write, true);
    assert_eq!(present, MINOR);
    let entry = lab.entry(s, va);
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
    assert_eq!(lab.fault(s, va, Want::Write, true), BUS);
    assert_eq!((s.rss_total(), lab.entry(s, va).pfn().0), (0, NOWHERE));
    lab.done();
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
    // Nor is the place left empty, to be filled by faults.
    let leave = ops::MremapArgs {
        new_len: 4 * P,
        flags: sys::MREMAP_MAYMOVE | sys::MREMAP_DONTUNMAP,
        ..grow
    };
    assert_eq!(ops::mremap(s, wait, leave).err(), Some(Errno::EINVAL));
    // It is no memory of the program's to drop or to dump; a child that is not to have it never will.
    ops::madvise(s, wait, va, 4 * P, sys::MADV_DONTFORK).unwrap();
    for advice in [
        sys::MADV_DONTNEED,
        sys::MADV_DONTNEED_LOCKED,
        sys::MADV_DODUMP,
        sys::MADV_DOFORK,
        sys::MADV_WIPEONFORK,
    ] {
        let got = ops::madvise(s, wait, va, P, advice);
        assert_eq!(got, Err(Errno::EINVAL), "{advice}");
    }
    assert_eq!(lab.load(lab.fork(s), va), None);
    for flags in [GupFlags::empty(), GupFlags::WRITE, GupFlags::FORCE] {
        let held = gup::get_user_pages_remote(s, wait, va, flags, slots(1));
        assert_eq!(held.err(), Some(Errno::EFAULT));
    }
    let word = |private| s.futex_key(&mut lab.sim.can_wait(), va, private);
    assert!(word(true).is_ok() && word(false) == Err(Errno::EFAULT));
    lab.run(s);
    let found = ops::futex_key(s, &mut lab.sim.can_wait(), va);
    assert_eq!(found, Err(Errno::EFAULT));
    // PFN-12: split, and moved.
    lab.store(s, va + P, 9);
    lab.protect(s, va + 2 * P, 1, R);
    let there = move_page(&lab, s, va + 2 * P, BASE + 100 * P);
    assert_eq!(lab.load(s, there), Some(3));
    assert_eq!(
        lab.fault(s, va + 2 * P, Want::Read, false),
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
    lab.exit(s);
    done_with(lab, f);
}

/// PFN-2, PFN-3, PFN-5, PFN-12: a window of several tables onto nothing that has a descriptor, or answers: page and frame follow
/// from each other all the way, in a child too. What a shared one says of its file is not touched; a private one begins with
/// its first frame.
#[test]
fn pfn_2_a_window_of_many_tables() {
    let lab = Lab::new();
    for (kind, pgoff) in [(SHARED, 7), (PRIVATE, NOWHERE)] {
        let s = lab.space();
        let mut a = args(&lab, 500, 1200, R | W, kind);
        a.file.as_mut().unwrap().pgoff = 7;
        let (first, off) = (Pfn(NOWHERE), Caching::Off);
        let va = ops::mmap_raw(s, &mut lab.sim.can_wait(), a, first, off).unwrap();
        let child = lab.fork(s);
        for space in [s, child] {
            for n in [0, 11, 12, 523, 524, 1035, 1036, 1199] {
                let e = lab.entry(space, va + n * P);
                assert_eq!((e.pfn().0, e.special()), (NOWHERE + n, true), "{n}");
                assert_eq!(e.young(), space.id() == s.id(), "{n}");
            }
            let guard = space.mmap_read(&mut lab.sim.can_wait());
            assert_eq!(guard.find(va).unwrap().pgoff(), pgoff);
        }
        lab.unmap(s, va + 512 * P, 100);
        lab.exit(child);
        lab.exit(s);
    }
    assert_eq!(lab.sim.phys().bad_entries(), 0);
    lab.done();
}

/// PFN-2: physical addresses end; and what is shown is a file's.
#[test]
fn pfn_2_there_is_nothing_to_show() {
    let lab = Lab::new();
    let s = lab.space();
    let last = (1 << 40) - 1;
    for (first, pages, ok) in [
        (last, 1, true),
        (last - 1, 2, true),
        (last, 2, false),
        (last + 1, 1, false),
        (u64::MAX, 1, false),
        (u64::MAX, 2, false),
        (u64::MAX - 1, 4, false),
    ] {
        let got = map_at(&lab, s, 0, pages, R, SHARED, Pfn(first));
        let want = if ok { Ok(BASE) } else { Err(Errno::EINVAL) };
        assert_eq!(got, want, "{first:#x} {pages}");
    }
    for flags in [PRIVATE, SHARED].map(|kind| kind | sys::MAP_ANONYMOUS) {
        let mut a = args(&lab, 9, 1, R, flags);
        a.file = None;
        let got = ops::mmap_raw(s, &mut lab.sim.can_wait(), a, Pfn(1), Caching::Back);
        assert_eq!(got, Err(Errno::EINVAL));
    }
    lab.done();
}

/// PFN-3, SOFTD-1: what a child gets of a shared window was not written by it; nobody looks for what was written to one.
#[test]
fn pfn_3_a_child_has_written_nothing() {
    let lab = Lab::new();
    let f = frames(&lab, 1);
    let s = lab.space();
    let va = map(&lab, s, 2, R | W, SHARED, f.pfn());
    lab.store(s, va, 5);
    assert!(lab.entry(s, va).dirty());
    let child = lab.fork(s);
    let e = lab.entry(child, va);
    assert!(e.writable() && !e.dirty() && !e.young(), "{e:?}");
    assert!(lab.entry(s, va).dirty());
    for what in [ops::ClearRefs::All, ops::ClearRefs::SoftDirty] {
        let before = lab.entry(s, va);
        ops::clear_refs(s, &mut lab.sim.can_wait(), what).unwrap();
        assert_eq!(lab.entry(s, va), before, "{what:?}");
    }
    lab.exit(child);
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
            let none = lab.fault(s, va, Want::Write, true);
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
                let e = lab.entry(s, va);
                assert!(e.special() && !e.mlocked(), "{what}: {e:?}");
                assert_eq!(e.0 & uncached, want, "{what}: {e:?}");
                assert_eq!(e.pfn().0, f.pfn().0 + nth, "{what}");
            };
            check(s, va, 0, "mapped");
            for prot in [R, 0, R | W, W, R | X, R | W] {
                lab.protect(s, va + P, 1, prot);
                check(s, va + P, 1, "protected");
            }
            let there = move_page(&lab, s, va + 2 * P, BASE + 100 * P);
            check(s, there, 2, "moved");
            let child = lab.fork(s);
            check(child, va + P, 1, "forked");
            check(child, there, 2, "moved and forked");
            check(s, there, 2, "shared with a child");
            if kind == PRIVATE {
                lab.store(child, there, 5);
                let copy = lab.entry(child, there);
                assert!(copy.is_counted() && copy.writable());
                assert_eq!(copy.0 & uncached, 0, "a copy is memory");
            }
            lab.exit(child);
            lab.exit(s);
        }
    }
    done_with(lab, f);
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
    let there = move_page(&lab, s, va + 3 * P, BASE + 600 * P);
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
    // Nothing follows from where a shared one lies, nor from the address of memory.
    let other = lab.space();
    for at in [
        map(&lab, other, 1, R, SHARED, f.pfn()),
        lab.map(other, 9, 1, R | W, ANON),
    ] {
        let guard = other.mmap_read(&mut lab.sim.can_wait());
        let vma = guard.find(at).unwrap();
        assert!(!vma.would_show(at, Pfn(vma.index_of(at))));
    }
    lab.exit(other);
    assert_eq!(s.rss(RssKind::Anon), 2);
    let vmas = |s: Space| s.mmap_read(&mut lab.sim.can_wait()).all().count();
    for prot in [R, R | W] {
        // Alike now, and still each for itself.
        lab.protect(s, va + P, 2, prot);
        assert_eq!(vmas(s), 4);
    }
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
    assert_eq!((lab.peek(f.pfn()), lab.sim.phys().bad_entries()), (1, 0));
    lab.exit(s);
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
            assert_eq!(lab.fault(s, va + P, want, false), BUS);
        }
        let child = lab.fork(s);
        assert_eq!(lab.fault(child, va + P, Want::Write, false), BUS);
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
    let frame = [bare(&f, 0)];
    for kind in [SHARED, PRIVATE] {
        let asked = kind | sys::MAP_LOCKED;
        let windows = [
            map(&lab, s, 4, R | W, asked, f.pfn()),
            mixed_at(&lab, s, 10, 4, R | W, asked, &frame).unwrap(),
        ];
        for va in windows {
            let none = |what: &str| {
                let f = lab.vma_flags(s, va);
                assert!(!f.intersects(VmaFlags::LOCKED_MASK), "{what}: {f:?}");
                let e = lab.entry(s, va);
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
        assert!(!lab.vma_flags(s, va).intersects(VmaFlags::LOCKED_MASK));
        assert_eq!(locked(), 0);
        let own = lab.map(s, 30, 1, R | W, ANON);
        assert!(lab.vma_flags(s, own).contains(VmaFlags::LOCKED));
        assert_eq!(locked(), 1);
        lab.unmap(s, own, 1);
    }
    lab.exit(s);
    done_with(lab, f);
}

/// The tests above see what they are for.
#[test]
fn planted_bugs_are_caught() {
    lab::catches(&[
        (13, "bug_13_a_copy_that_is_the_predicted_frame"),
        (35, "bug_35_another_process_in_the_window"),
    ]);
}
