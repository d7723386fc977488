//! Which disks are mounted.
//!
//! A disk has one entry from before it is mounted until it is unmounted, and what is mounted twice is one file system. Who
//! mounts a disk, or takes it away, waits for who does that already.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use mm::Errno;
use spin::Mutex as Spin;

use super::Fs;
use crate::dev::block::Disk;
use crate::task::{Sleep, WaitQueue};

/// A disk in use. It has no `Fs` yet while it is being mounted, and none any more while it is unmounted.
struct InUse {
    disk: &'static dyn Disk,
    fs: Weak<Fs>,
}

impl InUse {
    fn is(&self, disk: &'static dyn Disk) -> bool {
        core::ptr::addr_eq(self.disk, disk)
    }
}

/// One entry for a disk.
static MOUNTED: Spin<Vec<InUse>> = Spin::new(Vec::new());
/// A disk is mounted, or nobody's any more.
static DECIDED: WaitQueue = WaitQueue::new();

/// A disk's entry in the table, which goes with it.
pub struct Claim(pub &'static dyn Disk);

impl Drop for Claim {
    fn drop(&mut self) {
        MOUNTED.lock().retain(|entry| !entry.is(self.0));
        DECIDED.wake_all();
    }
}

/// A file system is mounted from its disk.
pub fn enter(fs: &Arc<Fs>) {
    for entry in MOUNTED.lock().iter_mut().filter(|m| m.is(fs.disk)) {
        entry.fs = Arc::downgrade(fs);
    }
    DECIDED.wake_all();
}

/// The file system on a disk, if it is mounted. Waits for who is mounting it, or unmounting.
pub fn on(disk: &'static dyn Disk) -> Option<Arc<Fs>> {
    loop {
        let mounted = MOUNTED.lock();
        let fs = mounted.iter().find(|entry| entry.is(disk))?.fs.upgrade();
        drop(mounted);
        if fs.is_some() {
            return fs;
        }
        let _ = DECIDED.wait_while(Sleep::Uninterruptible, None, || {
            let between = |entry: &InUse| entry.is(disk) && entry.fs.strong_count() == 0;
            MOUNTED.lock().iter().any(between)
        });
    }
}

/// The same; else the disk.
pub fn claim(disk: &'static dyn Disk) -> Result<Result<Arc<Fs>, Claim>, Errno> {
    loop {
        if let Some(fs) = on(disk) {
            return Ok(Ok(fs));
        }
        let mut mounted = MOUNTED.lock();
        if !mounted.iter().any(|entry| entry.is(disk)) {
            mounted.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            let fs = Weak::new();
            mounted.push(InUse { disk, fs });
            return Ok(Err(Claim(disk)));
        }
    }
}

pub fn all() -> Vec<Arc<Fs>> {
    let mounted = MOUNTED.lock();
    mounted.iter().filter_map(|m| m.fs.upgrade()).collect()
}
