//! Record locks: advisory locks on ranges of a file (`fcntl`).
//!
//! A lock belongs to a descriptor table (F_SETLK: gone when any descriptor of the file in that table is closed) or
//! to an open file (F_OFD_SETLK: gone with its last close). One list for the machine under a sleeping lock; whoever
//! waits looks again whenever any lock goes. `COUNT` keeps closes cheap while there is none.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::file::File;
use crate::sync::Mutex;
use crate::task::{Sleep, WaitQueue};
use mm::Errno;

/// Who holds a lock: a table or an open file, by address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub usize);

/// A lock, or a request for one; `end` is the last byte.
#[derive(Clone, Copy)]
pub struct Record {
    pub start: u64,
    pub end: u64,
    pub exclusive: bool,
    pub owner: Owner,
    /// What F_GETLK reports: -1 for an open file's lock.
    pub pid: i32,
}

struct Held {
    inode: (u64, u64),
    record: Record,
}

static LOCKS: Mutex<Vec<Held>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);
static RELEASED: WaitQueue = WaitQueue::new();
static GENERATION: AtomicU64 = AtomicU64::new(0);

fn identity(file: &File) -> (u64, u64) {
    let a = file.inode().attr();
    (a.dev, a.ino)
}

fn conflict<'a>(locks: &'a [Held], inode: (u64, u64), want: &Record) -> Option<&'a Record> {
    locks
        .iter()
        .filter(|h| h.inode == inode)
        .map(|h| &h.record)
        .find(|r| {
            r.owner != want.owner
                && r.start <= want.end
                && want.start <= r.end
                && (r.exclusive || want.exclusive)
        })
}

/// The first lock that stands in the way of `want`.
pub fn test(file: &File, want: &Record) -> Option<Record> {
    conflict(&LOCKS.lock(), identity(file), want).copied()
}

/// Takes `want`, in place of whatever the owner had on the range.
pub fn acquire(file: &File, want: Record, wait: bool) -> Result<(), Errno> {
    crate::memory::headroom().map_err(|_| Errno::ENOLCK)?;
    let inode = identity(file);
    loop {
        let seen = GENERATION.load(Ordering::SeqCst);
        let mut locks = LOCKS.lock();
        if conflict(&locks, inode, &want).is_none() {
            // Cutting the old lock may leave two parts, and the new one comes on top.
            locks.try_reserve(2).map_err(|_| Errno::ENOLCK)?;
            cut(&mut locks, inode, &want);
            locks.push(Held {
                inode,
                record: want,
            });
            return settle(locks);
        }
        drop(locks);
        if !wait {
            return Err(Errno::EAGAIN);
        }
        RELEASED
            .wait_while(Sleep::Interruptible, None, || {
                GENERATION.load(Ordering::SeqCst) == seen
            })
            .map_err(|_| Errno::ERESTARTSYS)?;
    }
}

/// Unlocks a range.
pub fn release(file: &File, range: Record) -> Result<(), Errno> {
    let mut locks = LOCKS.lock();
    locks.try_reserve(1).map_err(|_| Errno::ENOLCK)?;
    cut(&mut locks, identity(file), &range);
    settle(locks)
}

/// Takes `range` out of its owner's locks; room for one more part was reserved.
fn cut(locks: &mut Vec<Held>, inode: (u64, u64), range: &Record) {
    let mut i = 0;
    while i < locks.len() {
        let r = locks[i].record;
        let hit = locks[i].inode == inode
            && r.owner == range.owner
            && r.start <= range.end
            && range.start <= r.end;
        if !hit {
            i += 1;
            continue;
        }
        match (r.start < range.start, r.end > range.end) {
            (true, true) => {
                locks[i].record.end = range.start - 1;
                locks.push(Held {
                    inode,
                    record: Record {
                        start: range.end + 1,
                        ..r
                    },
                });
                return;
            }
            (true, false) => locks[i].record.end = range.start - 1,
            (false, true) => locks[i].record.start = range.end + 1,
            (false, false) => {
                locks.swap_remove(i);
                continue;
            }
        }
        i += 1;
    }
}

fn settle(locks: crate::sync::MutexGuard<'_, Vec<Held>>) -> Result<(), Errno> {
    COUNT.store(locks.len(), Ordering::SeqCst);
    drop(locks);
    GENERATION.fetch_add(1, Ordering::SeqCst);
    RELEASED.wake_all();
    Ok(())
}

/// `owner` gives up its locks on `file`, or (without one) all.
#[inline]
pub fn forget(owner: Owner, file: Option<&File>) {
    if COUNT.load(Ordering::SeqCst) != 0 {
        forget_slowly(owner, file);
    }
}

#[cold]
fn forget_slowly(owner: Owner, file: Option<&File>) {
    let inode = file.map(identity);
    let mut locks = LOCKS.lock();
    let before = locks.len();
    locks.retain(|h| h.record.owner != owner || inode.is_some_and(|i| i != h.inode));
    if locks.len() != before {
        // A release cannot fail.
        let _ = settle(locks);
    }
}
