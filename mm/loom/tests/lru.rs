//! Aging lists: a folio is on the list that its flags say, of the CPU that they say, whoever crosses whom.

use loom::thread;
use mm_loom::addr::Pfn;
use mm_loom::phys::lru::{self, List};
use mm_loom::phys::{Folio, Hw};
use mm_loom::sync::atomic::Ordering::Relaxed;
use mm_loom::{Me, Model, check};

const F: Pfn = Pfn(1);

/// A page-cache page on no list.
fn page(me: Me) -> Folio<Me> {
    me.desc(F).refs.store(1, Relaxed);
    Folio::new(me, F)
}

fn on_list(me: Me) -> [u64; lru::LISTS] {
    me.phys().aging(me)
}

const NONE: [u64; lru::LISTS] = [0; lru::LISTS];
fn one(list: List) -> [u64; lru::LISTS] {
    let mut n = NONE;
    n[list as usize] = 1;
    n
}

/// POP-3: another CPU lists the page at the moment that an entry locks it.
#[test]
fn a_page_that_is_locked_as_it_is_listed_is_unevictable() {
    check(3, || {
        let me = Model::boot();
        let p = page(me);
        let lister = thread::spawn(move || lru::add(me.thread(1), F));
        lru::Mlocker::new(me).lock(F);
        lister.join().unwrap();
        assert_eq!(on_list(me), one(List::Unevictable));
        lru::Mlocker::new(me).unlock(F);
        assert_eq!(on_list(me), one(List::InactiveFile));
        p.put();
        assert_eq!((on_list(me), me.phys().freed()), (NONE, 1));
    });
}

/// Two entries that lock and unlock it agree in the end with what is left.
#[test]
fn of_two_that_cross_the_later_sees_both() {
    check(3, || {
        let me = Model::boot();
        let p = page(me);
        lru::add(me.thread(1), F);
        lru::Mlocker::new(me).lock(F);
        let other = thread::spawn(move || lru::Mlocker::new(me.thread(1)).lock(F));
        lru::Mlocker::new(me).unlock(F);
        other.join().unwrap();
        assert_eq!(on_list(me), one(List::Unevictable));
        lru::Mlocker::new(me).unlock(F);
        p.put();
        assert_eq!((on_list(me), me.phys().freed()), (NONE, 1));
    });
}

/// Taken off while another CPU takes it off and lists it on its own.
#[test]
fn a_page_that_moves_is_taken_off_where_it_is() {
    check(3, || {
        let me = Model::boot();
        let p = page(me);
        lru::add(me, F);
        let other = p.get();
        let mover = thread::spawn(move || {
            let there = me.thread(1);
            if lru::del(there, F) {
                lru::add(there, F);
            }
            drop(other);
        });
        let mine = lru::del(me, F);
        mover.join().unwrap();
        let listed = on_list(me).iter().sum::<u64>();
        assert!(
            !mine && listed == 1 || mine && listed <= 1,
            "{mine} {listed}"
        );
        p.put();
        assert_eq!((on_list(me), me.phys().freed()), (NONE, 1));
    });
}
