//! Files whose pages are read from somewhere: what faults, holders and populate make of a page that is not there, and what
//! becomes of it when the source changes or memory is wanted.

mod common;
mod lab;

use common::{P, R, W};
use lab::{ANON, BUS, Lab, MAJOR, MINOR, Once, PRIVATE, SHARED, Space, slots};
use linux_raw_sys::general as sys;
use mm::gup::{self, GupFlags, PinnedPages, Read, Write};
use mm::object::{CacheError, FileObject, Source, Unfilled};
use mm::ops;
use mm::phys::Hw;
use mm::sim::Machine;
use mm::sim::mmu::Want;
use mm::{CanWait, Errno};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// A disk whose page `i` begins with the byte `i + version`.
#[derive(Default)]
struct Disk {
    version: AtomicU8,
    broken: AtomicBool,
    /// A page, and no other, cannot be read.
    bad: Option<u64>,
    reads: Mutex<Vec<(u64, usize)>>,
    /// Happens once, after the next read has been answered and before its pages are in the cache.
    late: Once,
}

struct Reader(Machine, Arc<Disk>);

impl Source<Machine> for Reader {
    fn read(&self, wait: &mut CanWait<Machine>, first: u64, into: &Unfilled) -> Result<(), Errno> {
        let Reader(sim, disk) = self;
        disk.reads
            .lock()
            .unwrap()
            .push((first, into.pfns().count()));
        let read = first..first + into.pfns().count() as u64;
        if disk.broken.load(SeqCst) || disk.bad.is_some_and(|bad| read.contains(&bad)) {
            return Err(Errno::EIO);
        }
        let version = disk.version.load(SeqCst);
        for (i, pfn) in into.pfns().enumerate() {
            let byte = (first as u8 + i as u8).wrapping_add(version);
            // SAFETY: a frame of this machine that nobody else has.
            unsafe { sim.frame_ptr(pfn).write_volatile(byte) };
        }
        disk.late.run(wait);
        Ok(())
    }
}

impl Disk {
    fn reads(&self) -> Vec<(u64, usize)> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }
}

/// A file of `size` bytes on a disk of its own.
fn file(lab: &Lab, size: u64) -> (Arc<Disk>, Arc<FileObject<Machine>>) {
    file_on(lab, size, Disk::default())
}

fn file_on(lab: &Lab, size: u64, disk: Disk) -> (Arc<Disk>, Arc<FileObject<Machine>>) {
    let disk = Arc::new(disk);
    let source = Box::new(Reader(lab.sim, disk.clone()));
    (disk, FileObject::new_paged(lab.sim, source, size))
}

fn map(
    lab: &Lab,
    s: Space,
    pages: u64,
    prot: u32,
    flags: u32,
    file: &Arc<FileObject<Machine>>,
) -> u64 {
    lab.map_file(s, 0, pages, prot, flags, Some(file))
}

/// FAULT-5: the first touch reads a window, the access comes again and finds the page.
#[test]
fn fault_5_a_window_is_read_once() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 39 * P + 1);
    let s = lab.space();
    // Free frames have seen better days.
    let used = lab.map(s, 0, 50, R | W, ANON);
    (0..50).for_each(|i| lab.store(s, used + i * P + 9, 0x77));
    lab.unmap(s, used, 50);
    let va = map(&lab, s, 50, R, SHARED, &file);
    assert_eq!(lab.fault(s, va + 5 * P, Want::Read, false), MAJOR);
    assert_eq!(disk.reads(), [(5, 11)], "to the window's end");
    assert_eq!(lab.fault(s, va + 5 * P, Want::Read, false), MINOR);
    for i in 5..16 {
        assert_eq!(lab.load(s, va + i * P), Some(i as u8));
    }
    assert_eq!(disk.reads(), [], "they were there");
    assert_eq!(lab.fault(s, va + 3 * P, Want::Read, false), MAJOR);
    assert_eq!(disk.reads(), [(3, 2)], "what is missing");
    // The last page, and what lies past it.
    assert_eq!(lab.fault(s, va + 39 * P, Want::Read, false), MAJOR);
    assert_eq!(disk.reads(), [(39, 1)]);
    assert_eq!(lab.load(s, va + 39 * P + 9), Some(0), "after the end");
    let past = lab.fault(s, va + 40 * P, Want::Read, false);
    assert_eq!(past, BUS);
    assert!(matches!(file.get_or_create(20), Err(CacheError::Absent)));
    assert_eq!(file.page_in(&mut lab.sim.can_wait(), 40), Ok(()));
    assert_eq!((disk.reads(), file.pages()), (vec![], 14));
    drop(file);
    lab.done();
}

/// PFN-11: a private write copies what was read.
#[test]
fn pfn_11_a_private_write_copies_what_was_read_in() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let va = map(&lab, s, 4, R | W, PRIVATE, &file);
    assert_eq!(lab.fault(s, va + 2 * P + 7, Want::Write, false), MAJOR);
    lab.store(s, va + 2 * P + 7, 99);
    assert_eq!(lab.load(s, va + 2 * P), Some(2), "the rest of the page");
    assert_eq!(disk.reads(), [(2, 2)]);
    drop(file);
    lab.done();
}

/// FAULT-7: a source that fails kills with SIGBUS, and is EFAULT to holders; the next access asks again.
#[test]
fn fault_7_a_source_that_fails() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let va = map(&lab, s, 4, R, SHARED, &file);
    disk.broken.store(true, SeqCst);
    assert_eq!(lab.fault(s, va, Want::Read, false), BUS);
    let wait = &mut lab.sim.can_wait();
    let none = GupFlags::empty();
    let slots = slots(2);
    let held = gup::get_user_pages_remote(s, wait, va, none, slots);
    assert_eq!(held.err(), Some(Errno::EFAULT));
    let populate = ops::madvise(s, wait, va, 4 * P, sys::MADV_POPULATE_READ);
    assert_eq!(populate, Err(Errno::EFAULT));
    assert_eq!(file.pages(), 0);
    disk.broken.store(false, SeqCst);
    assert_eq!(lab.load(s, va + P), Some(1));
    drop(file);
    lab.done();
}

/// A window that cannot be read as a whole: the page that was wanted can.
#[test]
fn a_bad_page_spoils_no_other() {
    let lab = Lab::new();
    let bad = Some(5);
    let (disk, file) = file_on(
        &lab,
        16 * P,
        Disk {
            bad,
            ..Disk::default()
        },
    );
    let s = lab.space();
    let va = map(&lab, s, 16, R, SHARED, &file);
    for i in 0..16 {
        let want = (i != 5).then_some(i as u8);
        assert_eq!(lab.load(s, va + i * P), want);
    }
    assert_eq!(disk.reads().len(), 13);
    drop(file);
    lab.done();
}

/// FAULT-3, LOCK-1: who may not wait, or may not lose the lock, gets what is there.
#[test]
fn fault_3_nowait_does_not_read() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 64 * P);
    let s = lab.space();
    let va = map(&lab, s, 64, R, SHARED, &file);
    assert_eq!(lab.fault(s, va, Want::Read, false), MAJOR);
    disk.reads();
    let wait = &mut lab.sim.can_wait();
    let get = |wait: &mut _, va, n, flags| {
        let slots = slots(n);
        gup::get_user_pages_remote(s, wait, va, flags, slots).map(|held| held.len())
    };
    let nowait = GupFlags::NOWAIT;
    assert_eq!(get(wait, va + 14 * P, 4, nowait), Ok(2));
    assert_eq!(get(wait, va + 20 * P, 4, nowait), Ok(0), "0 is no error");
    let guard = s.mmap_read(wait);
    let slots = slots(4);
    let none = GupFlags::empty();
    let held = gup::get_user_pages(&guard, s, &lab.sim.can_wait(), va + 14 * P, none, slots);
    assert_eq!(held.map(|h| h.len()), Ok(2));
    drop(guard);
    assert_eq!(disk.reads(), []);
    assert_eq!(get(wait, va + 14 * P, 4, none), Ok(4));
    assert_eq!(disk.reads(), [(16, 16)]);
    drop(file);
    lab.done();
}

/// LOCK-5: the lock is gone while the page is read. What another thread mapped there meanwhile is what is pinned.
#[test]
fn lock_5_the_mapping_changes_while_the_page_is_read() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 4 * P);
    let s = lab.space();
    let none = GupFlags::empty();
    let pin = |va| {
        let slots = slots(1);
        let wait = &mut lab.sim.can_wait();
        gup::pin_user_pages_remote::<Write, _, _>(s, wait, va, none, slots)
    };
    let va = map(&lab, s, 4, R | W, PRIVATE, &file);
    // Another mapping in its place.
    disk.late.set(move |wait| {
        ops::munmap(s, wait, va, 4 * P).unwrap();
        let args = ops::MmapArgs {
            addr: va,
            len: P,
            prot: R | W,
            flags: ANON | lab::FIXED,
            file: None,
        };
        ops::mmap(s, wait, args).unwrap();
    });
    let pins: PinnedPages<Machine, Write, _> = pin(va).unwrap();
    assert_eq!(lab.dma_read(pins.pages()[0]), 0, "anonymous");
    assert!(lab.folio(pins.pages()[0].pfn()).is_anon());
    drop(pins);
    // Nothing in its place.
    disk.late
        .set(move |wait| ops::munmap(s, wait, va, 4 * P).unwrap());
    let va = map(&lab, s, 4, R | W, PRIVATE, &file);
    file.shrink(&mut lab.sim.can_wait(), true);
    assert_eq!(pin(va).err(), Some(Errno::EFAULT));
    // Write-protected.
    let va = map(&lab, s, 4, R | W, PRIVATE, &file);
    file.shrink(&mut lab.sim.can_wait(), true);
    disk.late
        .set(move |wait| ops::mprotect(s, wait, va, P, R).unwrap());
    assert_eq!(pin(va).err(), Some(Errno::EFAULT));
    drop(file);
    lab.done();
}

/// LOCK-5: as often as it takes. The page is taken away again each time that it was read.
#[test]
fn lock_5_retries_until_it_succeeds() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 16 * P);
    let s = lab.space();
    let va = map(&lab, s, 16, R, SHARED, &file);
    let again = |n: usize| {
        fn next(disk: Arc<Disk>, file: Arc<FileObject<Machine>>, n: usize) {
            let (disk2, file2) = (disk.clone(), file.clone());
            disk.late.set(move |wait| {
                file2.invalidate(wait, 0, 16);
                if n > 1 {
                    next(disk2, file2, n - 1);
                }
            });
        }
        next(disk.clone(), file.clone(), n);
    };
    again(4);
    let slots = slots(1);
    let wait = &mut lab.sim.can_wait();
    let none = GupFlags::empty();
    let pins: PinnedPages<Machine, Read, _> =
        gup::pin_user_pages_remote(s, wait, va + 2 * P, none, slots).unwrap();
    assert_eq!(lab.dma_read(pins.pages()[0]), 2);
    assert_eq!(disk.reads(), [(2, 14); 5]);
    drop(pins);
    drop(file);
    lab.done();
}

/// The source changes after it was read and before the page is in the cache: nobody sees what it was (object/cache.rs, rule 5).
#[test]
fn what_was_read_before_a_change_is_not_kept() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 64 * P);
    let s = lab.space();
    let va = map(&lab, s, 64, R, SHARED, &file);
    let (disk2, file2) = (disk.clone(), file.clone());
    disk.late.set(move |wait| {
        disk2.version.store(100, SeqCst);
        file2.invalidate(wait, 3, 4);
    });
    assert_eq!(lab.fault(s, va + 3 * P, Want::Read, false), MAJOR);
    assert_eq!(lab.load(s, va + 3 * P), Some(103));
    assert_eq!(disk.reads(), [(3, 13), (3, 13)]);
    // Mapped and cached: both forget.
    disk.version.store(50, SeqCst);
    file.invalidate(&mut lab.sim.can_wait(), 3, 4);
    assert_eq!(lab.load(s, va + 3 * P), Some(53));
    assert_eq!(lab.load(s, va + 4 * P), Some(104), "not asked for");
    drop(file);
    lab.done();
}

/// Memory is wanted: pages that only the cache has go first, mapped ones on demand, pinned ones never.
#[test]
fn what_can_be_read_again_is_let_go() {
    let lab = Lab::new();
    let (_, file) = file(&lab, 32 * P);
    let s = lab.space();
    let va = map(&lab, s, 32, R, SHARED, &file);
    let wait = &mut lab.sim.can_wait();
    file.page_in(wait, 0).unwrap();
    file.page_in(wait, 16).unwrap();
    assert_eq!(lab.load(s, va + 20 * P), Some(20)); // and its neighbours
    let slots = slots(1);
    let none = GupFlags::empty();
    let pins: PinnedPages<Machine, Read, _> =
        gup::pin_user_pages_remote(s, wait, va + 30 * P, none, slots).unwrap();
    assert_eq!(file.shrink(wait, false), 16);
    assert_eq!(file.pages(), 16);
    assert_eq!(file.shrink(wait, true), 15);
    assert_eq!(lab.dma_read(pins.pages()[0]), 30);
    assert_eq!(lab.load(s, va + 30 * P), Some(30), "the same page again");
    drop(pins);
    let plain = lab.file(4);
    drop(plain.get_or_create(0).unwrap());
    assert_eq!(plain.shrink(wait, true), 0, "what has no source stays");
    drop(file);
    lab.done();
}

/// Populate goes through the whole range, however often the lock has to go.
#[test]
fn populate_reads_all_of_it() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 40 * P);
    let s = lab.space();
    let va = map(&lab, s, 40, R | W, PRIVATE, &file);
    let wait = &mut lab.sim.can_wait();
    ops::madvise(s, wait, va, 40 * P, sys::MADV_POPULATE_WRITE).unwrap();
    assert_eq!(disk.reads(), [(0, 16), (16, 16), (32, 8)]);
    assert_eq!(s.rss_total(), 40);
    drop(file);
    lab.done();
}

/// Advice is taken: ahead of use, and after.
#[test]
fn advice_about_pages_that_can_be_read() {
    let lab = Lab::new();
    let (disk, file) = file(&lab, 64 * P);
    let s = lab.space();
    let va = map(&lab, s, 64, R, SHARED, &file);
    let wait = &mut lab.sim.can_wait();
    ops::madvise(s, wait, va + 10 * P, 10 * P, sys::MADV_WILLNEED).unwrap();
    assert_eq!(disk.reads(), [(10, 6), (16, 16)]);
    assert_eq!((s.rss_total(), file.pages()), (0, 22));
    assert_eq!(lab.load(s, va + 12 * P), Some(12));
    file.forget(wait, 11, 20);
    // The window that was mapped around 12 stays.
    assert!(file.lookup(12).is_some() && file.lookup(10).is_some());
    assert!(file.lookup(16).is_none() && file.lookup(20).is_some());
    let hole = ops::madvise(s, wait, va + 60 * P, 10 * P, sys::MADV_WILLNEED);
    assert_eq!(hole, Err(Errno::ENOMEM));
    disk.broken.store(true, SeqCst);
    ops::madvise(s, wait, va + 32 * P, P, sys::MADV_WILLNEED).unwrap();
    drop(file);
    lab.done();
}

/// No frame, at any of the allocations: none is lost, and the next try succeeds.
#[test]
fn no_frame_to_read_into() {
    let lab = Lab::new();
    let (_, file) = file(&lab, 16 * P);
    for n in 1..24 {
        let wait = &mut lab.sim.can_wait();
        lab.sim.phys().fail_after(n);
        let read = file.page_in(wait, 0);
        lab.sim.phys().fail_after(0);
        assert!(matches!(read, Ok(()) | Err(Errno::ENOMEM)), "{read:?}");
        if n == 1 {
            assert_eq!(read, Err(Errno::ENOMEM));
        }
        file.page_in(wait, 0).unwrap();
        assert!(file.lookup(0).is_some());
        file.shrink(wait, false);
        assert_eq!(file.pages(), 0, "failure {n}");
    }
    drop(file);
    lab.done();
}
