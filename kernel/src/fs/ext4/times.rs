//! Times of inodes.
//!
//! In memory they are exact. The disk hears of them later, together, as they are then: `late` says of which.

use core::sync::atomic::Ordering;
use linux_raw_sys::general as sys;
use mm::Errno;
use rsext4::{Ext4Timestamp, FilePermissions, InodeMetadataUpdate, InodeNumber};

use super::Fs;
use super::node::Node;
use crate::fs::attr::{AttrChange, Stamp};
use crate::fs::file::File;

/// Bits of `late`.
const CHANGED: u8 = 1;
const MODIFIED: u8 = 2;
const ACCESSED: u8 = 4;

/// What the disk has yet to hear.
pub struct Times {
    pub atime: Option<Stamp>,
    pub mtime: Option<Stamp>,
    /// It changes with any; those that have not changed keep the nanoseconds that we have not read.
    pub ctime: Stamp,
}

pub fn stamp(sec: u32) -> Stamp {
    Stamp {
        sec: i64::from(sec),
        nsec: 0,
    }
}

pub fn timestamp(stamp: Stamp) -> Ext4Timestamp {
    Ext4Timestamp::new(stamp.sec, stamp.nsec)
}

impl Node {
    /// The content has changed: the disk hears of it with the next sync.
    pub fn modified(&self) {
        self.attrs.touch();
        self.late.fetch_or(CHANGED | MODIFIED, Ordering::AcqRel);
    }

    /// Only the inode has.
    pub(super) fn altered(&self) {
        self.changed(&AttrChange::default());
    }

    /// The same, as somebody asked for.
    pub(super) fn changed(&self, change: &AttrChange) {
        self.attrs.set(change);
        let times = [(change.atime, ACCESSED), (change.mtime, MODIFIED)];
        let late = times.iter().filter(|(time, _)| time.is_some());
        let late = late.fold(CHANGED, |bits, (_, bit)| bits | bit);
        self.late.fetch_or(late, Ordering::AcqRel);
    }

    /// The content was read by way of `file`.
    pub fn accessed(&self, file: &File) {
        let mount = file.path().mnt.flags.load(Ordering::Relaxed);
        let quiet = file.flags() & sys::O_NOATIME != 0
            || mount & (sys::MS_NOATIME | sys::MS_RDONLY) != 0
            || self.fs.read_only;
        if !quiet && self.attrs.accessed_again() {
            self.late.fetch_or(ACCESSED, Ordering::AcqRel);
        }
    }

    /// Whether the disk has yet to hear of that.
    pub fn is_late(&self) -> bool {
        self.late.load(Ordering::Acquire) != 0
    }

    /// They are told now.
    pub(super) fn take_late(&self) -> Option<Times> {
        let late = self.late.swap(0, Ordering::AcqRel);
        let now = self.attrs.get(0, 0);
        (late != 0).then(|| Times {
            atime: (late & ACCESSED != 0).then_some(now.atime),
            mtime: (late & MODIFIED != 0).then_some(now.mtime),
            ctime: now.ctime,
        })
    }

    /// The disk has the times of the content that it has.
    pub fn write_times(&self) -> Result<(), Errno> {
        let late = self.take_late();
        late.map_or(Ok(()), |times| self.fs.write_time(self.number, &times))
    }
}

impl Fs {
    pub(super) fn write_time(&self, number: InodeNumber, times: &Times) -> Result<(), Errno> {
        self.must_change(|volume| {
            // The change time is that of the call; nothing but that changes with the same permissions again.
            *self.call_time.lock() = Some(times.ctime);
            let mode = volume.inode(number)?.mode;
            let update = InodeMetadataUpdate {
                permissions: Some(FilePermissions::new(mode & 0o7777)?),
                atime: times.atime.map(timestamp),
                mtime: times.mtime.map(timestamp),
                ..InodeMetadataUpdate::default()
            };
            volume.update_inode_metadata(number, update).map(drop)
        })
    }
}
