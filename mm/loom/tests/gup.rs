//! Taking hold without locks, against those who take away: gup/fast.rs and table/tlb.rs in small.

use loom::thread;
use mm_loom::addr::Pfn;
use mm_loom::phys::count::PIN_BIAS;
use mm_loom::phys::{Folio, Hw, flag};
use mm_loom::sync::SeqCount;
use mm_loom::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};
use mm_loom::{Me, Model, check};
use std::sync::Arc;

const F: Pfn = Pfn(1);
const ENTRY: u64 = 0x1007;

/// An anonymous page with the one reference of its mapping entry, and the entry.
fn mapped(me: Me) -> (Folio<Me>, Arc<AtomicU64>) {
    let d = me.desc(F);
    d.refs.store(1, Relaxed);
    d.flags.store(flag::ANON_EXCLUSIVE, Relaxed);
    let entry = Arc::new(AtomicU64::new(0));
    entry.store(ENTRY, Relaxed);
    (Folio::new(me, F), entry)
}

/// The walk's steps on one entry: read, count, read again.
fn fast_pin(p: Folio<Me>, entry: &AtomicU64) -> bool {
    let e = entry.load(Acquire);
    if e == 0 || !p.desc().try_get_many(PIN_BIAS) {
        return false;
    }
    if entry.load(Acquire) != e {
        p.put_many(PIN_BIAS);
        return false;
    }
    true
}

/// What the walk has pinned is not freed before it is unpinned; what it gave up is freed once, by whoever was last.
#[test]
fn a_fast_pin_keeps_what_is_being_unmapped() {
    check(5, || {
        let me = Model::boot();
        let (p, entry) = mapped(me);
        let e = entry.clone();
        let walk = thread::spawn(move || {
            if fast_pin(p, &e) {
                assert_eq!(me.phys().freed(), 0, "pinned and freed");
                assert!(p.maybe_pinned());
                p.unpin(1);
            }
        });
        entry.swap(0, SeqCst);
        p.put();
        walk.join().unwrap();
        assert_eq!(me.phys().freed(), 1);
    });
}

/// FAST-13: who takes the entry out and then looks for pins sees one, or the walk sees the entry gone.
#[test]
fn who_empties_the_entry_first_sees_the_pin_or_is_seen() {
    check(5, || {
        let me = Model::boot();
        let (p, entry) = mapped(me);
        let e = entry.clone();
        let walk = thread::spawn(move || fast_pin(p, &e));
        entry.swap(0, SeqCst);
        let pinned_to_me = p.maybe_pinned();
        let pinned = walk.join().unwrap();
        assert!(
            !pinned || pinned_to_me,
            "moved away under a device that writes to it"
        );
    });
}

/// PIN-3: the frame is freed and born again as another page between the walk's reading and its count: the new owner
/// keeps the one reference that he has.
#[test]
fn a_frame_that_was_born_again_is_given_back() {
    check(5, || {
        let me = Model::boot();
        let (p, entry) = mapped(me);
        let e = entry.clone();
        let walk = thread::spawn(move || fast_pin(p, &e));
        entry.swap(0, SeqCst);
        p.put();
        // The allocator gives out what has no reference.
        let born_again = p.desc().refs.load(SeqCst) == 0 && me.phys().freed() == 1;
        if born_again {
            p.desc().refs.store(1, Relaxed);
        }
        let pinned = walk.join().unwrap();
        assert!(!(born_again && pinned), "somebody else's page is pinned");
        if born_again {
            assert_eq!(p.desc().refs.load(SeqCst), 1, "the new owner's");
        } else if pinned {
            p.unpin(1);
        }
        assert_eq!(me.phys().freed(), 1);
    });
}

/// FAST-14, LOCK-11: fork makes its sequence odd and then asks whether the space has pins; the walk says that it has and
/// then reads the sequence. Without that, fork would share an exclusive page without a look at its pins.
#[test]
fn fork_that_knows_of_no_pins_is_seen_by_the_first_one() {
    check(4, move || {
        let me = Model::boot();
        let (p, entry) = mapped(me);
        let seq = Arc::new(SeqCount::new());
        let has_pinned = Arc::new(AtomicBool::new(false));
        // loom's atomics come to be when they are first used.
        seq.read();
        has_pinned.store(false, Relaxed);
        let (s, h) = (seq.clone(), has_pinned.clone());
        let walk = thread::spawn(move || {
            if !h.load(SeqCst) {
                h.store(true, SeqCst);
            }
            fence(SeqCst);
            let seen = s.read();
            if seen & 1 != 0 || !fast_pin(p, &entry) {
                return false;
            }
            let stands = p.is_exclusive();
            if !stands || s.changed(seen) {
                p.unpin(1);
                return false;
            }
            true
        });
        seq.begin();
        let shared = if has_pinned.load(Relaxed) {
            p.try_share()
        } else {
            p.desc().clear(flag::ANON_EXCLUSIVE);
            true
        };
        seq.end();
        let pinned = walk.join().unwrap();
        assert!(
            !(shared && pinned),
            "shared with a child while a device writes to it"
        );
    });
}

/// FAST-2: a table is freed after it was unhooked and every CPU has taken an interrupt since; a CPU in the walk has them
/// off. `masked` stands for that CPU's interrupt flag, the loop for the acknowledgement.
#[test]
fn a_table_outlives_the_walk_that_found_it() {
    check(4, || {
        let root = Arc::new(AtomicU64::new(0));
        let freed = Arc::new(AtomicBool::new(false));
        let masked = Arc::new(AtomicBool::new(false));
        root.store(ENTRY, Relaxed);
        freed.store(false, Relaxed);
        masked.store(false, Relaxed);
        let (r, f, m) = (root.clone(), freed.clone(), masked.clone());
        let walk = thread::spawn(move || {
            m.store(true, SeqCst);
            if r.load(Acquire) != 0 {
                assert!(!f.load(Relaxed), "the walk reads a freed table");
            }
            m.store(false, Release);
        });
        root.swap(0, SeqCst);
        while masked.load(SeqCst) {
            thread::yield_now();
        }
        freed.store(true, Relaxed);
        walk.join().unwrap();
    });
}
