//! What the last use of something leaves to do: it sleeps, and last uses end anywhere. So the thread `ext4` does it, and
//! [`settle`] waits for it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use mm::Errno;
use rsext4::file::{FileExtentState, FileExtentTarget};
use rsext4::{DirectoryEntryType, InodeNumber};
use spin::{Mutex as Spin, Once};

use super::Fs;
use super::call::{Core, unmount};
use super::file::RUNS;
use super::mounted::Claim;
use super::times::Times;
use crate::dev::block::SECTOR;
use crate::task::{Sleep, WaitQueue};

/// Blocks of a file that may be in one list, of some 50 bytes each.
const LISTED: u64 = 8192;

pub enum Work {
    /// Free an inode that has no name.
    Free(Arc<Fs>, InodeNumber),
    /// Tell its times.
    Time(Arc<Fs>, InodeNumber, Times),
    Unmount(Claim, Core),
}

static WORK: Spin<Vec<Work>> = Spin::new(Vec::new());
/// Handed over and not done yet.
static OPEN: AtomicUsize = AtomicUsize::new(0);
static CALL: WaitQueue = WaitQueue::new();
static IDLE: WaitQueue = WaitQueue::new();

pub fn later(work: Work) {
    OPEN.fetch_add(1, Ordering::SeqCst);
    WORK.lock().push(work);
    CALL.wake_one();
}

impl Fs {
    /// The last user of an inode that has no name, or of its page cache, has gone.
    pub(super) fn free_later(self: &Arc<Self>, number: InodeNumber) {
        if !self.read_only {
            later(Work::Free(self.clone(), number));
        }
    }

    /// The disk has yet to hear of an inode's times.
    pub(super) fn times_later(self: &Arc<Self>, number: InodeNumber, times: Times) {
        if !self.read_only {
            later(Work::Time(self.clone(), number, times));
        }
    }

    fn free(&self, number: InodeNumber) {
        let freed = self.must_change(|volume| {
            let info = volume.inode(number)?;
            if info.file_type() == DirectoryEntryType::RegularFile {
                // `rsext4` 0.9.2 forgets blocks that nobody has written, unless the file is cut.
                let (mut kept, mut seen, mut at) = (false, 0, 0);
                loop {
                    let left = u64::MAX - at;
                    let some =
                        volume.inode_extents(number, at, left, FileExtentTarget::Data, RUNS)?;
                    for extent in &some.extents {
                        kept |= extent.state == FileExtentState::Unwritten;
                        seen += extent.length / SECTOR;
                        at = extent.logical_start.saturating_add(extent.length);
                    }
                    if some.complete || some.extents.is_empty() {
                        break;
                    }
                }
                if info.blocks > seen {
                    volume.truncate_inode(number, info.size + self.block)?;
                    volume.truncate_inode(number, info.size)?;
                }
                // And of what it frees it makes a list of all blocks, of what it cuts only one of extents.
                if kept || seen > LISTED * self.block / SECTOR {
                    volume.truncate_inode(number, 0)?;
                }
            }
            volume.reap_unlinked_inode(number)
        });
        if let Err(errno) = freed {
            crate::warn!(
                "{}: inode {} is not freed: {errno:?}",
                self.disk.name(),
                number.raw()
            );
        }
    }
}

/// Before something more is left to do: `rsext4` walks the disk's list of files without names, which is to be short.
pub fn catch_up() {
    if OPEN.load(Ordering::Relaxed) >= 8 {
        settle();
    }
}

/// Waits until nothing is left to do: what was unmounted before is.
pub fn settle() {
    let _ = IDLE.wait_while(Sleep::Uninterruptible, None, || {
        OPEN.load(Ordering::SeqCst) != 0
    });
}

pub fn start() -> Result<(), Errno> {
    static STARTED: Once<Result<(), Errno>> = Once::new();
    *STARTED.call_once(|| crate::task::spawn_kernel_thread("ext4", worker, 0))
}

fn worker(_: usize) {
    loop {
        let _ = CALL.wait_while(Sleep::Uninterruptible, None, || WORK.lock().is_empty());
        // The last first: the disk has a list of files without names, whose first is the last that lost its own.
        let Some(work) = WORK.lock().pop() else {
            continue;
        };
        match work {
            Work::Free(fs, number) => fs.free(number),
            Work::Time(fs, number, times) => drop(fs.write_time(number, &times)),
            Work::Unmount(claim, core) => unmount(claim.0, core.volume, core.stack),
        }
        if OPEN.fetch_sub(1, Ordering::SeqCst) == 1 {
            IDLE.wake_all();
        }
    }
}
