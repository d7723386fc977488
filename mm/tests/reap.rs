//! A process that must die loses its private memory before it has left.

mod common;
mod lab;

use common::{P, R, W};
use lab::{ANON, Lab, MINOR, NONE, PRIVATE, SHARED, slots};
use mm::gup::{self, Read};
use mm::race::Point;
use mm::sim::Config;
use mm::sim::mmu::Want;
use mm::space::RssKind;
use mm::{Errno, ops};
use std::sync::{Arc, Mutex};

/// What is private goes at once, locked or not, and nothing comes back: no zeroes where there was something else. What is
/// shared stays. A page that a device uses stays its own.
#[test]
fn what_is_private_goes_and_does_not_come_back() {
    let lab = Lab::new();
    let (parent, file) = (lab.space(), lab.file(4));
    let anon = lab.map(parent, 0, 8, R | W, ANON);
    lab.store_each(parent, anon, 6, 10);
    let s = lab.fork(parent);
    lab.store_each(s, anon, 3, 20);
    let shared = lab.map_file(s, 16, 2, R | W, SHARED, Some(file));
    let private = lab.map_file(s, 24, 2, R | W, PRIVATE, Some(file));
    lab.store(s, shared, 1);
    lab.store(s, private + P, 2);
    lab.load(s, private);
    let wait = &mut lab.sim.can_wait();
    ops::mlock(s, wait, anon, P, 0).unwrap();
    let pins = gup::pin_user_pages_fast::<Read, _, _>(s, wait, anon, NONE, slots(1));
    let pins = pins.unwrap();

    let guard = s.mmap_read(wait);
    assert_eq!(
        ops::reap(s, &mut lab.sim.can_wait()),
        None,
        "it would have to wait"
    );
    drop(guard);
    // Six of anonymous memory, two of the private mapping.
    assert_eq!(ops::reap(s, wait), Some(8));
    assert_eq!((s.rss(RssKind::Anon), s.rss_total()), (0, 1));
    assert_eq!(lab.dma_read(pins.pages()[0]), 20);
    drop(pins);
    for va in [anon, anon + 5 * P, anon + 7 * P, private, private + P] {
        assert_eq!(lab.load(s, va), None, "{va:#x}");
    }
    let pins = gup::pin_user_pages_fast::<Read, _, _>(s, wait, anon, NONE, slots(1));
    assert!(matches!(pins, Err(Errno::EFAULT)));
    assert!(matches!(ops::fork(s, wait), Err(Errno::EINTR)));
    assert_eq!(
        (lab.load(s, shared), lab.load(s, shared + P)),
        (Some(1), Some(0))
    );
    lab.exit(s);
    assert_eq!(lab.load(parent, anon), Some(10), "the parent's is its own");
    lab.done();
}

/// A fault that is under way when the space is emptied has seen nothing of it: what it maps goes, too.
#[test]
fn a_fault_under_way_is_waited_for() {
    let lab = Lab::with(Config {
        mischief: 0,
        cpus: 2,
        threads: true,
        ..Config::default()
    });
    let s = lab.space();
    let va = lab.map(s, 0, 2, R | W, ANON);
    // The zero page.
    lab.load(s, va);
    let sim = lab.sim;
    let reaper = Arc::new(Mutex::new(None));
    let started = reaper.clone();
    sim.on_pause(move |at| {
        if at != Point::CowCopied {
            return;
        }
        let spins = sim.spins(1);
        let thread = std::thread::spawn(move || {
            sim.on(1);
            ops::reap(s, &mut sim.can_wait())
        });
        while !thread.is_finished() && sim.spins(1) == spins {
            std::thread::yield_now();
        }
        assert!(!thread.is_finished(), "nobody waited for the fault");
        *started.lock().unwrap() = Some(thread);
    });
    assert_eq!(lab.fault(s, va, Want::Write, true), MINOR);
    sim.no_pause();
    let reaper = reaper.lock().unwrap().take().expect("started");
    assert!(reaper.join().unwrap().is_some());
    assert_eq!((s.rss_total(), lab.load(s, va)), (0, None));
    lab.exit(s);
    lab.done();
}
