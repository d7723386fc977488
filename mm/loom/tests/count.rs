//! References, pins and the end of a frame: whoever drops the last reference frees, once.

use loom::thread;
use mm_loom::addr::Pfn;
use mm_loom::phys::{Folio, Hw, flag};
use mm_loom::sync::atomic::Ordering::{Relaxed, SeqCst};
use mm_loom::{Me, Model, check};

const F: Pfn = Pfn(1);

/// An anonymous page with the one reference of its mapping entry.
fn page(me: Me) -> Folio<Me> {
    let d = me.desc(F);
    d.refs.store(1, Relaxed);
    d.flags.store(flag::ANON_EXCLUSIVE, Relaxed);
    Folio::new(me, F)
}

#[test]
fn the_last_of_three_frees_and_only_the_last() {
    check(4, || {
        let me = Model::boot();
        let p = page(me);
        let (a, b) = (p.get(), p.get());
        let one = thread::spawn(move || drop(a));
        let two = thread::spawn(move || drop(b));
        p.put();
        one.join().unwrap();
        two.join().unwrap();
        assert_eq!(me.phys().freed(), 1);
    });
}

#[test]
fn a_frame_found_without_holding_it_is_held_or_refused() {
    check(4, || {
        let me = Model::boot();
        let p = page(me);
        let finders: Vec<_> = (0..2)
            .map(|_| {
                thread::spawn(move || {
                    if let Some(r) = p.try_get() {
                        assert_eq!(me.phys().freed(), 0, "held and freed");
                        drop(r);
                    }
                })
            })
            .collect();
        p.put();
        for f in finders {
            f.join().unwrap();
        }
        assert_eq!(me.phys().freed(), 1);
        assert!(p.try_get().is_none());
    });
}

/// Pin, reference and free: three threads.
#[test]
fn a_pin_keeps_the_frame_and_shows() {
    check(4, || {
        let me = Model::boot();
        let p = page(me);
        let held = p.get();
        let pinner = thread::spawn(move || {
            // Holds a reference, so it may pin.
            assert!(p.desc().pin(1));
            assert!(p.maybe_pinned());
            drop(held);
            assert_eq!(me.phys().freed(), 0, "pinned and freed");
            p.put_many(mm_loom::phys::count::PIN_BIAS);
        });
        let reader = thread::spawn(move || drop(p.try_get()));
        p.put();
        pinner.join().unwrap();
        reader.join().unwrap();
        assert_eq!(me.phys().freed(), 1);
        assert_eq!(p.desc().refs.load(SeqCst), 0);
    });
}

#[test]
fn a_count_near_its_limit_is_refused_and_unchanged() {
    check(3, || {
        let me = Model::boot();
        let p = page(me);
        let near = i32::MAX / 2 - 100;
        p.desc().refs.store(near, Relaxed);
        let t = thread::spawn(move || assert!(!p.desc().pin(1)));
        assert!(!p.desc().pin(1));
        t.join().unwrap();
        assert_eq!(p.desc().refs.load(SeqCst), near);
    });
}

#[test]
fn dirty_accessed_and_exclusive_do_not_lose_each_other() {
    check(4, || {
        let me = Model::boot();
        let p = page(me);
        let t = thread::spawn(move || p.set_dirty());
        let u = thread::spawn(move || p.mark_accessed());
        assert!(p.try_share());
        t.join().unwrap();
        u.join().unwrap();
        let f = p.desc().flags.load(SeqCst);
        assert_eq!(f, flag::DIRTY | flag::REFERENCED);
    });
}

/// Truncation takes a page's owner away and then looks whether it is mapped; a fault counts its mapping and
/// then looks at the owner: no entry is left that nobody will zap (object/cache.rs, rule 3).
#[test]
fn a_truncated_page_is_not_mapped_behind_the_removers_back() {
    check(5, || {
        let me = Model::boot();
        let p = page(me);
        p.desc().mapping.store(0x1000, Relaxed);
        let fault = thread::spawn(move || {
            p.desc().map_inc();
            if p.mapping() == 0x1000 {
                return true;
            }
            p.desc().map_dec();
            false
        });
        p.desc().mapping.swap(0, SeqCst);
        let seen = p.desc().map_count() > 0;
        let mapped = fault.join().unwrap();
        assert!(seen || !mapped, "mapped, and the remover did not see it");
    });
}

/// Fork looks at the pins, clears the exclusive mark and looks again; a fast pin takes its count and then
/// looks at the mark. One of the two must see the other (BUG-5, BUG-7).
#[test]
fn fork_does_not_share_what_is_being_pinned() {
    check(5, || {
        let me = Model::boot();
        let p = page(me);
        let pinner = thread::spawn(move || {
            // What fast pin does on an entry it has read: count first, look after.
            if !p.desc().pin(1) {
                return false;
            }
            mm_loom::sync::atomic::fence(SeqCst);
            if p.is_exclusive() {
                return true;
            }
            p.put_many(mm_loom::phys::count::PIN_BIAS);
            false
        });
        let shared = p.try_share();
        let pinned = pinner.join().unwrap();
        assert!(
            !(shared && pinned),
            "shared with a child while a device writes to it"
        );
    });
}
