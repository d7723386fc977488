//! Files that are written back: who may write a page, what reaches the disk, and when.

mod common;
mod lab;

use common::{P, R, W, trap};
use lab::{BUS, File, Lab, MAJOR, Once, PRIVATE, SHARED, Space, slots};
use mm::fault::FaultResult;
use mm::gup::{self, GupFlags, PinnedPages, Read, Write};
use mm::object::cache::Dirty;
use mm::object::{FileObject, Source, Unfilled};
use mm::ops;
use mm::phys::{Hw, dirty_pages};
use mm::race::Point;
use mm::sim::mmu::Want;
use mm::sim::{Config, Machine};
use mm::{CanWait, Errno};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// First bytes of pages, and what is to happen.
#[derive(Default)]
struct Disk {
    pages: Mutex<BTreeMap<u64, u8>>,
    /// Pages that were announced, and lists that the object was put on.
    prepared: Mutex<Vec<(u64, u64)>>,
    listed: AtomicUsize,
    writes: Mutex<Vec<(u64, u64)>>,
    refuses: Mutex<Option<Errno>>,
    breaks: Mutex<Option<Errno>>,
    /// Happens once, while the next read, or write, is on its way.
    during: Once,
    /// The same, when the next page is marked.
    marked: Once,
}

struct Side(Machine, Arc<Disk>);

impl Source<Machine> for Side {
    fn read(&self, wait: &mut CanWait<Machine>, first: u64, into: &Unfilled) -> Result<(), Errno> {
        for (index, pfn) in (first..).zip(into.pfns()) {
            into.clear(self.0, (index - first) * P, P);
            let byte = self.1.pages.lock().unwrap().get(&index).copied();
            // SAFETY: a frame of this machine that nobody else has.
            unsafe { self.0.frame_ptr(pfn).write_volatile(byte.unwrap_or(0)) };
        }
        self.1.during.run(wait);
        Ok(())
    }
    fn writable(&self) -> bool {
        true
    }
    fn prepare(&self, _: &mut CanWait<Machine>, first: u64, count: u64) -> Result<(), Errno> {
        self.1.prepared.lock().unwrap().push((first, count));
        self.1.refuses.lock().unwrap().map_or(Ok(()), Err)
    }
    fn dirtied(&self, _: File) {
        self.1.listed.fetch_add(1, SeqCst);
        self.1.marked.run(&mut self.0.can_wait());
    }
    fn write(
        &self,
        wait: &mut CanWait<Machine>,
        first: u64,
        pages: &Dirty<Machine>,
        len: u64,
    ) -> Result<(), Errno> {
        self.1.writes.lock().unwrap().push((first, len));
        self.1.during.run(wait);
        if let Some(errno) = *self.1.breaks.lock().unwrap() {
            return Err(errno);
        }
        for at in (0..len).step_by(P as usize) {
            let mut byte = [0];
            pages.copy(at, &mut byte);
            self.1.pages.lock().unwrap().insert(first + at / P, byte[0]);
        }
        Ok(())
    }
}

impl Disk {
    fn has(&self, page: u64) -> u8 {
        self.pages.lock().unwrap().get(&page).copied().unwrap_or(0)
    }
    fn writes(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut *self.writes.lock().unwrap())
    }
}

fn file(lab: &Lab, size: u64) -> (Arc<Disk>, File) {
    let disk = Arc::new(Disk::default());
    let source = Box::new(Side(lab.sim, disk.clone()));
    (disk, FileObject::new_paged(lab.sim, source, size))
}

fn map(lab: &Lab, s: Space, pages: u64, prot: u32, flags: u32, file: &File) -> u64 {
    lab.map_file(s, 0, pages, prot, flags, Some(file))
}

fn write_back(lab: &Lab, file: &File) -> Result<(), Errno> {
    file.write_back(&mut lab.sim.can_wait(), 0, u64::MAX)
}

/// Tests count pages of all machines: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// FAULT-6: a store is announced without a lock, once until the page is clean again; a load is not, and what was loaded
/// may not be stored to.
#[test]
fn fault_6_a_store_is_announced_and_reaches_the_disk() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 40 * P);
    let s = lab.space();
    let va = map(&lab, s, 40, R | W, SHARED, &file);
    assert_eq!(lab.load(s, va + 3 * P), Some(0));
    assert_eq!((write_back(&lab, &file), disk.writes()), (Ok(()), vec![]));
    assert_eq!(*disk.prepared.lock().unwrap(), []);
    assert_eq!(lab.fault(s, va + 3 * P, Want::Write, true), MAJOR);
    lab.store(s, va + 3 * P, 7);
    lab.store(s, va + 3 * P, 8);
    lab.store(s, va + 4 * P, 9);
    lab.store(s, va + 9 * P, 5);
    assert_eq!(*disk.prepared.lock().unwrap(), [(3, 1), (4, 1), (9, 1)]);
    assert_eq!((disk.listed.load(SeqCst), dirty_pages()), (1, 3));
    assert_eq!(write_back(&lab, &file), Ok(()));
    assert_eq!(
        disk.writes(),
        [(3, 2 * P), (9, P)],
        "those in a row at once"
    );
    assert_eq!((disk.has(3), disk.has(4), disk.has(9)), (8, 9, 5));
    assert_eq!((write_back(&lab, &file), disk.writes()), (Ok(()), vec![]));
    assert_eq!(dirty_pages(), 0);
    // Rights that come back do not come back silently.
    lab.protect(s, va, 40, R);
    lab.protect(s, va, 40, R | W);
    lab.store(s, va + 3 * P, 10);
    assert_eq!(dirty_pages(), 1);
    // A child asks for itself.
    let child = lab.fork(s);
    write_back(&lab, &file).unwrap();
    lab.store(child, va + 3 * P, 11);
    assert_eq!((dirty_pages(), write_back(&lab, &file)), (1, Ok(())));
    assert_eq!(disk.has(3), 11);
    // A private mapping's stores are its own.
    let p = lab.map_file(s, 50, 4, R | W, PRIVATE, Some(&file));
    lab.store(s, p + 3 * P, 99);
    assert_eq!((dirty_pages(), disk.has(3)), (0, 11));
    drop(file);
    lab.done();
}

/// A store while the page is being written marks it again: nothing is lost, whichever the disk got.
#[test]
fn a_store_during_the_write_is_written_next_time() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, SHARED, &file);
    lab.store(s, va, 1);
    let (sim, space) = (lab.sim, s);
    disk.during.set(move |_| {
        let got = sim.access(va, Want::Write, 2, &mut |f| {
            matches!(trap(sim, space, f), FaultResult::Done { .. })
        });
        assert!(got.is_some());
    });
    assert_eq!(write_back(&lab, &file), Ok(()));
    assert_eq!(dirty_pages(), 1);
    assert_eq!((write_back(&lab, &file), disk.has(0)), (Ok(()), 2));
    assert_eq!(disk.writes(), [(0, P), (0, P)]);
    drop(file);
    lab.done();
}

/// Rule 6: what makes a file longer is written with its new size, whenever somebody writes back.
#[test]
fn what_makes_a_file_longer_is_written() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 0);
    let page = file.write_page(0).unwrap();
    let put = |byte: u8| {
        // SAFETY: a page of the tests' machine.
        unsafe { page.ptr().write_volatile(byte) }
    };
    put(7);
    // As soon as it is marked.
    let target = file.clone();
    let all = move |wait: &mut CanWait<Machine>| target.write_back(wait, 0, u64::MAX).unwrap();
    disk.marked.set(all);
    file.wrote(&page, 100);
    assert_eq!((disk.writes(), disk.has(0)), (vec![(0, 100)], 7));
    // Before it is marked again.
    file.wrote(&page, 200);
    put(8);
    assert_eq!(write_back(&lab, &file), Ok(()));
    file.wrote(&page, 300);
    assert_eq!((write_back(&lab, &file), dirty_pages()), (Ok(()), 0));
    assert_eq!(disk.writes(), [(0, 200), (0, 300)]);
    drop(page);
    drop(file);
    lab.done();
}

/// BUG-15: a device writes a pinned page after it was cleaned; nobody faults, and the write reaches the disk.
#[test]
fn bug_15_a_device_writes_after_the_cleaning() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, SHARED, &file);
    let slots = slots(1);
    lab.run(s);
    let wait = &mut lab.sim.can_wait();
    let pins: PinnedPages<Machine, Write, _> =
        gup::pin_user_pages_fast(s, wait, va + P, GupFlags::empty(), slots).unwrap();
    // As the thread that writes back does it.
    file.unlist();
    assert_eq!(write_back(&lab, &file), Ok(()));
    assert_eq!(
        (disk.listed.load(SeqCst), dirty_pages()),
        (2, 1),
        "as long as it is pinned"
    );
    lab.dma_write(pins.pages()[0], 42);
    pins.unpin();
    assert_eq!((write_back(&lab, &file), disk.has(1)), (Ok(()), 42));
    assert_eq!(dirty_pages(), 0);
    drop(file);
    lab.done();
}

/// BUG-15, PIN-10: the device is done while the page is on its way to the disk. Who unpins marks the page, and nobody hears of
/// it but who writes back: he tells the source, or the mark would go with the object.
#[test]
fn bug_15_a_pin_goes_during_the_write() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, SHARED, &file);
    lab.run(s);
    let slots = slots(1);
    let wait = &mut lab.sim.can_wait();
    let pins: PinnedPages<Machine, Write, _> =
        gup::pin_user_pages_fast(s, wait, va + P, GupFlags::empty(), slots).unwrap();
    file.unlist();
    disk.during.set(move |_| pins.unpin());
    assert_eq!(write_back(&lab, &file), Ok(()));
    assert_eq!((disk.listed.load(SeqCst), dirty_pages()), (2, 1));
    assert_eq!((write_back(&lab, &file), dirty_pages()), (Ok(()), 0));
    drop(file);
    lab.done();
}

/// A mapping goes while its page is cleaned: a CPU that has not been told yet may still store to it, and what it stores
/// reaches the disk.
#[test]
fn a_store_through_a_mapping_that_goes_is_written() {
    let _alone = alone();
    let lab = Lab::with(Config {
        mischief: 0,
        cpus: 3,
        threads: true,
        ..Config::default()
    });
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    for unmap in [Lab::unmap, Lab::dontneed] {
        let va = map(&lab, s, 4, R | W, SHARED, &file);
        lab.run_on(2, s);
        lab.store(s, va, 1);
        lab.run_on(0, s);
        let (sim, target) = (lab.sim, file.clone());
        let cleaner = Arc::new(Mutex::new(None));
        let started = cleaner.clone();
        lab.sim.on_pause(move |at| {
            if at != Point::Zapped || started.lock().unwrap().is_some() {
                return;
            }
            let (spins, target) = (sim.spins(1), target.clone());
            let thread = std::thread::spawn(move || {
                sim.on(1);
                target.write_back(&mut sim.can_wait(), 0, u64::MAX)
            });
            // It is through, or waits for us.
            while !thread.is_finished() && sim.spins(1) == spins {
                std::thread::yield_now();
            }
            *started.lock().unwrap() = Some(thread);
            sim.on(2);
            assert!(sim.access(va, Want::Write, 2, &mut |_| false).is_some());
            sim.on(0);
        });
        unmap(&lab, s, va, 4);
        lab.sim.no_pause();
        let cleaner = cleaner.lock().unwrap().take().expect("started");
        assert_eq!(cleaner.join().unwrap(), Ok(()));
        assert_eq!(write_back(&lab, &file), Ok(()));
        assert_eq!(disk.has(0), 2);
        disk.pages.lock().unwrap().clear();
    }
    drop(file);
    lab.done();
}

/// VMA-13, LT-9: no device writes such a page for long, whichever path is taken; it may read it, write it for a moment, and
/// do what it likes with pages of files in memory.
#[test]
fn vma_13_no_device_writes_it_for_long() {
    let _alone = alone();
    let lab = Lab::new();
    let (_disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, SHARED, &file);
    let memory = lab.map_file(s, 60, 4, R | W, SHARED, Some(lab.file(4)));
    let private = lab.map_file(s, 80, 4, R | W, PRIVATE, Some(&file));
    lab.run(s);
    let pin = |va: u64| {
        let slots = slots(1);
        let wait = &mut lab.sim.can_wait();
        gup::pin_longterm::<Write, _, _>(s, wait, va, GupFlags::empty(), slots).map(drop)
    };
    for dirty in [false, true] {
        if dirty {
            // Now the entry is there and allows it: the fast path's own rule.
            lab.store(s, va, 1);
        }
        assert_eq!(pin(va), Err(Errno::EFAULT), "dirty: {dirty}");
    }
    assert_eq!((pin(memory), pin(private)), (Ok(()), Ok(())));
    let slots = slots(1);
    let wait = &mut lab.sim.can_wait();
    let read = gup::pin_longterm::<Read, _, _>(s, wait, va, GupFlags::empty(), slots);
    assert!(read.is_ok());
    drop(read);
    drop(file);
    lab.done();
}

/// A file that cannot take the page, or whose disk fails.
#[test]
fn errors_go_to_the_store_or_to_who_asks() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, SHARED, &file);
    *disk.refuses.lock().unwrap() = Some(Errno::ENOSPC);
    lab.load(s, va);
    assert_eq!(lab.fault(s, va, Want::Write, true), BUS);
    let slots = slots(1);
    let wait = &mut lab.sim.can_wait();
    let pins = gup::pin_user_pages_fast::<Write, _, _>(s, wait, va, GupFlags::empty(), slots);
    assert!(matches!(pins, Err(Errno::EFAULT)));
    *disk.refuses.lock().unwrap() = None;
    lab.store(s, va, 3);
    let before = file.failures();
    *disk.breaks.lock().unwrap() = Some(Errno::EIO);
    assert_eq!(write_back(&lab, &file), Err(Errno::EIO));
    assert_eq!(
        (file.failures() as u32, file.failures() != before),
        (5, true)
    );
    *disk.breaks.lock().unwrap() = None;
    assert_eq!(write_back(&lab, &file), Ok(()), "told once");
    drop(file);
    lab.done();
}

/// Where there is no memory for the transfer the disk has not failed: nobody is told, and the pages wait for the next time.
#[test]
fn no_memory_to_write_with_loses_nothing() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 3 * P);
    let s = lab.space();
    let va = map(&lab, s, 3, R | W, SHARED, &file);
    lab.store_each(s, va, 3, 7);
    let before = file.failures();
    file.unlist();
    *disk.breaks.lock().unwrap() = Some(Errno::ENOMEM);
    let listed = disk.listed.load(SeqCst);
    assert_eq!(write_back(&lab, &file), Err(Errno::ENOMEM));
    assert_eq!(disk.listed.load(SeqCst), listed + 1, "it comes again");
    assert_eq!((dirty_pages(), file.failures()), (3, before));
    assert_eq!(file.shrink(&mut lab.sim.can_wait(), true), 0);
    *disk.breaks.lock().unwrap() = None;
    disk.writes();
    assert_eq!(write_back(&lab, &file), Ok(()));
    assert_eq!(disk.writes(), [(0, 3 * P)]);
    assert_eq!([0, 1, 2].map(|i| disk.has(i)), [7, 8, 9]);
    drop(file);
    lab.done();
}

/// msync writes what is mapped there, of shared mappings, and nothing else.
#[test]
fn msync_writes_what_is_mapped_there() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 8 * P);
    let s = lab.space();
    let va = map(&lab, s, 8, R | W, SHARED, &file);
    lab.store_each(s, va, 8, 50);
    let sync = |from: u64, pages: u64, flags: u32| {
        ops::msync(s, &mut lab.sim.can_wait(), va + from * P, pages * P, flags)
    };
    assert_eq!(sync(2, 3, linux_raw_sys::general::MS_ASYNC), Ok(()));
    assert_eq!(disk.writes(), []);
    assert_eq!(sync(2, 3, linux_raw_sys::general::MS_SYNC), Ok(()));
    assert_eq!((disk.writes(), dirty_pages()), (vec![(2, 3 * P)], 5));
    drop(file);
    lab.done();
}

/// What is dirty stays until it is written, and what is cut is not written.
#[test]
fn dirty_pages_are_not_let_go_of_but_cut() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 9 * P + 100);
    let s = lab.space();
    let va = map(&lab, s, 10, R | W, SHARED, &file);
    lab.store_each(s, va, 10, 20);
    let wait = &mut lab.sim.can_wait();
    assert_eq!((file.shrink(wait, true), file.pages()), (0, 10));
    file.invalidate(wait, 0, 10);
    assert_eq!(lab.load(s, va + 2 * P), Some(22));
    file.punch_hole(wait, 4 * P, 6 * P);
    file.set_size(wait, 7 * P + 50);
    assert_eq!((write_back(&lab, &file), dirty_pages()), (Ok(()), 0));
    assert_eq!(disk.writes(), [(0, 4 * P), (6, P + 50)]);
    assert_eq!(file.shrink(wait, true), 6);
    assert_eq!(lab.load(s, va + 7 * P), Some(27));
    assert_eq!(lab.load(s, va + 4 * P), Some(0));
    drop(file);
    lab.done();
}

/// A page is cut off, or punched out, under a device: it leaves the file at once and is the device's until that is done. What is written
/// to it is nobody's, and the file has zeroes there when it has grown again.
#[test]
fn a_pinned_page_leaves_the_file() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, SHARED, &file);
    lab.run(s);
    let wait = &mut lab.sim.can_wait();
    let pins: PinnedPages<Machine, Write, _> =
        gup::pin_user_pages_fast(s, wait, va + P, GupFlags::empty(), slots(3)).unwrap();
    file.set_size(wait, 3 * P);
    file.punch_hole(wait, P, 2 * P);
    assert_eq!(file.pages(), 1);
    assert_eq!(lab.load(s, va + 3 * P), None, "behind the end");
    file.set_size(wait, 4 * P);
    (pins.pages().iter()).for_each(|page| lab.dma_write(*page, 42));
    assert_eq!(
        (lab.load(s, va + P), lab.load(s, va + 3 * P)),
        (Some(0), Some(0))
    );
    assert_eq!(lab.load(s, va + 2 * P), Some(42), "a page that stayed");
    pins.unpin();
    assert_eq!(write_back(&lab, &file), Ok(()));
    assert_eq!((disk.has(1), disk.has(2), disk.has(3)), (0, 42, 0));
    assert_eq!(dirty_pages(), 0);
    drop(file);
    lab.done();
}

/// What was stored behind the end of a file is no part of it when it grows.
#[test]
fn what_lies_behind_the_end_is_nobodys() {
    let _alone = alone();
    let lab = Lab::new();
    let (_disk, file) = file(&lab, 100);
    let s = lab.space();
    let va = map(&lab, s, 2, R | W, SHARED, &file);
    let wait = &mut lab.sim.can_wait();
    (0..3).for_each(|i| lab.store(s, va + 99 + i * 100, 7));
    file.set_size(wait, 250);
    assert_eq!(lab.load(s, va + 199), Some(0));
    assert_eq!(lab.load(s, va + 99), Some(7), "inside");
    // Written from 280 on.
    file.clear_tail(280);
    file.extend(400);
    assert_eq!(lab.load(s, va + 299), Some(7), "what is written");
    lab.store(s, va + 499, 7);
    file.set_size(wait, 2 * P);
    assert_eq!(lab.load(s, va + 499), Some(0));
    drop(file);
    lab.done();
}

/// Rule 5: what was on its way in when the file was cut does not come in, though the file has grown again since.
#[test]
fn what_is_read_during_a_cut_does_not_come_in() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    disk.pages.lock().unwrap().insert(2, 99);
    let (cut, store) = (file.clone(), disk.clone());
    disk.during.set(move |wait| {
        cut.set_size(wait, P);
        store.pages.lock().unwrap().clear();
        cut.set_size(wait, 4 * P);
    });
    assert_eq!(file.page_in(&mut lab.sim.can_wait(), 2), Ok(()));
    assert!(file.lookup(2).is_none());
    // The same of a hole.
    disk.pages.lock().unwrap().insert(1, 98);
    let (cut, store) = (file.clone(), disk.clone());
    disk.during.set(move |wait| {
        cut.punch_hole(wait, P, 2 * P);
        store.pages.lock().unwrap().clear();
    });
    assert_eq!(file.page_in(&mut lab.sim.can_wait(), 1), Ok(()));
    assert!(file.lookup(1).is_none());
    drop(file);
    lab.done();
}

/// Rule 7: somebody who has found a page keeps it in the cache.
#[test]
fn a_page_that_somebody_has_stays() {
    let _alone = alone();
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let wait = &mut lab.sim.can_wait();
    file.page_in(wait, 1).unwrap();
    let held = file.lookup(1).unwrap();
    assert_eq!(file.shrink(wait, true), 2, "all but that");
    // SAFETY: a page of the tests' machine.
    unsafe { held.ptr().write_volatile(5) };
    file.mark_dirty(&held);
    drop(held);
    assert_eq!((file.shrink(wait, true), file.pages()), (0, 1));
    assert_eq!((write_back(&lab, &file), disk.has(1)), (Ok(()), 5));
    assert_eq!(file.shrink(wait, false), 1);
    drop(file);
    lab.done();
}

/// The tests above see what they are for.
#[test]
fn planted_bugs_are_caught() {
    lab::catches(&[
        (15, "bug_15_a_device_writes_after_the_cleaning"),
        (15, "bug_15_a_pin_goes_during_the_write"),
    ]);
}
