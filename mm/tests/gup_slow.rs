//! Taking hold of pages under the locks: what is returned, who may, what is counted, and who owns what after.

mod common;
mod lab;

use common::{P, R, W, X};
use lab::{ANON, Lab, NONE, PRIVATE, Pins, SHARED, Space, slots};
use mm::Errno;
use mm::gup::{self, GupFlags, PageSlot, Read, Write};
use mm::hw::Warning;
use mm::ops::{self, access};
use mm::phys::Hw;
use mm::sim::Machine;

fn pin<A: gup::Access>(
    lab: &Lab,
    s: Space,
    va: u64,
    n: usize,
    flags: GupFlags,
) -> Result<Pins<A>, Errno> {
    gup::pin_user_pages_remote(s, &mut lab.sim.can_wait(), va, flags, slots(n))
}

fn get(
    lab: &Lab,
    s: Space,
    va: u64,
    n: usize,
    flags: GupFlags,
) -> Result<gup::HeldPages<Machine, Vec<PageSlot>>, Errno> {
    gup::get_user_pages_remote(s, &mut lab.sim.can_wait(), va, flags, slots(n))
}

/// ARG-1, ARG-2, ARG-3: words that no caller may say.
#[test]
fn arg_1_raw_words_are_checked() {
    for bits in [1u32, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x100, 0x800] {
        assert!(GupFlags::from_raw(bits).is_ok(), "{bits:#x}");
    }
    // GET is implied, the rest is internal or unknown.
    for bits in [2u32, 0x200, 0x400, 1 << 16, 1 << 19, 1 << 31, u32::MAX] {
        assert_eq!(GupFlags::from_raw(bits), Err(Errno::EINVAL), "{bits:#x}");
    }
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1, R | W, ANON);
    // A reference is not for ever.
    assert_eq!(
        get(&lab, s, va, 1, GupFlags::LONGTERM).err(),
        Some(Errno::EINVAL)
    );
    // A pin to read does not write.
    assert_eq!(
        pin::<Read>(&lab, s, va, 1, GupFlags::WRITE).err(),
        Some(Errno::EINVAL)
    );
    assert_eq!(lab.sim.warnings(), [Warning::GupArguments; 2]);
    assert_eq!(lab.load(s, va), Some(0));
    lab.done();
}

/// ARG-6, LOOP-3, LOCK-2.
#[test]
fn arg_6_counts_of_nothing_and_of_everything() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 4, R | W, ANON);
    assert_eq!(get(&lab, s, va, 0, NONE).unwrap().len(), 0);
    assert_eq!(get(&lab, s, 0xdead_0000, 0, NONE).unwrap().len(), 0);
    let wait = &mut lab.sim.can_wait();
    for (nr, want) in [
        (0, Ok(0)),
        (4, Ok(4)),
        (5, Ok(4)),
        (1 << 52, Err(Errno::EOVERFLOW)),
        ((1 << 52) - 1, Err(Errno::EOVERFLOW)),
        (u64::MAX, Err(Errno::EOVERFLOW)),
    ] {
        let got = gup::fault_in_pages(s, wait, va, nr, GupFlags::WRITE);
        assert_eq!(got, want, "{nr:#x}");
    }
    assert_eq!(s.rss_total(), 4);
    lab.done();
}

/// ARG-7, LOOP-1, BUG-31: an address inside a page; three pages and a hole.
#[test]
fn loop_1_three_pages_and_a_hole() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 3, R | W, ANON);
    lab.store_each(s, va, 3, 10);
    let pins = pin::<Read>(&lab, s, va + 77, 5, NONE).unwrap();
    assert_eq!(pins.len(), 3);
    for (i, page) in pins.pages().iter().enumerate() {
        assert_eq!(lab.dma_read(*page), 10 + i as u8);
        assert_eq!(lab.refs(*page), 1 + 1024);
    }
    let pages: Vec<_> = pins.pages().to_vec();
    drop(pins);
    assert!(pages.iter().all(|p| lab.refs(*p) == 1));
    assert_eq!(
        pin::<Read>(&lab, s, va + 3 * P, 2, NONE).err(),
        Some(Errno::EFAULT)
    );
    lab.done();
}

/// VMA-2 to VMA-5, VMA-8, VMA-9, WALK-6: rights, with and without force; two VMAs in one call.
#[test]
fn vma_rights_with_and_without_force() {
    let force = GupFlags::FORCE;
    let lab = Lab::new();
    let s = lab.space();
    let file = lab.file(4);
    let rw = lab.map(s, 0, 1, R | W, ANON);
    let ro = lab.map(s, 1, 1, R, ANON);
    let none = lab.map(s, 2, 1, 0, ANON);
    let wo = lab.map(s, 3, 1, W, ANON);
    let x = lab.map(s, 4, 1, X, ANON);
    let shared_ro = lab.map_file(s, 8, 1, R, SHARED, Some(file));
    let private_ro = lab.map_file(s, 9, 1, R, PRIVATE, Some(file));
    let refused = Some(Errno::EFAULT);
    for (va, read, write, force_read, force_write) in [
        (rw, None, None, None, None),
        (ro, None, refused, None, None),
        (none, refused, refused, None, None),
        (wo, refused, None, None, None),
        (x, refused, refused, None, None),
        (shared_ro, None, refused, None, refused), // BUG-14
        (private_ro, None, refused, None, None),
    ] {
        assert_eq!(pin::<Read>(&lab, s, va, 1, NONE).err(), read, "{va:#x}");
        assert_eq!(pin::<Write>(&lab, s, va, 1, NONE).err(), write, "{va:#x}");
        assert_eq!(
            pin::<Read>(&lab, s, va, 1, force).err(),
            force_read,
            "{va:#x}"
        );
        assert_eq!(
            pin::<Write>(&lab, s, va, 1, force).err(),
            force_write,
            "{va:#x}"
        );
    }
    // From one VMA into another that refuses: what was had.
    assert_eq!(pin::<Write>(&lab, s, rw, 2, NONE).unwrap().len(), 1);
    // VMA-9.
    let anon = GupFlags::ANON;
    assert!(get(&lab, s, rw, 1, anon).is_ok());
    assert_eq!(get(&lab, s, private_ro, 1, anon).err(), refused);
    lab.done();
}

/// VMA-5, LOOP-7, BUG-1: a debugger's write to what may not be written is the process's own copy, page by page; the
/// file stays, the page stays read-only.
#[test]
fn vma_5_a_forced_write_is_private() {
    let lab = Lab::new();
    let (s, other) = (lab.space(), lab.space());
    let file = lab.file(4);
    let writer = lab.map_file(other, 0, 2, R | W, SHARED, Some(file));
    lab.store_each(other, writer, 2, 0x40);
    let va = lab.map_file(s, 0, 2, R, PRIVATE, Some(file));
    assert_eq!(lab.load(s, va), Some(0x40));
    let wait = &mut lab.sim.can_wait();
    let n = access::write(s, wait, va + P - 2, b"abcd", GupFlags::FORCE);
    assert_eq!(n, Ok(4));
    let mut back = [0; 4];
    assert_eq!(access::read(s, wait, va + P - 2, &mut back, NONE), Ok(4));
    assert_eq!(&back, b"abcd");
    assert_eq!(lab.load(s, va + P), Some(b'c'));
    assert_eq!(lab.load(other, writer + P), Some(0x41), "the file");
    // Still not the program's to write.
    let r = access::write(s, wait, va, b"x", NONE);
    assert_eq!(r, Err(Errno::EFAULT));
    // And what it discards is the file's again.
    lab.dontneed(s, va, 2);
    assert_eq!(lab.load(s, va + P), Some(0x41));
    // Between a PROT_NONE fence: contents seen and changed by force only.
    let fence = lab.map(s, 16, 1, R | W, ANON);
    lab.store(s, fence, 7);
    lab.protect(s, fence, 1, 0);
    assert_eq!(
        access::read(s, wait, fence, &mut back[..1], NONE),
        Err(Errno::EFAULT)
    );
    assert_eq!(
        access::read(s, wait, fence, &mut back[..1], GupFlags::FORCE),
        Ok(1)
    );
    assert_eq!(back[0], 7);
    assert_eq!(
        access::write(s, wait, fence, b"\x09", GupFlags::FORCE),
        Ok(1)
    );
    assert_eq!(lab.load(s, fence), None);
    lab.protect(s, fence, 1, R);
    assert_eq!(lab.load(s, fence), Some(9));
    lab.done();
}

/// WALK-6, BUG-5: after a fork a forced write goes to a copy, and the other process keeps its page.
#[test]
fn walk_6_a_forced_write_wants_an_exclusive_page() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1, R | W, ANON);
    lab.store(s, va, 1);
    lab.protect(s, va, 1, R);
    let child = lab.fork(s);
    let wait = &mut lab.sim.can_wait();
    assert_eq!(
        access::write(child, wait, va, b"\x02", GupFlags::FORCE),
        Ok(1)
    );
    assert_eq!(lab.load(s, va), Some(1));
    assert_eq!(lab.load(child, va), Some(2));
    lab.done();
}

/// SOFTD-1, BUG-25: where writes are tracked a forced write faults until its page is known to be written, and no longer.
#[test]
fn softd_1_a_forced_write_is_seen() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    lab.store(s, va, 1);
    lab.store(s, va + P, 1);
    lab.protect(s, va, 2, R);
    let wait = &mut lab.sim.can_wait();
    ops::clear_refs(s, wait, ops::ClearRefs::SoftDirty).unwrap();
    let dirty = |va: u64| {
        let mut wait = lab.sim.can_wait();
        let guard = s.mmap_read(&mut wait);
        let table = s.tables.pte_table(va, &guard).unwrap();
        table.get((va / P % 512) as usize).soft_dirty()
    };
    assert!(!dirty(va));
    let mut back = [0];
    assert_eq!(access::read(s, wait, va, &mut back, NONE), Ok(1));
    assert!(!dirty(va), "a read");
    assert_eq!(access::write(s, wait, va, b"\x02", GupFlags::FORCE), Ok(1));
    assert!(dirty(va) && !dirty(va + P));
    assert_eq!(lab.load(s, va), Some(2));
    // A copy for a reader who pins says what the page said that it is a copy of.
    let child = lab.fork(s);
    drop(pin::<Read>(&lab, s, va, 2, NONE).unwrap());
    assert!(
        dirty(va) && !dirty(va + P),
        "a copy is no write, and forgets none"
    );
    lab.exit(child);
    lab.done();
}

/// PIN-1, PIN-7, PIN-14, PIN-17, LOCK-10: what each way of holding counts.
#[test]
fn pin_1_what_is_counted() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    lab.store(s, va, 1);
    let held = get(&lab, s, va, 1, NONE).unwrap();
    let page = held.pages()[0];
    assert_eq!((lab.refs(page), lab.pins()), (2, 0));
    assert!(!lab.folio(page.pfn()).maybe_pinned());
    let pins = pin::<Write>(&lab, s, va, 1, NONE).unwrap();
    assert_eq!((lab.refs(page), lab.pins()), (1026, 1));
    assert!(lab.folio(page.pfn()).maybe_pinned());
    held.put();
    pins.unpin();
    assert_eq!((lab.refs(page), lab.pins()), (1, 0));
    assert_eq!(lab.sim.phys().pin_counts(), (1, 1));
    // The zero page is in the slots, and not counted.
    let zero = pin::<Read>(&lab, s, va + P, 1, NONE).unwrap();
    assert_eq!(zero.pages()[0].pfn(), lab.sim.phys().zero_page());
    let before = lab.refs(zero.pages()[0]);
    drop(zero);
    assert_eq!(before, lab.refs(PageSlot::new(lab.sim.phys().zero_page())));
    assert_eq!(lab.sim.phys().pin_counts(), (1, 1));
    // A reference to it is one like any other.
    let held = get(&lab, s, va + P, 1, NONE).unwrap();
    assert_eq!(lab.refs(held.pages()[0]), before + 1);
    drop(held);
    // Leaked pins show.
    std::mem::forget(pin::<Read>(&lab, s, va, 1, NONE).unwrap());
    assert_eq!(lab.pins(), 1);
    gup::unpin_user_pages(lab.sim, &[page], 1);
    lab.done();
}

/// WALK-7, PIN-10, RMAP-1: who marks what; the device's writes pass by the entry.
#[test]
fn walk_7_accessed_and_dirty() {
    use mm::phys::flag::{DIRTY, REFERENCED};
    let lab = Lab::new();
    let s = lab.space();
    let file = lab.file(1);
    let va = lab.map_file(s, 0, 1, R | W, SHARED, Some(file));
    lab.load(s, va);
    let at = |held: &[PageSlot]| lab.folio(held[0].pfn());
    let held = get(&lab, s, va, 1, NONE).unwrap();
    let folio = at(held.pages());
    assert!(folio.desc().has(REFERENCED) && !folio.desc().has(DIRTY));
    drop(held);
    folio.desc().clear(REFERENCED);
    // A pin to write dirties when it ends, not if told that nothing was written.
    let pins = pin::<Write>(&lab, s, va, 1, NONE).unwrap();
    folio.desc().clear(DIRTY);
    pins.unpin_clean();
    assert!(!folio.desc().has(DIRTY));
    drop(pin::<Write>(&lab, s, va, 1, NONE).unwrap());
    assert!(folio.desc().has(DIRTY | REFERENCED));
    lab.done();
}

/// PIN-8, PIN-9, PIN-10, PIN-11, BUG-28: an errno is no count.
#[test]
fn bug_28_an_errno_is_no_count() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    let pins = pin::<Write>(&lab, s, va, 2, NONE).unwrap();
    let pages = pins.pages().to_vec();
    std::mem::forget(pins);
    let efault = (-14i64) as u64;
    gup::unpin_user_pages(lab.sim, &pages, efault);
    gup::unpin_user_pages_dirty_lock(lab.sim, &pages, efault, true);
    gup::unpin_user_page_range_dirty_lock(lab.sim, pages[0].pfn(), efault, true);
    assert_eq!(lab.sim.warnings(), [Warning::UnpinCount; 3]);
    assert!(pages.iter().all(|p| lab.refs(*p) == 1025));
    gup::unpin_user_pages_dirty_lock(lab.sim, &pages[..1], 1, true);
    gup::unpin_user_page_range_dirty_lock(lab.sim, pages[1].pfn(), 1, false);
    assert!(pages.iter().all(|p| lab.refs(*p) == 1));
    lab.done();
}

/// PIN-5, PIN-21, BUG-8: a count near its limit is refused, and unchanged.
#[test]
fn bug_8_a_full_count_is_refused() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    lab.store_each(s, va, 2, 1);
    let held = get(&lab, s, va + P, 1, NONE).unwrap();
    let d = lab.folio(held.pages()[0].pfn()).desc();
    let near = i32::MAX / 2;
    let before = d.refs.swap(near, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(get(&lab, s, va + P, 1, NONE).err(), Some(Errno::ENOMEM));
    assert_eq!(
        pin::<Write>(&lab, s, va + P, 1, NONE).err(),
        Some(Errno::ENOMEM)
    );
    // After one that could be had: a short count.
    assert_eq!(get(&lab, s, va, 2, NONE).unwrap().len(), 1);
    assert_eq!(d.ref_count(), near);
    d.refs.store(before, std::sync::atomic::Ordering::SeqCst);
    drop(held);
    lab.done();
}

/// UNSH-1, UNSH-2, BUG-6: a pin to read after a fork has the page that the process will write.
#[test]
fn bug_6_a_read_pin_does_not_go_stale() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1, R | W, ANON);
    lab.store(s, va, 1);
    let child = lab.fork(s);
    for p in [s, child] {
        let pins = pin::<Read>(&lab, p, va, 1, NONE).unwrap();
        lab.store(p, va, 5);
        assert_eq!(
            lab.dma_read(pins.pages()[0]),
            5,
            "the device sees the store"
        );
    }
    // Private pages of files and untouched memory: only for pins that last.
    let file = lab.file(2);
    let private = lab.map_file(s, 4, 1, R | W, PRIVATE, Some(file));
    let fresh = lab.map(s, 5, 1, R | W, ANON);
    for va in [private, fresh] {
        lab.load(s, va);
        let pins = pin::<Read>(&lab, s, va, 1, GupFlags::LONGTERM).unwrap();
        assert_ne!(pins.pages()[0].pfn(), lab.sim.phys().zero_page());
        lab.store(s, va, 6);
        assert_eq!(lab.dma_read(pins.pages()[0]), 6);
    }
    lab.done();
}

/// BUG-5, PIN-15, ADJ-4: pin, fork, write: the device and the parent share a page, the child has a copy.
#[test]
fn bug_5_a_pinned_page_stays_the_parents() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    lab.store_each(s, va, 2, 1);
    let pins = pin::<Write>(&lab, s, va, 1, NONE).unwrap();
    let page = pins.pages()[0];
    let child = lab.fork(s);
    lab.store(s, va, 2);
    assert_eq!(lab.dma_read(page), 2, "the device sees the parent's store");
    lab.dma_write(page, 3);
    assert_eq!(lab.load(s, va), Some(3), "the parent sees the device's");
    assert_eq!(
        lab.load(child, va),
        Some(1),
        "the child has the page of the fork"
    );
    lab.exit(child);
    drop(pins);
    lab.done();
}

/// BUG-4: a reference that a child takes and keeps sees nothing that the parent writes later.
#[test]
fn bug_4_a_childs_reference_sees_no_later_secret() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1, R | W, ANON);
    lab.store(s, va, 1);
    let child = lab.fork(s);
    let held = get(&lab, child, va, 1, NONE).unwrap();
    lab.unmap(child, va, 1);
    lab.store(s, va, 99);
    assert_eq!(lab.dma_read(held.pages()[0]), 1);
    drop(held);
    lab.done();
}

/// WALK-10, PIN-15: what is pinned outlives its mapping, and is nobody else's until it is let go.
#[test]
fn walk_10_a_pinned_page_outlives_its_mapping() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    lab.store_each(s, va, 2, 1);
    let pins = pin::<Write>(&lab, s, va, 2, NONE).unwrap();
    lab.dontneed(s, va, 1);
    assert_eq!(lab.load(s, va), Some(0), "a new page");
    lab.unmap(s, va, 2);
    let pages = pins.pages().to_vec();
    lab.dma_write(pages[0], 7);
    assert_eq!(lab.dma_read(pages[0]), 7);
    lab.exit(s);
    assert!(pages.iter().all(|p| lab.refs(*p) == 1024));
    drop(pins);
    assert!(pages.iter().all(|p| lab.refs(*p) == 0));
    lab.done();
}

/// FAULT-2: nothing is faulted in.
#[test]
fn fault_2_nofault_takes_what_is_there() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 3, R | W, ANON);
    lab.store(s, va, 1);
    lab.load(s, va + P); // the zero page: readable, not writable
    let nofault = GupFlags::NOFAULT;
    assert_eq!(get(&lab, s, va, 3, nofault).unwrap().len(), 2);
    assert_eq!(pin::<Write>(&lab, s, va, 3, nofault).unwrap().len(), 1);
    assert_eq!(
        get(&lab, s, va + 2 * P, 1, nofault).err(),
        Some(Errno::EFAULT)
    );
    let child = lab.fork(s);
    // A read-only pin would have to unshare first.
    assert_eq!(
        pin::<Read>(&lab, s, va, 1, nofault).err(),
        Some(Errno::EFAULT)
    );
    assert_eq!(s.rss_total(), 1);
    lab.exit(child);
    lab.done();
}

/// FAULT-7, LOOP-2: beyond the end of a file; out of memory.
#[test]
fn fault_7_what_a_fault_may_answer() {
    let lab = Lab::new();
    let s = lab.space();
    let file = lab.file(1);
    let va = lab.map_file(s, 0, 2, R | W, SHARED, Some(file));
    assert_eq!(get(&lab, s, va, 2, NONE).unwrap().len(), 1);
    assert_eq!(get(&lab, s, va + P, 1, NONE).err(), Some(Errno::EFAULT));
    let anon = lab.map(s, 4, 1, R | W, ANON);
    lab.sim.phys().fail_after(1);
    assert_eq!(
        pin::<Write>(&lab, s, anon, 1, NONE).err(),
        Some(Errno::ENOMEM)
    );
    // With the lock kept there is nothing to wait for: none, and no error (FAULT-3, BUG-24).
    lab.sim.phys().fail_after(1);
    let wait = &mut lab.sim.can_wait();
    let guard = s.mmap_read(wait);
    let flags = GupFlags::WRITE | GupFlags::NOWAIT;
    let (got, guard) = gup::get_user_pages_locked(guard, wait, anon, flags, slots(1));
    assert_eq!(got.unwrap().len(), 0);
    assert!(guard.is_some(), "the lock is kept");
    drop(guard);
    assert!(s.try_mmap_write().is_some());
    lab.done();
}

/// LOCK-3, LOCK-5, LOCK-6, FAULT-5, BUG-34: the lock goes while room is made; another thread replaces the mapping; the new one's
/// rights count, and what was taken before stays.
#[test]
fn lock_5_the_lock_goes_and_the_mapping_changes() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 4, R | W, ANON);
    lab.store(s, va, 1);
    for replace in [false, true] {
        lab.sim.phys().fail_after(1);
        let (sim, space) = (lab.sim, s);
        lab.sim.on_no_frame(move || {
            let wait = &mut sim.can_wait();
            // Nobody holds the lock now.
            drop(space.try_mmap_write().expect("the lock is free"));
            if replace {
                ops::mprotect(space, wait, va + P, P, R).unwrap();
            }
            true
        });
        let wait = &mut lab.sim.can_wait();
        let guard = s.mmap_read(wait);
        let (got, guard) = gup::get_user_pages_locked(guard, wait, va, GupFlags::WRITE, slots(3));
        let got = got.unwrap();
        assert_eq!(got.len(), if replace { 1 } else { 3 });
        assert!(guard.is_none(), "who lent the lock knows that it was away");
        drop(got);
        lab.dontneed(s, va + P, 3);
    }
    // Nothing before it: the refusal is the result.
    lab.protect(s, va + P, 1, R | W);
    lab.sim.phys().fail_after(1);
    let (sim, space) = (lab.sim, s);
    lab.sim.on_no_frame(move || {
        ops::munmap(space, &mut sim.can_wait(), va + P, P).unwrap();
        true
    });
    assert_eq!(
        pin::<Write>(&lab, s, va + P, 1, NONE).err(),
        Some(Errno::EFAULT)
    );
    lab.done();
}

/// LOCK-9: what is only to be there is brought in to its end, though the lock goes in the middle, more than once.
#[test]
fn lock_9_a_prefault_goes_on_after_the_lock_went() {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static GONE: AtomicU32 = AtomicU32::new(0);
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 40, R | W, ANON);
    let sim = lab.sim;
    lab.sim.phys().fail_after(5);
    lab.sim.on_no_frame(move || {
        if GONE.fetch_add(1, Relaxed) == 0 {
            sim.phys().fail_after(7);
        }
        true
    });
    let got = gup::fault_in_pages(s, &mut lab.sim.can_wait(), va, 40, GupFlags::WRITE);
    assert_eq!(got, Ok(40));
    assert_eq!((GONE.load(Relaxed), s.rss_total()), (2, 40));
    lab.done();
}

/// FAULT-1, FAULT-8, FAULT-9: each wish has its own fault, and the entry says afterwards which it was.
#[test]
fn fault_1_a_wish_faults_for_what_it_needs_and_no_more() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 4, R | W, ANON);
    let entry = |va: u64| {
        let mut wait = lab.sim.can_wait();
        let guard = s.mmap_read(&mut wait);
        let table = s.tables.pte_table(va, &guard).unwrap();
        let e = table.get((va / P % 512) as usize);
        (e.present(), e.writable(), e.special())
    };
    // To read is content with the zero page, also for a pin; to write is not.
    drop(get(&lab, s, va, 1, NONE).unwrap());
    assert_eq!(entry(va), (true, false, true));
    drop(pin::<Read>(&lab, s, va + P, 1, NONE).unwrap());
    assert_eq!(entry(va + P), (true, false, true));
    drop(pin::<Write>(&lab, s, va + P, 1, NONE).unwrap());
    assert_eq!(entry(va + P), (true, true, false));
    // Shared with a child: a reference leaves it shared, a pin to read has its own and lets nobody write yet.
    lab.store(s, va + 2 * P, 5);
    let child = lab.fork(s);
    let held = get(&lab, s, va + 2 * P, 1, NONE).unwrap();
    assert!(!lab.folio(held.pages()[0].pfn()).is_exclusive());
    drop(held);
    let pins = pin::<Read>(&lab, s, va + 2 * P, 1, NONE).unwrap();
    assert!(lab.folio(pins.pages()[0].pfn()).is_exclusive());
    assert!(!entry(va + 2 * P).1);
    drop(pins);
    // A forced write: its own page, and the program may not write it.
    lab.protect(s, va + 3 * P, 1, R);
    drop(pin::<Write>(&lab, s, va + 3 * P, 1, GupFlags::FORCE).unwrap());
    assert_eq!(entry(va + 3 * P), (true, false, false));
    lab.exit(child);
    lab.done();
}

/// UNSH-4, PIN-13: a build with checks says of a pinned page that it became another's, too.
#[cfg(debug_assertions)]
#[test]
fn unsh_4_a_pinned_page_that_is_shared_is_told() {
    use mm::phys::flag::ANON_EXCLUSIVE;
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1, R | W, ANON);
    let pins = pin::<Write>(&lab, s, va, 1, NONE).unwrap();
    let pfn = pins.pages()[0].pfn();
    lab.folio(pfn).desc().clear(ANON_EXCLUSIVE);
    drop(pins);
    assert_eq!(lab.sim.warnings(), [Warning::PinnedShared(pfn)]);
    lab.done();
}

/// LOCK-1: under a lock that is held for writing, and kept.
#[test]
fn lock_1_the_lock_is_kept() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 3, R | W, ANON);
    let wait = &mut lab.sim.can_wait();
    let guard = s.mmap_write(wait);
    let held = gup::get_user_pages(&guard, s, wait, va, GupFlags::WRITE, slots(3)).unwrap();
    assert_eq!(held.len(), 3);
    assert!(s.try_mmap_read().is_none());
    lab.sim.phys().fail_after(1);
    lab.sim
        .on_no_frame(|| panic!("nobody waits under a lock that is kept"));
    drop(held);
    drop(guard);
    lab.dontneed(s, va, 3);
    let guard = s.mmap_read(wait);
    lab.sim.phys().fail_after(1);
    let r: Result<Pins<Write>, _> = gup::pin_user_pages(&guard, s, wait, va, NONE, slots(3));
    assert_eq!(r.err(), Some(Errno::ENOMEM));
    drop(guard);
    lab.done();
}

/// WALK-2: an entry of the root that no machine would take for a table leads nowhere, by either walk.
#[test]
fn walk_2_a_root_entry_that_is_no_table_leads_nowhere() {
    use mm::table::pte::bit;
    use mm::table::{LeafBits, Pte, walk};
    let lab = Lab::new();
    let s = lab.space();
    let bad = Pte::leaf(mm::Pfn(1 << 30), LeafBits::user(true, true, false)).with(bit::PS);
    let far = lab.map(s, 1 << 27, 1, R | W, ANON);
    let i = walk::index(far, walk::ROOT);
    let root = || {
        s.tables
            .huge_table_alloc(far, walk::ROOT, &lab::Sure)
            .unwrap()
    };
    root().install(i, bad);
    for flags in [GupFlags::NOFAULT, GupFlags::DUMP | GupFlags::FORCE] {
        assert_eq!(get(&lab, s, far, 1, flags).err(), Some(Errno::EFAULT));
    }
    let wait = &mut lab.sim.can_wait();
    let got = gup::get_user_pages_fast(s, wait, far, GupFlags::NOFAULT, slots(1));
    assert_eq!(got.err(), Some(Errno::EFAULT));
    root().take(i);
    lab.done();
}

/// PFN-1, PFN-10, LOOP-2, LOOP-3: what no descriptor stands behind can be made accessible and not be held, huge or not.
#[test]
fn pfn_10_a_raw_huge_leaf_has_no_descriptor() {
    use mm::table::pte::bit;
    use mm::table::{LeafBits, Pte, walk};
    let lab = Lab::new();
    let s = lab.space();
    let wait = &mut lab.sim.can_wait();
    let va = 0x4020_0000;
    let args = ops::MmapArgs {
        addr: va,
        len: 512 * P,
        prot: R | W,
        flags: SHARED | linux_raw_sys::general::MAP_ANONYMOUS | lab::FIXED,
        file: None,
    };
    ops::mmap(s, wait, args).unwrap();
    let far = mm::Pfn(lab.sim.frames_end().next_multiple_of(512) + (1 << 20));
    let leaf = Pte::leaf(far, LeafBits::user(true, true, false)).with(bit::PS | bit::SPECIAL);
    let i = walk::index(va, 2);
    s.tables
        .huge_table_alloc(va, 2, &lab::Sure)
        .unwrap()
        .install(i, leaf);
    let entry = || {
        let mut table = s.tables.huge_table_alloc(va, 2, &lab::Sure).unwrap();
        let e = table.get(i);
        table.clear_bits(i, bit::A | bit::D);
        e.0 & (bit::A | bit::D)
    };
    entry();
    for (flags, marks) in [(NONE, bit::A), (GupFlags::WRITE, bit::A | bit::D)] {
        assert_eq!(
            gup::fault_in_pages(s, wait, va + 5 * P, 500, flags),
            Ok(500)
        );
        assert_eq!(entry(), marks, "as the MMU would say");
        assert_eq!(get(&lab, s, va, 3, flags).err(), Some(Errno::EEXIST));
    }
    s.tables
        .huge_table_alloc(va, 2, &lab::Sure)
        .unwrap()
        .take(i);
    lab.done();
}

/// FAULT-12, LOCK-7: a thread that shall die takes no more pages.
#[test]
fn fault_12_a_dying_thread_stops() {
    use mm::hw::Cpu;
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1500, R | W, ANON);
    mm::sim::park::set_killed(lab.sim.waiter(), true);
    assert_eq!(
        get(&lab, s, va, 4, GupFlags::WRITE).err(),
        Some(Errno::EINTR)
    );
    mm::sim::park::set_killed(lab.sim.waiter(), false);
    // In the middle: a short count.
    let sim = lab.sim;
    lab.sim
        .on_pause(move |_| mm::sim::park::set_killed(sim.waiter(), true));
    let got = gup::fault_in_pages(s, &mut lab.sim.can_wait(), va, 1500, GupFlags::WRITE);
    lab.sim.no_pause();
    mm::sim::park::set_killed(lab.sim.waiter(), false);
    assert!(got == Ok(0) || got == Err(Errno::EINTR), "{got:?}");
    assert!(s.rss_total() <= 1);
    lab.done();
}

/// LOCK-8: a signal that its program handles stops those who said so, between two faults and with what they have;
/// the others go on.
#[test]
fn lock_8_an_ordinary_signal_stops_who_asked_for_it() {
    use mm::hw::Cpu;
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 8, R | W, ANON);
    let sim = lab.sim;
    let wants = GupFlags::WRITE | GupFlags::INTERRUPTIBLE;
    let after_a_fault = |flags| {
        lab.dontneed(s, va, 8);
        sim.on_pause(move |at| {
            if at == mm::race::Point::SlowFaulted {
                mm::sim::park::set_signalled(sim.waiter(), true);
            }
        });
        let got = gup::get_user_pages_remote(s, &mut sim.can_wait(), va, flags, slots(8));
        sim.no_pause();
        let second = gup::get_user_pages_remote(s, &mut sim.can_wait(), va, flags, slots(8));
        mm::sim::park::set_signalled(sim.waiter(), false);
        (got.map(|h| h.len()), second.map(|h| h.len()))
    };
    assert_eq!(after_a_fault(wants), (Err(Errno::EINTR), Err(Errno::EINTR)));
    assert_eq!(after_a_fault(GupFlags::WRITE), (Ok(8), Ok(8)));
    // What was there before it came is returned.
    lab.dontneed(s, va, 8);
    lab.store_each(s, va, 2, 1);
    sim.on_pause(move |at| {
        if at == mm::race::Point::SlowMissed {
            mm::sim::park::set_signalled(sim.waiter(), true);
        }
    });
    let got = gup::get_user_pages_remote(s, &mut sim.can_wait(), va, wants, slots(8)).unwrap();
    sim.no_pause();
    mm::sim::park::set_signalled(sim.waiter(), false);
    assert_eq!(got.len(), 2);
    drop(got);
    lab.done();
}

/// VMA-1, BUG-18: the kernel's look does not grow a stack; it is said, and the program's own push does.
#[test]
fn vma_1_the_kernels_look_grows_no_stack() {
    use linux_raw_sys::general as sys;
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 100, 4, R | W, ANON | sys::MAP_GROWSDOWN);
    let below = va - P;
    assert_eq!(get(&lab, s, below, 1, NONE).err(), Some(Errno::EFAULT));
    let far = va - (64 << 10) - P;
    assert_eq!(get(&lab, s, far, 1, NONE).err(), Some(Errno::EFAULT));
    let said = lab.sim.warnings();
    assert_eq!(
        said,
        [Warning::BelowStack {
            va: below,
            start: va
        }]
    );
    assert_eq!(
        s.mmap_read(&mut lab.sim.can_wait())
            .find_from(0)
            .unwrap()
            .start(),
        va
    );
    lab.store(s, below, 1);
    assert!(get(&lab, s, below, 1, NONE).is_ok());
    lab.done();
}

/// DUMP-2, WALK-1: what would read as zeroes is a hole, and no table is made for it.
#[test]
fn walk_1_a_dump_finds_holes_and_makes_nothing() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1024, R | W, ANON);
    lab.store(s, va, 1);
    lab.load(s, va + P);
    let free = lab.sim.phys().free_frames(lab.sim);
    let dump = GupFlags::DUMP | GupFlags::FORCE;
    assert!(get(&lab, s, va, 1, dump).is_ok());
    for hole in [va + P, va + 2 * P, va + 700 * P] {
        assert_eq!(get(&lab, s, hole, 1, dump).err(), Some(Errno::EFAULT));
    }
    assert_eq!(lab.sim.phys().free_frames(lab.sim), free);
    lab.done();
}

/// WALK-4, PIN-18, BUG-38: the hook fails in the middle: every slot before it is right, the page keeps no pin.
#[test]
fn pin_18_an_inaccessible_page_keeps_no_pin() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1100, R | W, ANON);
    lab.store_each(s, va, 1100, 0);
    let all = get(&lab, s, va, 1100, NONE).unwrap();
    let pages = all.pages().to_vec();
    drop(all);
    let bad = pages[600];
    lab.sim.on_access(move |pfn| {
        if pfn == bad.pfn() {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    });
    let pins = pin::<Write>(&lab, s, va, 1100, NONE).unwrap();
    assert_eq!(pins.pages(), &pages[..600]);
    assert_eq!(lab.refs(bad), 1);
    drop(pins);
    assert_eq!(
        pin::<Read>(&lab, s, va + 600 * P, 1, NONE).err(),
        Some(Errno::EIO)
    );
    // Who does not touch the data is not asked.
    assert!(get(&lab, s, va + 600 * P, 1, NONE).is_ok());
    lab.done();
}

/// LT-3, LT-4, LT-5, LT-10: a page that may have to move is not pinned for ever; one that is made for the pin need not.
#[test]
fn lt_4_no_lasting_pin_on_movable_memory() {
    let lab = Lab::with(mm::sim::Config {
        movable: 1024,
        mischief: 0,
        ..mm::sim::Config::default()
    });
    let s = lab.space();
    let va = lab.map(s, 0, 3, R | W, ANON);
    lab.store(s, va + P, 1);
    let long = GupFlags::LONGTERM;
    assert_eq!(
        pin::<Write>(&lab, s, va + P, 1, long).err(),
        Some(Errno::ENOMEM)
    );
    assert_eq!(lab.pins(), 0);
    assert!(
        pin::<Write>(&lab, s, va + P, 1, NONE).is_ok(),
        "a short one is fine"
    );
    let fresh = pin::<Write>(&lab, s, va, 1, long).unwrap();
    assert_eq!(lab.pins(), 1);
    drop(fresh);
    lab.done();
}

/// Copies across pages and VMAs; partial ones; nothing at all.
#[test]
fn access_copies_what_it_can() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 40, R | W, ANON);
    let wait = &mut lab.sim.can_wait();
    let text: Vec<u8> = (0..39 * P).map(|i| (i % 251) as u8).collect();
    assert_eq!(access::write(s, wait, va + 5, &text, NONE), Ok(text.len()));
    let mut back = vec![0; text.len()];
    assert_eq!(
        access::read(s, wait, va + 5, &mut back, NONE),
        Ok(text.len())
    );
    assert!(back == text);
    assert_eq!(lab.load(s, va + 5 + 251), Some(0));
    assert_eq!(lab.load(s, va + 6), Some(1));
    let mut tail = vec![0; 3 * P as usize];
    assert_eq!(
        access::read(s, wait, va + 38 * P + 9, &mut tail, NONE),
        Ok(2 * P as usize - 9)
    );
    for at in [
        va + 40 * P,
        0,
        u64::MAX,
        u64::MAX - 5,
        mm::USER_END,
        1 << 63,
    ] {
        assert_eq!(
            access::read(s, wait, at, &mut tail, NONE),
            Err(Errno::EFAULT),
            "{at:#x}"
        );
    }
    assert_eq!(access::read(s, wait, 0, &mut [], NONE), Ok(0));
    // FAULT-3: as much as there is without waiting, perhaps nothing.
    let untouched = lab.map(s, 50, 2, R | W, ANON);
    for off in [0, 9] {
        lab.sim.phys().fail_after(1);
        assert_eq!(
            access::write(s, wait, untouched + off, b"text", GupFlags::NOWAIT),
            Ok(0)
        );
    }
    lab.sim.phys().fail_after(0);
    lab.done();
}

/// BUG-1: between the copy for a forced write and the look at it another thread discards the copy and reads the file's
/// page in: the write goes to another copy, never to the file.
#[test]
fn bug_1_a_forced_write_never_reaches_the_file() {
    use mm::hw::Cpu;
    use mm::race::Point;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    let lab = Lab::with(mm::sim::Config {
        threads: true,
        mischief: 0,
        ..mm::sim::Config::default()
    });
    let (s, other) = (lab.space(), lab.space());
    let file = lab.file(1);
    let shared = lab.map_file(other, 0, 1, R | W, SHARED, Some(file));
    lab.store(other, shared, 0x40);
    let va = lab.map_file(s, 0, 1, R, PRIVATE, Some(file));
    let sim = lab.sim;
    let faults = std::sync::Arc::new(AtomicU32::new(0));
    let seen = faults.clone();
    lab.sim.on_pause(move |p| {
        if p != Point::SlowFaulted || seen.fetch_add(1, SeqCst) >= 3 {
            return;
        }
        // The mmap lock is held for reading here, and there, too.
        let me = sim.cpu();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                sim.on(1 - me);
                let wait = &mut sim.can_wait();
                let advice = linux_raw_sys::general::MADV_DONTNEED;
                ops::madvise(s, wait, va, P, advice).unwrap();
                let read = mm::fault::Fault {
                    va,
                    access: mm::fault::Access::Read,
                    user: true,
                    present: false,
                };
                let _ = mm::fault::user_fault(s, wait, read);
            });
        });
    });
    let wait = &mut lab.sim.can_wait();
    assert_eq!(access::write(s, wait, va, b"X", GupFlags::FORCE), Ok(1));
    lab.sim.no_pause();
    assert!(faults.load(SeqCst) > 3, "tried again each time");
    assert_eq!(lab.load(other, shared), Some(0x40), "the file");
    assert_eq!(lab.load(s, va), Some(b'X'));
    lab.done();
}

/// BUG-23, PIN-7, PFN-13: the zero page's count does not move with pins, however many.
#[test]
fn bug_23_the_zero_page_does_not_wrap() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 64, R | W, ANON);
    let zero = PageSlot::new(lab.sim.phys().zero_page());
    let before = lab.refs(zero);
    for _ in 0..100 {
        let pins = pin::<Read>(&lab, s, va, 64, NONE).unwrap();
        assert!(pins.pages().iter().all(|p| *p == zero));
        assert_eq!(lab.refs(zero), before);
    }
    assert_eq!(lab.sim.phys().pin_counts(), (0, 0));
    assert!(gup::pin_again(lab.sim, zero));
    gup::unpin_user_page_range_dirty_lock(lab.sim, zero.pfn(), 1, true);
    assert_eq!(lab.refs(zero), before);
    lab.done();
}

/// PIN-16: another pin of a page that has one.
#[test]
fn pin_16_one_pin_more() {
    let lab = Lab::new();
    let s = lab.space();
    let va = lab.map(s, 0, 1, R | W, ANON);
    let pins = pin::<Write>(&lab, s, va, 1, NONE).unwrap();
    let page = pins.pages()[0];
    assert!(gup::pin_again(lab.sim, page));
    assert_eq!((lab.refs(page), lab.pins()), (1 + 2 * 1024, 2));
    drop(pins);
    assert!(lab.folio(page.pfn()).maybe_pinned());
    gup::unpin_user_pages(lab.sim, &[page], 1);
    lab.done();
}

/// The tests above see what they are for.
#[test]
fn planted_bugs_are_caught() {
    lab::catches(&[
        (1, "bug_1_a_forced_write_never_reaches_the_file"),
        (4, "bug_4_a_childs_reference_sees_no_later_secret"),
        (5, "bug_5_a_pinned_page_stays_the_parents"),
        (6, "bug_6_a_read_pin_does_not_go_stale"),
    ]);
}
