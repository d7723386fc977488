//! Beside the pins: pins that last, faults made good for the kernel, pages made accessible ahead of a copy.

mod common;
mod lab;

use common::{BASE, P, R, W, X};
use lab::{ANON, Lab, NONE, PRIVATE, SHARED, slots};
use mm::fault::fixup::fixup_user_fault;
use mm::gup::{self, PageSlot, Read, Write};
use mm::hw::Cpu;
use mm::ops::prefault;
use mm::phys::Hw;
use mm::sim::Config;
use mm::{Errno, USER_END};

fn movable() -> Lab {
    Lab::with(Config {
        movable: 1024,
        mischief: 0,
        ..Config::default()
    })
}

/// LT-2, LT-3, LT-4, LT-8, LT-10, BUG-36: all of a range or nothing, by the lockless walk and without it.
#[test]
fn lt_3_all_may_stay_or_none_is_pinned() {
    for fast in [true, false] {
        let lab = movable();
        lab.sim.set_fast_walk(fast);
        let s = lab.space();
        let va = lab.map(s, 0, 6, R | W, ANON);
        lab.run(s);
        // Faulted in for the pin: unmovable, and found so again.
        for _ in 0..2 {
            let wait = &mut lab.sim.can_wait();
            let pins = gup::pin_longterm::<Write, _, _>(s, wait, va, NONE, slots(3));
            let pins = pins.unwrap();
            assert_eq!((pins.len(), lab.pins()), (3, 3));
            pins.unpin();
        }
        lab.store(s, va + 3 * P, 1); // an ordinary fault: movable
        let canary = PageSlot::new(mm::Pfn(5));
        let before = lab.refs(canary);
        let canary = vec![canary; 6];
        let wait = &mut lab.sim.can_wait();
        let r = gup::pin_longterm::<Write, _, _>(s, wait, va, NONE, canary);
        assert_eq!(r.err(), Some(Errno::ENOMEM));
        assert_eq!(lab.pins(), 0);
        let now = lab.refs(PageSlot::new(mm::Pfn(5)));
        assert_eq!(now, before, "not ours to release");
        let r = gup::pin_longterm::<Read, _, _>(s, wait, va, NONE, slots(3));
        assert_eq!(r.unwrap().len(), 3);
        lab.done();
    }
}

/// FAULT-13, FAULT-14.
#[test]
fn fault_13_an_access_of_the_kernels_is_made_good() {
    let lab = Lab::new();
    let s = lab.space();
    let file = lab.file(1);
    let rw = lab.map(s, 0, 1, R | W, ANON);
    let ro = lab.map(s, 1, 1, R, ANON);
    let x = lab.map(s, 2, 1, X, ANON);
    let beyond = lab.map_file(s, 4, 2, R | W, SHARED, Some(file)) + P;
    let fix = |va: u64, write: bool| {
        let wait = &mut lab.sim.can_wait();
        let guard = s.mmap_read(wait);
        let (r, unlocked, guard) = fixup_user_fault(guard, wait, va, write, true);
        assert!(s.try_mmap_write().is_none(), "held again");
        drop(guard);
        r.map(|()| unlocked)
    };
    let no = Err(Errno::EFAULT);
    for (va, read, write) in [
        (rw + 9, Ok(false), Ok(false)),
        (ro, Ok(false), no),
        (x, no, no),
        (beyond, no, no),
        (BASE + 9 * P, no, no),
        (USER_END, no, no),
        (u64::MAX, no, no),
    ] {
        assert_eq!((fix(va, false), fix(va, true)), (read, write), "{va:#x}");
    }
    // Written through after a fork without a fault of the program's own.
    lab.store(s, rw, 1);
    let child = lab.fork(s);
    assert_eq!(fix(rw, true), Ok(false));
    lab.run(s);
    let r = lab.sim.touch(rw, mm::sim::mmu::Want::Write, 2);
    assert!(r.is_ok(), "no fault is left to take: {r:?}");
    assert_eq!(lab.load(child, rw), Some(1));
    // The lock goes while room is made, and the VMA is asked again.
    lab.dontneed(s, rw, 1);
    lab.sim.phys().fail_after(1);
    lab.sim.on_no_frame(|| true);
    assert_eq!(fix(rw, true), Ok(true));
    lab.dontneed(s, rw, 1);
    lab.sim.phys().fail_after(1);
    let sim = lab.sim;
    lab.sim.on_no_frame(move || {
        mm::ops::mprotect(s, &mut sim.can_wait(), rw, P, R).unwrap();
        true
    });
    assert_eq!(fix(rw, true), no);
    mm::sim::park::set_killed(lab.sim.waiter(), true);
    assert_eq!(fix(rw, false), Err(Errno::EINTR));
    mm::sim::park::set_killed(lab.sim.waiter(), false);
    lab.done();
}

/// ADJ-1: bytes that could not be had, from the first that failed on.
#[test]
fn adj_1_bytes_that_are_left() {
    let lab = Lab::new();
    let s = lab.space();
    let rw = lab.map(s, 0, 4, R | W, ANON);
    let ro = lab.map(s, 4, 1, R, PRIVATE | linux_raw_sys::general::MAP_ANONYMOUS);
    let wait = &mut lab.sim.can_wait();
    let start = rw + 100;
    let all = ro + P - start;
    assert_eq!(
        prefault::fault_in_writeable(s, wait, start, all),
        P,
        "the read-only page"
    );
    assert_eq!(s.rss_total(), 4);
    assert_eq!(prefault::fault_in_safe_writeable(s, wait, start, all), P);
    assert_eq!(prefault::fault_in_readable(s, wait, start, all), 0);
    assert_eq!(prefault::fault_in_readable(s, wait, start, all + 7), 7);
    assert_eq!(prefault::fault_in_readable(s, wait, start, 0), 0);
    for (at, len) in [(0, 5), (USER_END, 9), (u64::MAX - 3, 100), (1 << 63, P)] {
        assert_eq!(
            prefault::fault_in_readable(s, wait, at, len),
            len,
            "{at:#x}"
        );
        assert_eq!(
            prefault::fault_in_writeable(s, wait, at, len),
            len,
            "{at:#x}"
        );
        assert_eq!(
            prefault::fault_in_safe_writeable(s, wait, at, len),
            len,
            "{at:#x}"
        );
    }
    // What is there stays as it is, a stack grows as by the program, and not for the careful one.
    lab.store(s, rw, 42);
    assert_eq!(prefault::fault_in_writeable(s, wait, rw, P), 0);
    assert_eq!(lab.load(s, rw), Some(42));
    let grows = ANON | linux_raw_sys::general::MAP_GROWSDOWN;
    let stack = lab.map(s, 1000, 1, R | W, grows);
    assert_eq!(prefault::fault_in_safe_writeable(s, wait, stack - P, P), P);
    assert_eq!(prefault::fault_in_writeable(s, wait, stack - P, P), 0);
    lab.done();
}
