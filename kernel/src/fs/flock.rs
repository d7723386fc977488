//! Advisory whole-file locks (`flock`), owned by open files.
//!
//! One list for the machine, under a sleeping lock; waiters share one wait queue and look again when any lock goes.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::file::File;
use crate::sync::Mutex;
use crate::task::{Sleep, WaitQueue};
use mm::Errno;

struct Lock {
    inode: (u64, u64),
    /// The open file, by address: its drop removes the lock.
    owner: usize,
    exclusive: bool,
}

static LOCKS: Mutex<Vec<Lock>> = Mutex::new(Vec::new());
static RELEASED: WaitQueue = WaitQueue::new();
static GENERATION: AtomicU64 = AtomicU64::new(0);

fn owner_of(file: &File) -> usize {
    core::ptr::from_ref(file) as usize
}

/// Takes or changes `file`'s lock.
pub fn acquire(file: &File, exclusive: bool, wait: bool) -> Result<(), Errno> {
    crate::memory::headroom().map_err(|_| Errno::ENOLCK)?;
    let attr = file.inode().attr();
    let inode = (attr.dev, attr.ino);
    let owner = owner_of(file);
    loop {
        let seen = GENERATION.load(Ordering::SeqCst);
        {
            let mut locks = LOCKS.lock();
            // Changing a lock's kind is not atomic, as on Linux: the old one goes first.
            let before = locks.len();
            locks.retain(|l| l.owner != owner);
            let dropped = locks.len() != before;
            let conflict = locks
                .iter()
                .any(|l| l.inode == inode && (exclusive || l.exclusive));
            if !conflict {
                locks.try_reserve(1).map_err(|_| Errno::ENOLCK)?;
                locks.push(Lock {
                    inode,
                    owner,
                    exclusive,
                });
                file.flocked.store(true, Ordering::Relaxed);
            }
            drop(locks);
            if dropped {
                changed();
            }
            if !conflict {
                return Ok(());
            }
        }
        if !wait {
            return Err(Errno::EAGAIN);
        }
        let seen = if GENERATION.load(Ordering::SeqCst) == seen {
            seen
        } else {
            continue;
        };
        RELEASED
            .wait_while(Sleep::Interruptible, None, || {
                GENERATION.load(Ordering::SeqCst) == seen
            })
            .map_err(|_| Errno::ERESTARTSYS)?;
    }
}

/// Gives `file`'s lock up, if it has one.
pub fn release(file: &File) {
    let owner = owner_of(file);
    let mut locks = LOCKS.lock();
    let before = locks.len();
    locks.retain(|l| l.owner != owner);
    let dropped = locks.len() != before;
    drop(locks);
    if dropped {
        changed();
    }
}

fn changed() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    RELEASED.wake_all();
}
