//! The sleeping lock's hand-over, the per-VMA lock, the sequence counter, the spin lock.

use loom::thread;
use mm_loom::hw::{Cpu, Park};
use mm_loom::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use mm_loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
use mm_loom::sync::{Class, RwSem, SectionLock, SeqCount, SpinLock};
use mm_loom::{Me, Model, check};
use std::sync::Arc;

/// Data that a lock protects: plain accesses, so that loom complains of a race.
struct Plain(loom::cell::UnsafeCell<u32>);
// SAFETY: loom checks that accesses do not overlap.
unsafe impl Sync for Plain {}
// SAFETY: as above.
unsafe impl Send for Plain {}

impl Plain {
    fn new() -> Self {
        Self(loom::cell::UnsafeCell::new(0))
    }
    fn read(&self) -> u32 {
        // SAFETY: the test's lock; loom would tell.
        self.0.with(|p| unsafe { *p })
    }
    fn add(&self, n: u32) {
        // SAFETY: as above.
        self.0.with_mut(|p| unsafe { *p += n })
    }
}

/// Used once before the threads begin (see `atomic.rs`).
trait Warm: Sized {
    fn warm(self, me: Me) -> Self;
}
impl Warm for RwSem {
    fn warm(self, me: Me) -> Self {
        assert!(self.try_write(me));
        // The queue, too: a waiter that is dead already.
        me.kill(0);
        assert!(self.read(&mut me.can_wait(), Park::Killable).is_err());
        me.revive(0);
        self.unlock_write(me);
        self
    }
}
impl Warm for SpinLock<()> {
    fn warm(self, me: Me) -> Self {
        drop(self.lock(me));
        self
    }
}
impl Warm for SectionLock {
    fn warm(self, _: Me) -> Self {
        assert!(self.enter(&AtomicU64::new(1)));
        self.leave();
        self
    }
}
impl Warm for SeqCount {
    fn warm(self, _: Me) -> Self {
        self.read();
        self
    }
}
macro_rules! warm_atomics {
    ($($t:ty)*) => {$(
        impl Warm for $t {
            fn warm(self, _: Me) -> Self {
                self.load(Relaxed);
                self
            }
        }
    )*};
}
warm_atomics!(AtomicBool AtomicU32 AtomicU64);

#[test]
fn a_spin_lock_excludes() {
    check(2, || {
        let me = Model::boot();
        let it = Arc::new((SpinLock::new(Class::Zone, ()).warm(me), Plain::new()));
        let threads: Vec<_> = (1..2)
            .map(|n| {
                let it = it.clone();
                thread::spawn(move || {
                    let _g = it.0.lock(me.thread(n));
                    it.1.add(1);
                })
            })
            .collect();
        {
            let _g = it.0.lock(me);
            it.1.add(1);
        }
        for t in threads {
            t.join().unwrap();
        }
        let _g = it.0.lock(me);
        assert_eq!(it.1.read(), 2);
    });
}

#[test]
fn a_writer_waits_for_readers_and_is_handed_the_lock() {
    check(2, || {
        let me = Model::boot();
        let it = Arc::new((RwSem::new(Class::Mmap).warm(me), Plain::new()));
        let writer = {
            let it = it.clone();
            thread::spawn(move || {
                let me = me.thread(1);
                it.0.write(&mut me.can_wait(), Park::Uninterruptible)
                    .unwrap();
                it.1.add(1);
                it.0.unlock_write(me);
            })
        };
        let reader = {
            let it = it.clone();
            thread::spawn(move || {
                let me = me.thread(2);
                it.0.read(&mut me.can_wait(), Park::Uninterruptible)
                    .unwrap();
                it.1.read();
                it.0.unlock_read(me);
            })
        };
        it.0.read(&mut me.can_wait(), Park::Uninterruptible)
            .unwrap();
        let before = it.1.read();
        assert_eq!(it.1.read(), before);
        it.0.unlock_read(me);
        writer.join().unwrap();
        reader.join().unwrap();
        // Nobody is left waiting, and the lock is free.
        assert!(it.0.try_write(me));
        assert_eq!(it.1.read(), 1);
    });
}

#[test]
fn writers_hand_over_and_a_downgrade_lets_readers_in() {
    check(2, || {
        let me = Model::boot();
        let it = Arc::new((RwSem::new(Class::Mmap).warm(me), Plain::new()));
        let threads: Vec<_> = (1..3)
            .map(|n| {
                let it = it.clone();
                thread::spawn(move || {
                    let me = me.thread(n);
                    it.0.write(&mut me.can_wait(), Park::Uninterruptible)
                        .unwrap();
                    it.1.add(1);
                    if n == 1 {
                        it.0.downgrade(me);
                        it.1.read();
                        it.0.unlock_read(me);
                    } else {
                        it.0.unlock_write(me);
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        assert!(it.0.try_write(me));
        assert_eq!(it.1.read(), 2);
    });
}

#[test]
fn a_killed_waiter_leaves_without_the_lock_or_keeps_what_it_was_given() {
    check(2, || {
        let me = Model::boot();
        let it = Arc::new((RwSem::new(Class::Mmap).warm(me), Plain::new()));
        it.0.write(&mut me.can_wait(), Park::Uninterruptible)
            .unwrap();
        let victim = {
            let it = it.clone();
            thread::spawn(move || {
                let me = me.thread(1);
                if it.0.write(&mut me.can_wait(), Park::Killable).is_ok() {
                    it.1.add(1);
                    it.0.unlock_write(me);
                }
            })
        };
        let reader = {
            let it = it.clone();
            thread::spawn(move || {
                let me = me.thread(2);
                it.0.read(&mut me.can_wait(), Park::Uninterruptible)
                    .unwrap();
                it.1.read();
                it.0.unlock_read(me);
            })
        };
        me.kill(1);
        it.1.add(10);
        it.0.unlock_write(me);
        victim.join().unwrap();
        reader.join().unwrap();
        assert!(it.0.try_write(me));
        assert!(matches!(it.1.read(), 10 | 11));
    });
}

/// Two faults against the writer that takes their VMA's tables away.
#[test]
fn a_closed_vma_has_no_reader_inside() {
    check(3, || {
        let me = Model::boot();
        let it = Arc::new((
            SectionLock::new().warm(me),
            AtomicU64::new(7).warm(me),
            AtomicBool::new(false).warm(me),
            Plain::new(),
        ));
        let readers: Vec<_> = (1..3)
            .map(|_| {
                let it = it.clone();
                thread::spawn(move || {
                    if it.0.enter(&it.1) {
                        // The tables are there as long as we are inside; unless the writer was done before.
                        if !it.2.load(Acquire) {
                            it.3.read();
                        }
                        it.0.leave();
                    }
                })
            })
            .collect();
        // The mmap write lock is held: one closer.
        it.0.close(me, 7);
        it.3.add(1);
        it.2.store(true, Release);
        it.1.store(8, Release);
        for r in readers {
            r.join().unwrap();
        }
        assert!(it.0.enter(&it.1));
    });
}

/// What a section changed is seen by whoever comes in after it.
#[test]
fn a_reader_after_the_section_sees_what_it_did() {
    check(4, || {
        let me = Model::boot();
        let it = Arc::new((
            SectionLock::new().warm(me),
            AtomicU64::new(1).warm(me),
            AtomicU64::new(0).warm(me),
        ));
        let reader = {
            let it = it.clone();
            thread::spawn(move || {
                if it.0.enter(&it.1) {
                    let section = it.1.load(Relaxed);
                    let flags = it.2.load(Relaxed);
                    it.0.leave();
                    if section == 2 {
                        // It may have come in before the section; then the closer has waited for it.
                        assert!(flags == 0 || flags == 5);
                    }
                    return (section, flags);
                }
                (0, 0)
            })
        };
        it.0.close(me, 1);
        it.2.store(5, Relaxed);
        it.1.store(2, Release);
        let _ = reader.join().unwrap();
        assert!(it.0.enter(&it.1));
        assert_eq!(it.2.load(Relaxed), 5);
    });
}

#[test]
fn a_sequence_that_did_not_change_means_nobody_wrote() {
    check(4, || {
        let me = Model::boot();
        let it = Arc::new((
            SeqCount::new().warm(me),
            AtomicU32::new(0).warm(me),
            AtomicU32::new(0).warm(me),
        ));
        let reader = {
            let it = it.clone();
            thread::spawn(move || {
                let seen = it.0.read();
                let (a, b) = (it.1.load(Relaxed), it.2.load(Relaxed));
                if seen & 1 == 0 && !it.0.changed(seen) {
                    assert_eq!(a, b, "half of a change was seen");
                }
            })
        };
        it.0.begin();
        it.1.store(1, Relaxed);
        it.2.store(1, Relaxed);
        it.0.end();
        reader.join().unwrap();
    });
}

/// A table is unhooked, and freed after every CPU has taken an interrupt: a lockless reader, which has
/// them off, is never inside a freed one (table/tlb.rs; the wait is `Hw::shootdown`'s contract).
#[test]
fn an_acknowledged_round_keeps_lockless_readers_out_of_freed_tables() {
    check(4, || {
        let me = Model::boot();
        // Interrupts off (of two CPUs), the entry above, whether the table was freed.
        let it = Arc::new((
            [AtomicU32::new(0).warm(me), AtomicU32::new(0).warm(me)],
            AtomicU64::new(1).warm(me),
            AtomicBool::new(false).warm(me),
        ));
        let readers: Vec<_> = (0..2)
            .map(|cpu| {
                let it = it.clone();
                thread::spawn(move || {
                    it.0[cpu].store(1, SeqCst);
                    if it.1.load(SeqCst) != 0 {
                        assert!(!it.2.load(Relaxed), "read a freed table");
                    }
                    it.0[cpu].store(0, Release);
                })
            })
            .collect();
        it.1.swap(0, SeqCst);
        fence(SeqCst);
        for cpu in &it.0 {
            while cpu.load(Acquire) != 0 {
                thread::yield_now();
            }
        }
        it.2.store(true, Relaxed);
        for r in readers {
            r.join().unwrap();
        }
    });
}

/// WALK-3, HUGE-13: two faults build the same table: one is hooked, the loser gives its own back; a third follows, locks
/// and looks again (table/lock.rs).
#[test]
fn one_table_of_two_is_hooked_and_the_lock_is_its_own() {
    check(3, || {
        let me = Model::boot();
        let it = Arc::new((
            AtomicU64::new(0).warm(me),
            SpinLock::new(Class::TableUpper, ()).warm(me),
            [Plain::new(), Plain::new()],
            [
                SpinLock::new(Class::Table, ()).warm(me),
                SpinLock::new(Class::Table, ()).warm(me),
            ],
            AtomicU32::new(0).warm(me),
        ));
        let threads: Vec<_> = (1..3u64)
            .map(|n| {
                let it = it.clone();
                thread::spawn(move || {
                    let me = me.thread(n as usize);
                    if it.0.load(Acquire) == 0 {
                        let g = it.1.lock(me);
                        if it.0.load(Relaxed) == 0 {
                            it.0.store(n, Release);
                        } else {
                            it.4.fetch_add(1, Relaxed);
                        }
                        drop(g);
                    }
                    loop {
                        let table = it.0.load(Acquire);
                        let _g = it.3[table as usize - 1].lock(me);
                        if it.0.load(Acquire) == table {
                            it.2[table as usize - 1].add(1);
                            break;
                        }
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        let table = it.0.load(Acquire) as usize;
        let _g = it.3[table - 1].lock(me);
        assert_eq!(it.2[table - 1].read(), 2);
        me.cond_resched();
    });
}
