//! One test for each rule of the lock checker: it sees a violation, and stays silent where there is none.
#![cfg(feature = "lockdep")]

use mm::hw::{Cpu, Park};
use mm::phys::Hw;
use mm::sim::{Config, Machine, Sim};
use mm::sync::lockdep;
use mm::sync::{Class, RwSem, SpinLock};
use mm::{AddressSpace, CanWait};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};

/// The checker speaks once: one provocation at a time.
static TURN: Mutex<()> = Mutex::new(());

fn machine() -> (Machine, MutexGuard<'static, ()>) {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    lockdep::revive();
    let sim = Sim::new(Config {
        frames: 512,
        mischief: 0,
        ..Config::default()
    });
    (sim.on(0), turn)
}

/// What the checker says of `f`; each on a thread (hence a record) of its own.
fn complaint(f: impl FnOnce(Machine) + Send) -> Option<String> {
    let (sim, _turn) = machine();
    let said = std::thread::scope(|s| {
        s.spawn(move || {
            sim.on(0);
            match catch_unwind(AssertUnwindSafe(|| f(sim))) {
                Ok(()) => None,
                Err(e) => Some(
                    e.downcast_ref::<String>()
                        .cloned()
                        .unwrap_or_else(|| "another panic".to_string()),
                ),
            }
        })
        .join()
        .unwrap()
    });
    lockdep::revive();
    said
}

fn wait(sim: Machine) -> CanWait<Machine> {
    sim.can_wait()
}

fn spin(c: Class) -> SpinLock<()> {
    SpinLock::new(c, ())
}

#[track_caller]
fn must_say(what: &str, f: impl FnOnce(Machine) + Send) {
    let said = complaint(f).expect("the checker was silent");
    assert!(said.contains(what), "said: {said}");
}

#[test]
fn locks_in_order_are_no_news() {
    let said = complaint(|sim| {
        let space = AddressSpace::new(sim).unwrap();
        let mut w = wait(sim);
        let g = space.mmap_write(&mut w);
        let (a, b) = (spin(Class::FileEdges), spin(Class::Zone));
        let held = a.lock(sim);
        drop(b.lock(sim));
        drop(held);
        drop(g);
        lockdep::may_sleep(sim);
        lockdep::may_await(sim);
        lockdep::may_copy_user(sim);
        assert!(sim.held().is_empty());
        drop(space);
    });
    assert_eq!(said, None);
}

#[test]
fn an_inverted_order_is_seen() {
    must_say("Table is taken while Zone is held", |sim| {
        let (table, zone) = (spin(Class::Table), spin(Class::Zone));
        let _z = zone.lock(sim);
        let _t = table.lock(sim);
    });
}

#[test]
fn every_pair_of_classes_is_ordered() {
    for &a in &Class::ALL {
        for &b in &Class::ALL {
            if a.sleeps() || b.sleeps() {
                continue;
            }
            let said = complaint(move |sim| {
                let (x, y) = (spin(a), spin(b));
                let _x = x.lock(sim);
                let _y = y.lock(sim);
            });
            let fine = a < b || (a == b && a.nests());
            assert_eq!(said.is_none(), fine, "{a:?} then {b:?}: {said:?}");
        }
    }
}

#[test]
fn the_same_class_twice_is_seen_unless_it_nests() {
    must_say("Lru is taken while Lru is held", |sim| {
        let (a, b) = (spin(Class::Lru), spin(Class::Lru));
        let _a = a.lock(sim);
        let _b = b.lock(sim);
    });
}

#[test]
fn an_attempt_keeps_no_order() {
    let said = complaint(|sim| {
        let (a, b) = (spin(Class::FrameCache), spin(Class::FrameCache));
        let _a = a.lock(sim);
        let _b = b.try_lock(sim).unwrap();
    });
    assert_eq!(said, None);
}

#[test]
fn a_sleeping_lock_under_a_spin_lock_is_seen() {
    must_say("takes a sleeping lock with Vma held", |sim| {
        let space = AddressSpace::new(sim).unwrap();
        let v = spin(Class::Vma);
        let _v = v.lock(sim);
        let sem = RwSem::new(Class::Folio);
        let mut w = wait(sim);
        let _ = sem.write(&mut w, Park::Uninterruptible);
        drop(space);
    });
}

#[test]
fn a_sleeping_lock_with_interrupts_off_is_seen() {
    must_say("takes a sleeping lock with interrupts off", |sim| {
        let sem = RwSem::new(Class::Mmap);
        let mut w = wait(sim);
        sim.irq_save();
        let _ = sem.read(&mut w, Park::Uninterruptible);
    });
}

#[test]
fn the_mmap_lock_under_a_folio_lock_is_seen() {
    must_say("Mmap is taken while Folio is held", |sim| {
        let (folio, mmap) = (RwSem::new(Class::Folio), RwSem::new(Class::Mmap));
        let mut w = wait(sim);
        let _ = folio.write(&mut w, Park::Uninterruptible);
        let _ = mmap.read(&mut w, Park::Uninterruptible);
    });
}

#[test]
fn sleeping_under_a_spin_lock_is_seen() {
    must_say("sleeps with Table held", |sim| {
        let t = spin(Class::Table);
        let _t = t.lock(sim);
        lockdep::may_sleep(sim);
    });
}

#[test]
fn awaiting_acknowledgements_with_interrupts_off_is_seen() {
    must_say("awaited with interrupts off", |sim| {
        sim.irq_save();
        lockdep::may_await(sim);
    });
}

#[test]
fn awaiting_acknowledgements_under_an_interrupt_safe_lock_is_seen() {
    must_say("awaited with an interrupt-safe lock held", |sim| {
        lockdep::irq_lock(sim);
        let r = catch_unwind(AssertUnwindSafe(|| lockdep::may_await(sim)));
        lockdep::irq_unlock(sim);
        if let Err(e) = r {
            std::panic::resume_unwind(e);
        }
    });
}

#[test]
fn awaiting_acknowledgements_under_an_allocator_lock_is_seen() {
    must_say("awaited with Zone held", |sim| {
        let z = spin(Class::Zone);
        let _z = z.lock(sim);
        lockdep::may_await(sim);
    });
}

#[test]
fn spinning_with_interrupts_off_on_a_lock_held_over_a_shootdown_is_seen() {
    must_say("Table is taken with interrupts off", |sim| {
        let t = spin(Class::Table);
        sim.irq_save();
        let _t = t.lock(sim);
    });
}

#[test]
fn a_user_copy_under_the_mmap_lock_is_seen() {
    must_say("user memory with Mmap held", |sim| {
        let space = AddressSpace::new(sim).unwrap();
        let mut w = wait(sim);
        let _g = space.mmap_read(&mut w);
        lockdep::may_copy_user(sim);
    });
}

#[test]
fn a_user_copy_under_a_folio_lock_is_seen() {
    must_say("user memory with Folio held", |sim| {
        let folio = RwSem::new(Class::Folio);
        let mut w = wait(sim);
        let _ = folio.write(&mut w, Park::Uninterruptible);
        lockdep::may_copy_user(sim);
    });
}

#[test]
fn a_user_copy_under_a_spin_lock_is_seen() {
    must_say("copies from or to user memory with FileCache held", |sim| {
        let c = spin(Class::FileCache);
        let _c = c.lock(sim);
        lockdep::may_copy_user(sim);
    });
}

#[test]
fn a_lock_in_an_interrupt_handler_is_seen() {
    must_say("in an interrupt handler", |sim| {
        lockdep::irq_enter(sim);
        let z = spin(Class::Zone);
        let r = catch_unwind(AssertUnwindSafe(|| drop(z.lock(sim))));
        lockdep::irq_exit(sim);
        if let Err(e) = r {
            std::panic::resume_unwind(e);
        }
    });
}

#[test]
fn releasing_what_is_not_held_is_seen() {
    must_say("was not held", |sim| lockdep::release(sim, Class::Zone));
}

#[test]
fn an_allocation_keeps_the_order() {
    let said = complaint(|sim| {
        let f = sim.phys().alloc(sim, mm::phys::Use::Kernel).unwrap();
        sim.phys().free(sim, f);
        sim.phys().drain(sim);
        mm::phys::slab::shrink(sim);
    });
    assert_eq!(said, None);
}

/// The entries of `gup` against the lock table's last part (`docs/locks.md`): what each wants, and what the checker says
/// where it does not get it.
mod entries {
    use super::*;
    use mm::fault::fixup::fixup_user_fault;
    use mm::gup::{self, GupFlags, PageSlot, PinnedPages, Read, Write};
    use mm::ops;

    type Space<'a> = &'a AddressSpace<Machine>;
    /// Makes a call in a state that `enter` brings about, once it has what the entry wants from its caller.
    type Call = fn(Machine, Space<'_>, u64, &dyn Fn());

    const DOC: &str = include_str!("../docs/locks.md");
    const NONE: GupFlags = GupFlags::empty();

    fn slots() -> Vec<PageSlot> {
        vec![PageSlot::EMPTY; 2]
    }

    fn held(space: Space<'_>) {
        assert!(space.try_mmap_write().is_none(), "the lock is still held");
    }
    fn free(space: Space<'_>) {
        assert!(space.try_mmap_write().is_some(), "nobody holds the lock");
    }

    const CALLS: [(&str, Call); 12] = [
        ("get_user_pages", |sim, s, va, enter| {
            let guard = s.mmap_read(&mut wait(sim));
            enter();
            drop(gup::get_user_pages(&guard, s, &wait(sim), va, NONE, slots()).unwrap());
            held(s);
            drop(guard);
            let guard = s.mmap_write(&mut wait(sim));
            drop(gup::get_user_pages(&guard, s, &wait(sim), va, NONE, slots()).unwrap());
            held(s);
        }),
        ("pin_user_pages", |sim, s, va, enter| {
            let guard = s.mmap_write(&mut wait(sim));
            enter();
            let pins: PinnedPages<_, Write, _> =
                gup::pin_user_pages(&guard, s, &wait(sim), va, NONE, slots()).unwrap();
            held(s);
            drop(pins);
        }),
        ("get_user_pages_locked", |sim, s, va, enter| {
            let guard = s.mmap_read(&mut wait(sim));
            enter();
            let (got, back) = gup::get_user_pages_locked(guard, &mut wait(sim), va, NONE, slots());
            assert_eq!(got.unwrap().len(), 2);
            assert!(back.is_some());
            held(s);
        }),
        ("get_user_pages_remote", |sim, s, va, enter| {
            enter();
            drop(gup::get_user_pages_remote(s, &mut wait(sim), va, NONE, slots()).unwrap());
            free(s);
        }),
        ("pin_user_pages_remote", |sim, s, va, enter| {
            enter();
            drop(
                gup::pin_user_pages_remote::<Read, _, _>(s, &mut wait(sim), va, NONE, slots())
                    .unwrap(),
            );
            free(s);
        }),
        ("pin_longterm", |sim, s, va, enter| {
            enter();
            drop(gup::pin_longterm::<Write, _, _>(s, &mut wait(sim), va, NONE, slots()).unwrap());
            free(s);
        }),
        ("fault_in_pages", |sim, s, va, enter| {
            enter();
            assert_eq!(gup::fault_in_pages(s, &mut wait(sim), va, 2, NONE), Ok(2));
            free(s);
        }),
        ("get_user_pages_fast", |sim, s, va, enter| {
            enter();
            drop(gup::get_user_pages_fast(s, &mut wait(sim), va, NONE, slots()).unwrap());
            free(s);
        }),
        ("pin_user_pages_fast", |sim, s, va, enter| {
            enter();
            drop(
                gup::pin_user_pages_fast::<Write, _, _>(s, &mut wait(sim), va, NONE, slots())
                    .unwrap(),
            );
            free(s);
        }),
        ("get_user_pages_fast_only", |sim, s, va, enter| {
            let guard = s.mmap_write(&mut wait(sim));
            let mut wait = wait(sim);
            let irq = wait.irq_off();
            enter();
            drop(gup::get_user_pages_fast_only(&irq, s, va, NONE, slots()).unwrap());
            drop(irq);
            held(s);
            drop(guard);
        }),
        ("fixup_user_fault", |sim, s, va, enter| {
            let guard = s.mmap_read(&mut wait(sim));
            enter();
            let (done, went, guard) = fixup_user_fault(guard, &mut wait(sim), va, true, false);
            assert_eq!((done, went), (Ok(()), false));
            held(s);
            drop(guard);
        }),
        ("unpin_user_pages", |sim, s, va, enter| {
            let pins =
                gup::pin_user_pages_fast::<Write, _, _>(s, &mut wait(sim), va, NONE, slots())
                    .unwrap();
            let pages = pins.pages().to_vec();
            std::mem::forget(pins);
            let guard = s.mmap_write(&mut wait(sim));
            enter();
            gup::unpin_user_pages(sim, &pages, 2);
            held(s);
            drop(guard);
        }),
    ];

    fn call(call: Call, enter: impl Fn(Machine) + Send + Sync) -> Option<String> {
        complaint(move |sim| {
            let space = AddressSpace::new(sim).unwrap();
            let args = ops::MmapArgs {
                addr: 0,
                len: 2 << 12,
                prot: linux_raw_sys::general::PROT_READ | linux_raw_sys::general::PROT_WRITE,
                flags: linux_raw_sys::general::MAP_PRIVATE | linux_raw_sys::general::MAP_ANONYMOUS,
                file: None,
            };
            let va = ops::mmap(&space, &mut wait(sim), args).unwrap();
            call(sim, &space, va, &|| enter(sim));
            // Whatever `enter` left behind is no state to clean up in.
            std::mem::forget(space);
        })
    }

    #[test]
    fn each_wants_what_the_table_says() {
        let rows: Vec<Vec<&str>> = DOC
            .lines()
            .skip_while(|line| !line.starts_with("| entry |"))
            .skip(2)
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(rows.len(), CALLS.len());
        for (row, (name, f)) in rows.iter().zip(CALLS) {
            assert_eq!(row[1], format!("`{name}`"));
            assert_eq!(call(f, |_| {}), None, "{name} as it wants to be called");
            let sleeps = row[4] == "✓";
            let off = call(f, |sim| {
                sim.irq_save();
            });
            assert_eq!(off.is_some(), sleeps, "{name} with interrupts off: {off:?}");
            let spin = call(f, |sim| {
                let lock = Box::leak(Box::new(SpinLock::new(Class::Wait, ())));
                std::mem::forget(lock.lock(sim));
            });
            assert_eq!(spin.is_some(), sleeps, "{name} under a spin lock: {spin:?}");
            if row[2] == "free" {
                let said = call(f, |sim| {
                    let lock = Box::leak(Box::new(RwSem::new(Class::Folio)));
                    let _ = lock.write(&mut wait(sim), Park::Uninterruptible);
                });
                let said = said.unwrap_or_default();
                assert!(
                    said.contains("Mmap is taken while Folio is held"),
                    "{name}: {said}"
                );
            }
        }
    }
}
