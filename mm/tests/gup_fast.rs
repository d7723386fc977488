//! The lockless walk: what it takes and leaves, what it costs, and what may happen between its steps.

mod common;
mod lab;

use common::{BASE, P, R, W, frames_free};
use lab::{ANON, Lab, NONE, PRIVATE, Pins, SHARED, Space, Sure, slots};
use mm::gup::{self, GupFlags, HeldPages, PageSlot, Read, Write};
use mm::hw::{Cpu, Warning};
use mm::ops;
use mm::phys::{Folio, Hw, Use};
use mm::race::Point;
use mm::sim::{Config, Machine, Sim};
use mm::table::pte::bit;
use mm::table::{LeafBits, PtGuard, Pte};
use mm::{Errno, Pfn, USER_END};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

const WRITE: GupFlags = GupFlags::WRITE;

type Held = HeldPages<Machine, Vec<PageSlot>>;

/// What is mapped, and nothing else: interrupts off by the caller.
fn only(lab: &Lab, s: Space, va: u64, n: usize, flags: GupFlags) -> Result<Held, Errno> {
    let mut wait = lab.sim.can_wait();
    let irq = wait.irq_off();
    gup::get_user_pages_fast_only(&irq, s, va, flags, slots(n))
}
fn get(lab: &Lab, s: Space, va: u64, n: usize, flags: GupFlags) -> Result<Held, Errno> {
    gup::get_user_pages_fast(s, &mut lab.sim.can_wait(), va, flags, slots(n))
}
fn pin<A: gup::Access>(
    lab: &Lab,
    s: Space,
    va: u64,
    n: usize,
    flags: GupFlags,
) -> Result<Pins<A>, Errno> {
    gup::pin_user_pages_fast(s, &mut lab.sim.can_wait(), va, flags, slots(n))
}
/// Without the slow path: as many as the walk had before it took the mmap lock, which somebody holds.
fn pin_only<A: gup::Access>(lab: &Lab, s: Space, va: u64, n: usize, flags: GupFlags) -> usize {
    let sim = lab.sim;
    let mut wait = sim.can_wait();
    mm::sim::park::set_killed(sim.waiter(), true);
    let guard = s.mmap_write(&mut wait);
    let r = gup::pin_user_pages_fast::<A, _, _>(s, &mut sim.can_wait(), va, flags, slots(n));
    drop(guard);
    mm::sim::park::set_killed(sim.waiter(), false);
    match r {
        Ok(pins) => pins.len(),
        Err(e) => {
            assert_eq!(e, Errno::EINTR);
            0
        }
    }
}

/// A pause comes where interrupts are off; what happens there is another CPU's doing.
fn by_another(sim: Machine, f: impl Fn(Point) + Send + Sync) -> impl Fn(Point) + Send + Sync {
    move |p| {
        let me = sim.cpu();
        sim.on((me + 1) % 2);
        f(p);
        sim.on(me);
    }
}

fn lab() -> Lab {
    Lab::with(Config {
        mischief: 0,
        threads: true,
        ..Config::default()
    })
}

/// FAST-1, FAST-3, FAST-4, FAST-16, FAST-18, FAST-20: from one table into the next, up to a hole; only the loaded space.
#[test]
fn fast_3_takes_what_is_mapped_across_tables() {
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 0, 1100, R | W, ANON);
    lab.store_each(s, va + 100 * P, 900, 0);
    let at = va + 100 * P;
    let held = only(&lab, s, at + 5, 1000, WRITE).unwrap();
    assert_eq!(held.len(), 900);
    for (i, page) in held.pages().iter().enumerate() {
        assert_eq!(lab.dma_read(*page), i as u8);
        assert_eq!(lab.refs(*page), 2);
    }
    assert!(lab.sim.irqs_on());
    drop(held);
    let pins = pin::<Write>(&lab, s, at, 900, NONE).unwrap();
    assert_eq!((pins.len(), lab.pins()), (900, 900));
    assert!(pins.pages().iter().all(|p| lab.refs(*p) == 1025));
    drop(pins);
    // Another space is loaded: nothing, though it is there.
    let other = lab.space();
    lab.run(other);
    assert_eq!(only(&lab, s, at, 4, NONE).unwrap().len(), 0);
    assert_eq!(get(&lab, s, at, 4, NONE).unwrap().len(), 4, "with the lock");
    common::switch_away(lab.sim, other);
    assert_eq!(
        only(&lab, s, at, 4, NONE).unwrap().len(),
        0,
        "a kernel thread has none"
    );
    lab.done();
}

/// FAST-6, FAST-5, FAST-15, ARG-8, BUG-17: what the VMA or the entry refuses is left; the kernel's half is never walked.
#[test]
fn bug_17_what_is_refused_stays_refused() {
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 0, 4, R | W, ANON);
    lab.store_each(s, va, 4, 1);
    lab.protect(s, va, 1, 0);
    lab.protect(s, va + P, 1, R);
    lab.run(s);
    for (at, flags, n) in [
        (va, NONE, 0),
        (va, GupFlags::FORCE, 0),
        (va + P, NONE, 3),
        (va + P, WRITE, 0),
        (va + P, WRITE | GupFlags::FORCE, 0),
        (va + 2 * P, WRITE, 2),
    ] {
        assert_eq!(
            only(&lab, s, at, 4, flags).unwrap().len(),
            n,
            "{at:#x} {flags:?}"
        );
    }
    // The zero page is not counted behind its entry.
    let fresh = lab.map(s, 8, 1, R | W, ANON);
    lab.load(s, fresh);
    assert_eq!(only(&lab, s, fresh, 1, NONE).unwrap().len(), 0);
    assert_eq!(get(&lab, s, fresh, 1, NONE).unwrap().len(), 1);
    for (at, n, errno) in [
        (USER_END, 1, Errno::EFAULT),
        (USER_END - P, 2, Errno::EFAULT),
        (0x8000_0000_0000, 1, Errno::EFAULT),
        (0xffff_8000_0000_0000, 1, Errno::EFAULT),
        (u64::MAX - 3 * P, 2, Errno::EFAULT),
        (u64::MAX - 3 * P, 4, Errno::EOVERFLOW),
        (u64::MAX, 2, Errno::EOVERFLOW),
    ] {
        assert_eq!(only(&lab, s, at, n, NONE).err(), Some(errno), "{at:#x}");
        assert_eq!(get(&lab, s, at, n, NONE).err(), Some(errno), "{at:#x}");
        assert_eq!(
            pin::<Read>(&lab, s, at, n, NONE).err(),
            Some(errno),
            "{at:#x}"
        );
    }
    assert_eq!(only(&lab, s, USER_END - P, 1, NONE).unwrap().len(), 0);
    // ARG-9.
    lab.sim.warnings();
    for flags in [
        GupFlags::NOWAIT,
        GupFlags::DUMP,
        GupFlags::ANON,
        GupFlags::INTERRUPTIBLE,
    ] {
        assert_eq!(get(&lab, s, va, 1, flags).err(), Some(Errno::EINVAL));
    }
    assert_eq!(lab.sim.warnings(), [Warning::GupArguments; 4]);
    lab.done();
}

/// BUG-39, ARG-6: nothing asked, at every kind of edge.
#[test]
fn bug_39_an_empty_range_walks_nowhere() {
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 0, 1024, R | W, ANON);
    lab.store_each(s, va, 1024, 1);
    lab.run(s);
    for at in [
        va,
        va + 511 * P,
        va + 512 * P,
        va + 1023 * P,
        0x4000_0000,
        0x4000_0000 - P,
    ] {
        let mut canary = [PageSlot::new(Pfn(77))];
        let wait = &mut lab.sim.can_wait();
        let none = &mut canary[..0];
        assert_eq!(
            gup::get_user_pages_fast(s, wait, at, NONE, none)
                .unwrap()
                .len(),
            0
        );
        let none = &mut canary[..0];
        let pins = gup::pin_user_pages_fast::<Write, _, _>(s, wait, at, NONE, none).unwrap();
        assert_eq!(pins.len(), 0);
        drop(pins);
        assert_eq!(canary, [PageSlot::new(Pfn(77))]);
    }
    assert_eq!(lab.sim.phys().pin_counts(), (0, 0));
    lab.done();
}

/// FAST-17, BUG-31, BUG-36: what the walk had counts when the rest fails; slots past the count are nobody's.
#[test]
fn fast_17_the_rest_comes_slowly_or_not() {
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 0, 6, R | W, ANON);
    lab.store_each(s, va, 3, 1);
    lab.run(s);
    let canary = PageSlot::new(Pfn(4));
    let before = lab.refs(canary);
    let pins = gup::pin_user_pages_fast::<Write, _, _>(
        s,
        &mut lab.sim.can_wait(),
        va,
        NONE,
        vec![canary; 8],
    )
    .unwrap();
    assert_eq!(
        pins.len(),
        6,
        "three without a lock, three faulted in, two not mapped"
    );
    let pages = pins.pages().to_vec();
    drop(pins);
    assert!(pages.iter().all(|p| lab.refs(*p) == 1));
    assert_eq!(lab.refs(canary), before);
    assert_eq!(get(&lab, s, va + 6 * P, 2, NONE).err(), Some(Errno::EFAULT));
    let nofault = GupFlags::NOFAULT;
    lab.dontneed(s, va + 3 * P, 3);
    assert_eq!(get(&lab, s, va, 6, nofault).unwrap().len(), 3);
    lab.done();
}

/// FAST-21: with the walk and without it the same pages and the same errors.
#[test]
fn fast_21_the_same_without_the_walk() {
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 0, 600, R | W, ANON);
    lab.store_each(s, va, 600, 1);
    lab.protect(s, va + 550 * P, 1, R);
    lab.protect(s, va + 560 * P, 1, 0);
    lab.run(s);
    let ask =
        |at: u64, n: usize, flags: GupFlags| get(&lab, s, at, n, flags).map(|h| h.pages().to_vec());
    let mut asked = 0;
    for (at, n) in [
        (va, 600),
        (va + 500 * P, 51),
        (va + 550 * P, 5),
        (va + 560 * P, 3),
        (BASE + 700 * P, 1),
        (USER_END, 1),
        (va, 0),
    ] {
        for flags in [
            NONE,
            WRITE,
            GupFlags::FORCE,
            WRITE | GupFlags::FORCE,
            GupFlags::NOFAULT,
            GupFlags::DUMP,
        ] {
            let with = ask(at, n, flags);
            lab.sim.set_fast_walk(false);
            assert_eq!(only(&lab, s, at, n, NONE).map_or(0, |h| h.len()), 0);
            assert_eq!(ask(at, n, flags), with, "{at:#x} {n} {flags:?}");
            lab.sim.set_fast_walk(true);
            asked += usize::from(with.is_ok());
        }
    }
    assert!(asked > 20);
    lab.done();
}

/// UNSH-1, LT-8: shared pages and movable memory are left to the slow path, which makes good.
#[test]
fn unsh_1_read_pins_of_shared_pages_are_left() {
    let lab = Lab::with(Config {
        movable: 1024,
        mischief: 0,
        threads: true,
        ..Config::default()
    });
    let s = lab.space();
    let file = lab.file(2);
    let va = lab.map(s, 0, 1, R | W, ANON);
    lab.store(s, va, 1);
    let private = lab.map_file(s, 4, 1, R, PRIVATE, Some(file));
    let shared = lab.map_file(s, 8, 1, R | W, SHARED, Some(file));
    lab.load(s, private);
    lab.store(s, shared, 2);
    lab.run(s);
    let long = GupFlags::LONGTERM;
    assert_eq!(pin_only::<Read>(&lab, s, va, 1, NONE), 1);
    assert_eq!(pin_only::<Write>(&lab, s, va, 1, long), 0, "movable");
    assert_eq!(
        pin_only::<Read>(&lab, s, private, 1, NONE),
        1,
        "a short pin may"
    );
    assert_eq!(pin_only::<Read>(&lab, s, private, 1, long), 0);
    assert_eq!(pin_only::<Write>(&lab, s, shared, 1, NONE), 1);
    let child = lab.fork(s);
    lab.run(s);
    assert_eq!(
        pin_only::<Read>(&lab, s, va, 1, NONE),
        0,
        "shared since the fork"
    );
    assert_eq!(
        only(&lab, s, va, 1, NONE).unwrap().len(),
        1,
        "a reference may"
    );
    let pins = pin::<Read>(&lab, s, va, 1, NONE).unwrap();
    lab.store(s, va, 9);
    assert_eq!(lab.dma_read(pins.pages()[0]), 9);
    assert_eq!(lab.load(child, va), Some(1));
    drop(pins);
    assert!(
        lab.sim.warnings().is_empty(),
        "PIN-13: every pinned page was exclusive"
    );
    lab.done();
}

/// FAST-6: the running CPU's key register says what its program may do itself.
#[test]
fn fast_6_the_key_register_is_asked() {
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    lab.store_each(s, va, 2, 1);
    let key = ops::pkey_alloc(s, &mut lab.sim.can_wait()).unwrap();
    let named = ops::Key::Named(key as i32);
    ops::pkey_mprotect(s, &mut lab.sim.can_wait(), va, P, R | W, named).unwrap();
    let count = |va, flags| only(&lab, s, va, 1, flags).unwrap().len();
    for (register, read, write) in [(0, 1, 1), (2, 1, 0), (1, 0, 0)] {
        lab.sim.set_pkru(register << (2 * key));
        assert_eq!((count(va, NONE), count(va, WRITE)), (read, write));
        assert_eq!((count(va + P, NONE), count(va + P, WRITE)), (1, 1));
    }
    lab.sim.set_pkru(0);
    lab.done();
}

/// LOCK-11: a space's first pin is announced before it is taken, by every entry: fork looks for it.
#[test]
fn lock_11_the_first_pin_is_announced() {
    for fast in [true, false] {
        let lab = lab();
        let s = lab.space();
        let va = lab.map(s, 0, 1, R | W, ANON);
        lab.store(s, va, 1);
        let wait = &mut lab.sim.can_wait();
        let pins: Pins<Write> = if fast {
            pin(&lab, s, va, 1, NONE).unwrap()
        } else {
            let guard = s.mmap_read(wait);
            gup::pin_user_pages(&guard, s, &lab.sim.can_wait(), va, NONE, slots(1)).unwrap()
        };
        let child = lab.fork(s);
        lab.store(s, va, 2);
        assert_eq!(lab.dma_read(pins.pages()[0]), 2, "fast: {fast}");
        assert_eq!(lab.load(child, va), Some(1));
        drop(pins);
        lab.done();
    }
}

/// FAST-19: taken is used.
#[test]
fn fast_19_what_is_taken_is_referenced() {
    use mm::phys::flag::REFERENCED;
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 0, 1, R | W, ANON);
    lab.store(s, va, 1);
    let held = only(&lab, s, va, 1, NONE).unwrap();
    let d = lab.folio(held.pages()[0].pfn()).desc();
    assert!(d.has(REFERENCED));
    d.clear(REFERENCED);
    drop(held);
    drop(pin::<Read>(&lab, s, va, 1, NONE).unwrap());
    assert!(d.has(REFERENCED));
    lab.done();
}

/// FAST-11, FAST-3: between its reading and its second look the entry changes, in every way that it can: nothing
/// is taken, nothing stays counted.
#[test]
fn fast_11_an_entry_that_changed_is_not_believed() {
    for (point, bias) in [(Point::FastRead, 0), (Point::FastHeld, 1)] {
        for what in 0..4 {
            let lab = lab();
            let s = lab.space();
            let va = lab.map(s, 0, 2, R | W, ANON);
            lab.store_each(s, va, 2, 1);
            let held = only(&lab, s, va, 2, NONE).unwrap();
            let pages = held.pages().to_vec();
            drop(held);
            let seen = Arc::new(AtomicU32::new(0));
            let hits = seen.clone();
            let sim = lab.sim;
            let first = pages[0];
            lab.sim.on_pause(by_another(sim, move |p| {
                if p != point || hits.fetch_add(1, SeqCst) != 0 {
                    return;
                }
                let d = sim.desc(first.pfn());
                assert_eq!(d.ref_count(), 1 + 1024 * bias);
                // Another CPU changes the table; no flush, for this one does not answer now.
                let mut pt = s.tables.pte_table(va, &Sure).unwrap();
                let i = PtGuard::<Machine>::index(va);
                let zero = sim.phys().zero_page();
                let read_only = LeafBits::user(true, false, false);
                let _ = match what {
                    0 => pt.clear_bits(i, bit::W),
                    1 => pt.set(i, Pte::leaf(zero, read_only).with(bit::SPECIAL)),
                    2 => pt.set_bits(i, bit::UFFD_WP),
                    _ => pt.take(i),
                };
            }));
            lab.run(s);
            assert_eq!(
                pin_only::<Write>(&lab, s, va, 2, NONE),
                0,
                "{point:?} {what}"
            );
            lab.sim.no_pause();
            assert_eq!(seen.load(SeqCst), 1);
            assert_eq!(lab.refs(first), 1);
            assert_eq!(lab.pins(), 0);
            // As it was, for the end's sake.
            let mut pt = s.tables.pte_table(va, &Sure).unwrap();
            let i = PtGuard::<Machine>::index(va);
            let _ = pt.take(i);
            pt.install(i, Pte::leaf(first.pfn(), LeafBits::user(true, true, false)));
            drop(pt);
            s.tlb.flush(&lab.sim.can_wait(), mm::hw::FlushRange::All);
            lab.done();
        }
    }
}

/// FAST-12, BUG-10: the leaf is as it was, the table is not the space's any more.
#[test]
fn fast_12_a_table_that_was_replaced_is_not_believed() {
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 512, 1, R | W, ANON);
    let elsewhere = lab.map(s, 1024, 1, R | W, ANON);
    lab.store(s, va, 1);
    let held = only(&lab, s, va, 1, NONE).unwrap();
    let page = held.pages()[0];
    drop(held);
    let sim = lab.sim;
    lab.sim.on_pause(by_another(sim, move |p| {
        if p == Point::FastHeld {
            // The whole table moves away, its entries untouched.
            // Not flushed: this CPU looks again before it could answer.
            let wait = sim.can_wait();
            let mut batch = mm::table::TlbBatch::begin(&wait, &s.tlb);
            let (from, to) = (va & !0x1f_ffff, elsewhere & !0x1f_ffff);
            assert_eq!(s.tables.move_tables(from, to, 1, &Sure, &mut batch), Ok(1));
            std::mem::forget(batch);
        }
    }));
    lab.run(s);
    assert_eq!(pin_only::<Write>(&lab, s, va, 1, NONE), 0);
    lab.sim.no_pause();
    assert_eq!(lab.refs(page), 1);
    {
        let mut w = lab.sim.can_wait();
        let guard = s.mmap_read(&mut w);
        let mut batch = mm::table::TlbBatch::begin(&w, &s.tlb);
        let (from, to) = (va & !0x1f_ffff, elsewhere & !0x1f_ffff);
        assert_eq!(s.tables.move_tables(to, from, 1, &guard, &mut batch), Ok(1));
        batch.note_tables(from, from + (2 << 20));
        batch.flush();
        drop(batch);
        drop(guard);
    }
    assert_eq!(lab.load(s, va), Some(1));
    lab.done();
}

/// PIN-3, BUG-12: the frame was freed and is another page by the time it is counted: the count is undone on it.
#[test]
fn bug_12_a_frame_that_was_freed_is_not_taken() {
    for realloc in [false, true] {
        let lab = lab();
        let s = lab.space();
        let va = lab.map(s, 0, 1, R | W, ANON);
        lab.store(s, va, 1);
        let held = only(&lab, s, va, 1, NONE).unwrap();
        let page = held.pages()[0];
        drop(held);
        let sim = lab.sim;
        let taken = Arc::new(AtomicU64::new(0));
        let mine = taken.clone();
        lab.sim.on_pause(by_another(sim, move |p| {
            if p != Point::FastRead {
                return;
            }
            // A modifier that forgot to tell this CPU: the walk has only its second look.
            let mut pt = s.tables.pte_table(va, &Sure).unwrap();
            let _ = pt.take(PtGuard::<Machine>::index(va));
            drop(pt);
            sim.quietly(|| {
                let d = sim.desc(page.pfn());
                d.map_dec();
                assert!(d.put_is_last(1));
            });
            if realloc {
                // As the allocator gives it out again.
                sim.desc(page.pfn()).refs.store(1, SeqCst);
                mine.store(1, SeqCst);
            }
        }));
        lab.run(s);
        assert_eq!(pin_only::<Write>(&lab, s, va, 1, NONE), 0);
        lab.sim.no_pause();
        assert_eq!(
            lab.refs(page),
            i32::from(realloc),
            "nothing is left on the new page"
        );
        assert_eq!(taken.load(SeqCst) == 1, realloc);
        // Back as it was, for the end's sake.
        let d = sim.desc(page.pfn());
        d.refs.store(1, SeqCst);
        d.map_inc();
        let guard = s.mmap_read(&mut sim.can_wait());
        let mut pt = s.tables.pte_table(va, &guard).unwrap();
        pt.install(
            PtGuard::<Machine>::index(va),
            Pte::leaf(page.pfn(), LeafBits::user(true, true, false)),
        );
        drop(pt);
        drop(guard);
        lab.done();
    }
}

/// FAST-14, BUG-7: fork runs between the walk's steps, or the walk runs in the middle of fork.
#[test]
fn bug_7_no_pin_while_fork_is_under_way() {
    // The walk comes while fork has copied and has not told anybody.
    let lab = lab();
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    lab.store_each(s, va, 2, 1);
    drop(pin::<Write>(&lab, s, va, 1, NONE).unwrap());
    let sim = lab.sim;
    let got = Arc::new(AtomicU32::new(9));
    let found = got.clone();
    lab.sim.on_pause(move |p| {
        if p == Point::ForkCopied {
            // Another CPU, another thread of the parent: its entry still says writable to it, perhaps.
            sim.on(1);
            mm::sim::park::set_killed(sim.waiter(), true);
            common::switch_to(sim, s, &[]);
            let wait = &mut sim.can_wait();
            let r = gup::pin_user_pages_fast::<Read, _, _>(s, wait, va, NONE, slots(2));
            // It would have to wait for fork's lock.
            assert_eq!(r.err(), Some(Errno::EINTR));
            mm::sim::park::set_killed(sim.waiter(), false);
            found.store(0, SeqCst);
            sim.on(0);
        }
    });
    let child = lab.fork(s);
    lab.sim.no_pause();
    assert_eq!(got.load(SeqCst), 0);
    lab.exit(child);
    assert_eq!(lab.pins(), 0);

    // Fork's sequence moves while the walk is under way: all that it had in that section goes back.
    lab.store_each(s, va, 2, 1);
    let n = Arc::new(AtomicU32::new(0));
    let hits = n.clone();
    lab.sim.on_pause(by_another(sim, move |p| {
        if p == Point::FastHeld && hits.fetch_add(1, SeqCst) == 1 {
            s.fork_seq.begin();
            s.fork_seq.end();
        }
    }));
    lab.run(s);
    assert_eq!(pin_only::<Write>(&lab, s, va, 2, NONE), 0);
    lab.sim.no_pause();
    assert_eq!(n.load(SeqCst), 2);
    let held = only(&lab, s, va, 2, NONE).unwrap();
    assert!(held.pages().iter().all(|p| lab.refs(*p) == 2));
    drop(held);
    lab.done();
}

/// BUG-9, FAST-2: who unmaps waits for a walk that stands in the table, and only then frees it.
#[test]
fn bug_9_a_table_is_not_freed_under_the_walk() {
    lab::plant();
    let sim = Sim::new(Config {
        threads: true,
        mischief: 0,
        ..Config::default()
    });
    sim.on(0);
    let free = frames_free(sim);
    let space = common::new_space(sim);
    let args = ops::MmapArgs {
        addr: BASE,
        len: P,
        prot: R | W,
        flags: ANON | lab::FIXED,
        file: None,
    };
    let va = ops::mmap(&space, &mut sim.can_wait(), args).unwrap();
    common::switch_to(sim, &space, &[]);
    let fault = &mut |f| {
        matches!(
            common::trap(sim, &space, f),
            mm::fault::FaultResult::Done { .. }
        )
    };
    sim.write(va, 7, fault).unwrap();
    let step = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let (s, step) = (&space, &step);
        scope.spawn(move || {
            // CPU 1 unmaps once the walk stands in the table.
            sim.on(1);
            common::switch_to(sim, s, &[]);
            while step.load(SeqCst) != 1 {
                std::thread::yield_now();
            }
            ops::munmap(s, &mut sim.can_wait(), va, P).unwrap();
            step.store(3, SeqCst);
            common::switch_away(sim, s);
        });
        let free_before = sim.phys().free_frames(sim);
        // SAFETY: the machine outlives the test, and the scope outlives the hook's last use.
        let step: &'static AtomicU32 = unsafe { &*std::ptr::from_ref(step) };
        sim.on_pause(move |p| {
            if p == Point::FastRead && step.load(SeqCst) == 0 {
                step.store(1, SeqCst);
                // The other one gets as far as the acknowledgement, and no further.
                let (_, late) = sim.shootdowns();
                while sim.shootdowns().1 == late && step.load(SeqCst) != 3 {
                    std::thread::yield_now();
                }
                assert_ne!(step.load(SeqCst), 3, "unmapped without us");
                assert_eq!(
                    sim.phys().free_frames(sim),
                    free_before,
                    "freed under the walk"
                );
            }
        });
        let n = {
            let mut wait = sim.can_wait();
            let irq = wait.irq_off();
            let held = gup::get_user_pages_fast_only(&irq, s, va, NONE, slots(1)).unwrap();
            held.len()
        };
        assert_eq!(n, 0, "the entry was gone at the second look");
        while step.load(SeqCst) != 3 {
            std::thread::yield_now();
        }
        sim.no_pause();
    });
    common::switch_away(sim, &space);
    ops::exit(&space, &mut sim.can_wait());
    drop(space);
    assert_eq!(frames_free(sim), free);
    sim.check();
}

/// PIN-2, PIN-3, PIN-4, PIN-6, PIN-12, UNSH-1: a driver's large folio behind small entries, fast and slow: exact counts on its head;
/// fork, unmap and exit give back what they took.
#[test]
fn pin_2_a_drivers_large_folio_behind_small_entries() {
    use mm::addr::Order;
    use mm::ops::insert::insert_page;
    use mm::space::VmaFlags;
    let lab = lab();
    let s = lab.space();
    let sim = lab.sim;
    let order = Order::new(4).unwrap();
    let frame = sim.phys().alloc_order(sim, order, Use::Kernel).unwrap();
    let folio = Folio::make_large(sim, frame.zero(sim));
    let (d, base) = (folio.desc(), folio.pfn());
    let va = lab.map(s, 505, 16, R | W, SHARED | sys_shared_anon());
    {
        let w = &mut sim.can_wait();
        let mut guard = s.mmap_write(w);
        let range = mm::UserRange::new(va, va + 16 * P).unwrap();
        let put = |guard: &mm::space::MmapWriteGuard<'_, Machine>, at: u64, nth: u64| {
            insert_page(s, guard, guard.find(va).unwrap(), at, &folio, nth)
        };
        assert_eq!(
            put(&guard, va, 0),
            Err(Errno::EINVAL),
            "not a driver's mapping"
        );
        guard
            .change(range, |v| v.flags() | VmaFlags::MIXEDMAP)
            .unwrap();
        for nth in 0..16 {
            assert_eq!(put(&guard, va + nth * P, nth), Ok(()));
        }
        assert_eq!(put(&guard, va, 0), Err(Errno::EBUSY));
        assert_eq!(put(&guard, va, 16), Err(Errno::EINVAL));
        assert_eq!(put(&guard, va + 16 * P, 1), Err(Errno::EINVAL));
    }
    let counts = || (d.ref_count(), d.pins.load(SeqCst));
    assert_eq!(counts(), (17, 0));
    lab.store(s, va + 3 * P, 9);
    lab.run(s);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asks = asked.clone();
    sim.on_access(move |pfn| {
        asks.lock().unwrap().push(pfn);
        Ok(())
    });
    for fast in [true, false] {
        sim.set_fast_walk(fast);
        // Across the end of a table.
        let pins = pin::<Write>(&lab, s, va + P, 12, NONE).unwrap();
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        assert_eq!(asked, [base; 12], "PIN-18: of the folio, fast {fast}");
        assert_eq!(
            (pins.len(), lab.pins(), counts()),
            (12, 12, (29, 12)),
            "fast {fast}"
        );
        assert_eq!(pins.pages()[2].pfn().0, base.0 + 3);
        assert_eq!(lab.dma_read(pins.pages()[2]), 9);
        let held = get(&lab, s, va, 16, WRITE).unwrap();
        assert_eq!(counts(), (45, 12));
        drop(pins);
        assert_eq!((lab.pins(), counts()), (0, (33, 0)));
        drop(held);
        assert_eq!(counts(), (17, 0));
    }
    sim.set_fast_walk(true);
    assert_eq!(
        only(&lab, s, va, 16, NONE).unwrap().len(),
        16,
        "without a lock"
    );
    let child = lab.fork(s);
    assert_eq!(counts(), (33, 0));
    assert_eq!(lab.load(child, va + 3 * P), Some(9));
    lab.store(child, va + 4 * P, 8);
    assert_eq!(lab.load(s, va + 4 * P), Some(8));
    lab.unmap(s, va + 8 * P, 4);
    assert_eq!(counts(), (29, 0));
    lab.dontneed(s, va, 2);
    assert_eq!(counts(), (27, 0));
    lab.exit(child);
    assert_eq!(counts(), (11, 0));
    // The process keeps it alive after the driver has let go, and a pin after the process.
    drop(folio);
    lab.run(s);
    let pins = pin::<Read>(&lab, s, va + 5 * P, 2, NONE).unwrap();
    lab.exit(s);
    assert_eq!(counts(), (2, 2));
    drop(pins);
    assert_eq!(counts().0, 0);
    assert!((0..16).all(|n| {
        !sim.desc(Pfn(base.0 + n))
            .has_any(mm::phys::flag::TAIL | mm::phys::flag::HEAD)
    }));
    lab.done();
}

/// FAST-8, HUGE-4, LOOP-5, PIN-2, PIN-12, WALK-9, BUG-11: huge leaves of both sizes, fast and slow, from an unaligned
/// page, over two folios; unpinned in any order, by runs and by range.
#[test]
fn fast_8_huge_leaves_and_large_folios() {
    use mm::addr::Order;
    for level in [2, 3] {
        let lab = Lab::with(Config {
            mischief: 0,
            threads: true,
            frames: 8192,
            ..Config::default()
        });
        let s = lab.space();
        let sim = lab.sim;
        // Two folios in a row, as one or two leaves; a leaf of level 3 begins with them.
        let va = if level == 3 { 0x4000_0000 } else { 0x4020_0000 };
        let args = ops::MmapArgs {
            addr: va,
            len: 1024 * P,
            prot: R | W,
            flags: sys_shared_anon() | lab::FIXED,
            file: None,
        };
        ops::mmap(s, &mut sim.can_wait(), args).unwrap();
        let block = sim
            .phys()
            .alloc_order(sim, Order::MAX, Use::Kernel)
            .unwrap();
        let base = block.pfn();
        // Two folios of 512 pages.
        sim.desc(base)
            .flags
            .fetch_and(!mm::phys::flag::ORDER_MASK, SeqCst);
        let halves: Vec<_> = [0, 512]
            .map(|off| {
                let _ = sim.desc(Pfn(base.0 + off)).refs.swap(1, SeqCst);
                sim.desc(Pfn(base.0 + off))
                    .flags
                    .fetch_or(9 << mm::phys::flag::ORDER_SHIFT, SeqCst);
                // SAFETY: the two halves of the block that is ours.
                let f = unsafe { mm::phys::Frame::from_raw(Pfn(base.0 + off), Order::PMD) };
                Folio::make_large(sim, f.zero(sim))
            })
            .into_iter()
            .collect();
        let _ = block.into_pfn();
        let bits = LeafBits::user(true, true, false);
        {
            let w = &mut sim.can_wait();
            let guard = s.mmap_read(w);
            for (n, _) in halves
                .iter()
                .enumerate()
                .take(if level == 2 { 2 } else { 1 })
            {
                let at = va + ((n as u64) << 21);
                let mut pt = s.tables.huge_table_alloc(at, level, &guard).unwrap();
                let e = Pte::leaf(Pfn(base.0 + 512 * n as u64), bits).with(bit::PS);
                pt.install(mm::table::walk::index(at, level), e);
            }
        }
        lab.run(s);
        let heads: Vec<_> = halves.iter().map(|h| h.folio().desc()).collect();
        let counts = || {
            heads
                .iter()
                .map(|d| (d.ref_count(), d.pins.load(SeqCst)))
                .collect::<Vec<_>>()
        };
        let zero = vec![(1, 0); 2];
        assert_eq!(counts(), zero);
        for fast in [true, false] {
            sim.set_fast_walk(fast);
            // 700 pages from the 100th on: 412 and 288.
            let at = va + 100 * P;
            let pins = pin::<Write>(&lab, s, at, 700, NONE).unwrap();
            assert_eq!((pins.len(), lab.pins()), (700, 700));
            assert_eq!(
                counts(),
                [(413, 412), (289, 288)],
                "level {level} fast {fast}"
            );
            for (i, p) in pins.pages().iter().enumerate() {
                assert_eq!(p.pfn().0, base.0 + 100 + i as u64);
            }
            assert!(halves.iter().all(|h| h.folio().maybe_pinned()));
            let pages = pins.pages().to_vec();
            std::mem::forget(pins);
            // Backwards in the middle, then by range, then the rest at once.
            let mut back = pages[300..500].to_vec();
            back.reverse();
            gup::unpin_user_pages(sim, &back, 200);
            gup::unpin_user_page_range_dirty_lock(sim, pages[0].pfn(), 300, true);
            assert_eq!(counts(), [(1, 0), (201, 200)]);
            gup::unpin_user_pages_dirty_lock(sim, &pages[500..], 200, false);
            assert_eq!((counts(), lab.pins()), (zero.clone(), 0));
            let held = get(&lab, s, at, 700, WRITE).unwrap();
            assert_eq!(counts(), [(413, 0), (289, 0)]);
            assert!(!halves[0].folio().maybe_pinned(), "an exact count");
            drop(held);
            assert_eq!(counts(), zero);
        }
        sim.set_fast_walk(true);
        // The leaf changes between the count and the second look (BUG-11), at either level.
        let table = va;
        sim.on_pause(by_another(sim, move |p| {
            if p == Point::FastHeld
                && let mm::table::Leaves::Huge(mut pt, l, _) = s.tables.leaves(table, &Sure)
            {
                let _ = pt.set_bits(mm::table::walk::index(table, l), bit::UFFD_WP);
            }
        }));
        assert_eq!(pin_only::<Write>(&lab, s, va, 300, NONE), 0);
        sim.no_pause();
        assert_eq!(counts(), zero);
        // PIN-21: no room for so many.
        let near = i32::MAX / 2 - 10;
        heads[0].refs.store(near, SeqCst);
        assert_eq!(pin_only::<Write>(&lab, s, va, 300, NONE), 0);
        assert_eq!(
            pin::<Write>(&lab, s, va, 300, NONE).err(),
            Some(Errno::ENOMEM)
        );
        assert_eq!(counts()[0], (near, 0));
        heads[0].refs.store(1, SeqCst);
        {
            let w = &mut sim.can_wait();
            let guard = s.mmap_read(w);
            for at in [va, va + (2 << 20)] {
                if let mm::table::Leaves::Huge(mut pt, l, _) = s.tables.leaves(at, &guard) {
                    let _ = pt.take(mm::table::walk::index(at, l));
                }
            }
            drop(guard);
            s.tlb.flush(w, mm::hw::FlushRange::All);
        }
        drop(halves);
        lab.done();
    }
}

fn sys_shared_anon() -> u32 {
    linux_raw_sys::general::MAP_SHARED | linux_raw_sys::general::MAP_ANONYMOUS
}

/// The tests above see what they are for.
#[test]
fn planted_bugs_are_caught() {
    lab::catches(&[
        (6, "unsh_1_read_pins_of_shared_pages_are_left"),
        (7, "bug_7_no_pin_while_fork_is_under_way"),
        (9, "bug_9_a_table_is_not_freed_under_the_walk"),
        (10, "fast_12_a_table_that_was_replaced_is_not_believed"),
        (11, "fast_8_huge_leaves_and_large_folios"),
        (12, "fast_11_an_entry_that_changed_is_not_believed"),
        (12, "bug_12_a_frame_that_was_freed_is_not_taken"),
        (17, "bug_17_what_is_refused_stays_refused"),
        (31, "fast_17_the_rest_comes_slowly_or_not"),
    ]);
}
