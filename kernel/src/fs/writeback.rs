//! Files that are read in and written back: who writes dirty pages, and when; who lets go of clean ones.
//!
//! A file with dirty pages is on a list, which keeps it until they are written: by the thread `writeback` some seconds
//! later, by whoever asks (`sync`), or by whoever makes pages dirty while there are too many (FAULT-6). One pass over the list at a
//! time: who comes second waits until what the first found in the list is written. Within a pass no lock is held but
//! that and those of the file's own `write`.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use mm::object::cache::paged_pages;
use mm::phys::dirty_pages;
use mm::wait::CanWait;
use spin::{Mutex as Spin, Once};

use super::inode::Object;
use crate::arch::X86;
use crate::arch::time::now_ns;
use crate::memory;
use crate::sync::Mutex;
use crate::task::space::can_wait;
use crate::task::{Sleep, WaitQueue};
use mm::Errno;

/// How long pages stay dirty.
const PERIOD_NS: u64 = 5_000_000_000;
/// Cached pages that are too few to be worth taking.
const FRESH: u64 = 256;

static KNOWN: Spin<Vec<Weak<Object>>> = Spin::new(Vec::new());
/// Of those, each at most once, and with room for all.
static DIRTY: Spin<VecDeque<Arc<Object>>> = Spin::new(VecDeque::new());
static PASS: Mutex<()> = Mutex::new(());
static CALL: WaitQueue = WaitQueue::new();

/// Starts the thread; once.
pub fn start() {
    static STARTED: Once<()> = Once::new();
    STARTED.call_once(|| {
        crate::task::spawn_kernel_thread("writeback", thread, 0).expect("a kernel thread")
    });
}

/// The object's clean pages may be let go of from now on, and it may have dirty ones. `ENOMEM`.
pub fn register(object: &Arc<Object>) -> Result<(), Errno> {
    let mut known = KNOWN.lock();
    if known.len() == known.capacity() {
        known.retain(|object| object.strong_count() > 0);
    }
    known.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    let mut dirty = DIRTY.lock();
    let more = (known.len() + 1).saturating_sub(dirty.len());
    dirty.try_reserve(more).map_err(|_| Errno::ENOMEM)?;
    known.push(Arc::downgrade(object));
    Ok(())
}

/// The object, which is registered, has dirty pages ([`mm::object::Source::dirtied`]).
pub fn dirtied(object: Arc<Object>) {
    DIRTY.lock().push_back(object);
}

/// Before pages become dirty, new ones perhaps. Sleeps while there are too many; then the caller writes. `ENOMEM`: what is free is
/// needed elsewhere.
pub fn throttle(wait: &mut CanWait<X86>) -> Result<(), Errno> {
    let most = memory::totals().0 / 5;
    let dirty = dirty_pages();
    if dirty > most {
        let _pass = PASS.lock();
        if dirty_pages() > most {
            write_all(wait);
        }
    } else if dirty > most / 2 {
        CALL.wake_one();
    }
    make_room(wait)
}

/// Writes everything that is dirty now; errors are for those who ask for one file.
pub fn sync(wait: &mut CanWait<X86>) {
    let _pass = PASS.lock();
    write_all(wait);
}

/// The caller holds `PASS`.
fn write_all(wait: &mut CanWait<X86>) {
    let dirty = DIRTY.lock().len();
    for _ in 0..dirty {
        let Some(object) = DIRTY.lock().pop_front() else {
            break;
        };
        object.unlist();
        let _ = object.write_back(wait, 0, u64::MAX);
    }
}

fn thread(_: usize) {
    loop {
        let soon = now_ns() + PERIOD_NS;
        let few = || dirty_pages() <= memory::totals().0 / 10;
        let _ = CALL.wait_while(Sleep::Uninterruptible, Some(soon), few);
        sync(&mut can_wait());
        // Names, too.
        super::ext4::commit();
        memory::heap::give_back();
    }
}

/// Before pages are read in, or made. `ENOMEM`: what is free is needed elsewhere.
pub fn make_room(wait: &mut CanWait<X86>) -> Result<(), Errno> {
    // Before memory is short for those who cannot read theirs again; but what others have just read stays until they have
    // seen it.
    let (total, free) = memory::totals();
    let short = free < total / 8 && paged_pages() > FRESH;
    if short && shrink(wait, false) == 0 {
        shrink(wait, true);
    }
    memory::headroom()
}

/// Lets go of cached pages that nobody uses or, with `mapped`, that nobody has pinned; what is dirty is written first. Returns how
/// many pages. Sleeps.
pub fn shrink(wait: &mut CanWait<X86>, mapped: bool) -> u64 {
    let gone = let_go(wait, mapped);
    if gone > 0 || dirty_pages() == 0 {
        return gone;
    }
    sync(wait);
    let_go(wait, mapped)
}

fn let_go(wait: &mut CanWait<X86>, mapped: bool) -> u64 {
    let mut pages = 0;
    for n in 0.. {
        let object = match KNOWN.lock().get(n) {
            Some(weak) => weak.upgrade(),
            None => break,
        };
        pages += object.map_or(0, |object| object.shrink(wait, mapped));
    }
    pages
}
