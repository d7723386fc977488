//! Mappings of bare frames (SPEC section 6): what is counted (nothing), what a write to a private one copies, what fork,
//! unmap, split and move make of it, and who may not take hold of it.

mod common;
mod lab;

use common::{BASE, P, R, W, trap};
use lab::{ANON, Lab, PRIVATE, SHARED, Space};
use linux_raw_sys::general as sys;
use mm::fault::FaultResult;
use mm::gup::{self, GupFlags, PageSlot};
use mm::object::FileObject;
use mm::ops::{self, FileMap, MmapArgs};
use mm::phys::{Hw, Use};
use mm::sim::mmu::{PageFault, Want};
use mm::space::{RssKind, VmaFlags};
use mm::table::{Caching, PteState};
use mm::{Errno, Pfn};

/// Past the machine's memory: a device that does not answer.
const NOWHERE: u64 = 1 << 30;

fn map_at(
    lab: &Lab,
    s: Space,
    at: u64,
    pages: u64,
    prot: u32,
    flags: u32,
    first: Pfn,
) -> Result<u64, Errno> {
    let args = MmapArgs {
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
    };
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
    trap(lab.sim, s, fault)
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
    let flags = s
        .mmap_read(&mut lab.sim.can_wait())
        .find(va)
        .unwrap()
        .flags();
    let raw = VmaFlags::IO | VmaFlags::PFNMAP | VmaFlags::DONTEXPAND | VmaFlags::DONTDUMP;
    assert!(flags.contains(raw));
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
    lab.sim.phys().free(lab.sim, f);
    lab.done();
}

/// PFN-3, PFN-6, BUG-35: a private write copies; the frame keeps its content, its counts, and its owner.
#[test]
fn pfn_6_a_private_write_leaves_the_frame_alone() {
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

/// BUG-13: the copy happens to be the very frame that the window shows. It is a page all the same: freed once, counted by
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
    assert_eq!(present, FaultResult::Done { major: false });
    let entry = {
        let guard = s.mmap_read(&mut lab.sim.can_wait());
        match mm::table::walk::lookup(lab.sim, s.tables.root(), va, &guard).1 {
            PteState::Leaf(entry) => entry,
            other => panic!("{other:?}"),
        }
    };
    assert!(entry.is_counted());
    assert_eq!(entry.pfn(), pfn, "the test has the frame that it wants");
    let child = lab.fork(s);
    assert_eq!(lab.sim.desc(pfn).map_count(), 2);
    lab.exit(child);
    assert_eq!(lab.sim.desc(pfn).map_count(), 1);
    lab.unmap(s, va, 1);
    lab.done(); // freed once
}

/// PFN-7, BUG-27: what cannot be read is not zeroes.
#[test]
fn bug_27_a_copy_that_cannot_be_made() {
    let lab = Lab::new();
    let s = lab.space();
    let va = map(&lab, s, 2, R | W, PRIVATE, Pfn(NOWHERE));
    let bus = FaultResult::Bus { code: 2 };
    assert_eq!(touch(&lab, s, va, Want::Write, true), bus);
    assert_eq!(s.rss_total(), 0);
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
    lab.sim.phys().free(lab.sim, f);
    lab.done();
}

/// No frame for a table, or for a copy: nothing stays.
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
    lab.sim.phys().free(lab.sim, f);
    lab.done();
}
