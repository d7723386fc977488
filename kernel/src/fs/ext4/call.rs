//! How `rsext4` is called.
//!
//! It needs more stack than a thread has and one caller at a time: [`Fs::with`] takes the mount's lock and calls it on the
//! mount's own stack.
//!
//! It does not ask for memory, it takes it. So a mount has frames set aside: what a call may take, and what `rsext4` may keep from
//! call to call. A call that can be refused first asks whether there are more than those; one that cannot, to write back or to free,
//! goes ahead. What is kept too much, [`Fs::renew`] gives back.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use mm::Errno;
use rsext4::runtime::{Clock, MountServices, MountedServices, NoopObserver};
use rsext4::{BlockIo, Ext4, Ext4Result, Ext4Timestamp, FileName, MountOptions};
use spin::Mutex as Spin;

use super::Fs;
use super::io::{Io, Said, errno};
use super::times::timestamp;
use crate::dev::block::Disk;
use crate::fs::attr::Stamp;
use crate::fs::{blockdev, writeback};
use crate::memory::kspace::LargeStack;
use crate::memory::{self, Aside, heap};
use crate::task::space::can_wait;

/// `rsext4`'s side of a mount.
pub type Volume = Ext4<Io, MountedServices<(), NoopObserver>>;

pub struct Core {
    pub volume: Box<Volume>,
    pub stack: LargeStack,
    /// What the calls may take.
    pub aside: Aside,
}

/// Changes after which the journal is committed: `rsext4` copies what a transaction has so far with every change to it.
const CHANGES: u32 = 32;

/// The time that `rsext4` writes down: one for a call, which may be that of a change in memory.
pub type CallTime = Arc<Spin<Option<Stamp>>>;

struct Now(CallTime);

impl Clock for Now {
    fn now(&self) -> Ext4Result<Ext4Timestamp> {
        let now = *self.0.lock();
        Ok(timestamp(now.unwrap_or_else(Stamp::now)))
    }
}

impl Fs {
    /// There is memory for a call that can be refused. Sleeps; takes what who writes back takes.
    pub(super) fn ask(&self) -> Result<(), Errno> {
        writeback::make_room(&mut can_wait())?;
        let more = self.held.load(Ordering::Relaxed).saturating_sub(self.most);
        // Twice: the call may copy it.
        memory::headroom_for(2 * more)
    }

    /// Calls `rsext4`, if there is memory for it. Sleeps.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut Volume) -> Ext4Result<R>) -> Result<R, Errno> {
        self.ask()?;
        self.must(f)
    }

    /// The same for what makes memory free, or cannot be told that there is none.
    pub(super) fn must<R>(&self, f: impl FnOnce(&mut Volume) -> Ext4Result<R>) -> Result<R, Errno> {
        let mut core = self.core.lock();
        let Core { volume, stack, .. } = core.as_mut().ok_or(Errno::EIO)?;
        let before = heap::frames_held();
        *self.call_time.lock() = Some(Stamp::now());
        let result = stack.run(|| f(volume));
        *self.call_time.lock() = None;
        // What others took meanwhile is among it, until the next `renew`.
        let now = heap::frames_held();
        let held = self.held.load(Ordering::Relaxed) + now;
        let held = held.saturating_sub(before).min(now);
        self.held.store(held, Ordering::Relaxed);
        let stat = volume.statfs();
        let free = stat.free_blocks.saturating_mul(stat.block_size);
        self.free.store(free, Ordering::Relaxed);
        if held > self.most && !self.read_only && self.changes.load(Ordering::Relaxed) == 0 {
            self.renew(&mut core);
        }
        result.map_err(|error| {
            if error.is_corruption() {
                crate::warn!("{}: {}", self.disk.name(), Said(error));
            }
            errno(error)
        })
    }

    /// `rsext4` 0.9.2 keeps what the journal has until that is nearly full, which may be more than there is memory. Unmounted and
    /// mounted again, it has nothing. Nothing is done while there are files without names.
    fn renew(&self, core: &mut Option<Core>) {
        if memory::headroom_for(self.lists).is_err() {
            return;
        }
        let Some(mut old) = core.take() else { return };
        // All that may fail for want of memory comes first.
        let device = Io::new(self.disk, self.lent.clone());
        let unmounted = device.is_ok() && old.stack.run(|| unmount_volume(&mut old.volume)).is_ok();
        let (Ok(device), true) = (device, unmounted) else {
            *core = Some(old);
            return;
        };
        let Core {
            volume,
            mut stack,
            aside,
        } = old;
        drop(volume);
        let before = heap::frames_held();
        match stack.run(|| volume_on(device, self.read_only, self.call_time.clone())) {
            Ok(volume) => {
                let held = heap::frames_held().saturating_sub(before);
                self.held.store(held, Ordering::Relaxed);
                *core = Some(Core {
                    volume,
                    stack,
                    aside,
                });
            }
            Err(error) => crate::warn!("{}: lost: {}", self.disk.name(), Said(error)),
        }
    }

    /// Changes the file system, if there is memory for it. Sleeps.
    pub(super) fn change<R>(
        &self,
        f: impl FnOnce(&mut Volume) -> Ext4Result<R>,
    ) -> Result<R, Errno> {
        self.ask()?;
        self.must_change(f)
    }

    /// The same where that cannot be refused.
    pub(super) fn must_change<R>(
        &self,
        f: impl FnOnce(&mut Volume) -> Ext4Result<R>,
    ) -> Result<R, Errno> {
        self.must(|volume| {
            let before = self.changes.fetch_add(1, Ordering::Relaxed);
            if before == 0 {
                make_log_room(volume);
            }
            let done = f(volume)?;
            if before >= CHANGES {
                self.changes.store(0, Ordering::Relaxed);
                // What is wrong with the journal the next change hears.
                let _ = sync_volume(volume);
            }
            Ok(done)
        })
    }

    /// When the call is: for who runs in one.
    pub(super) fn call_time(&self) -> Stamp {
        self.call_time.lock().unwrap_or_else(Stamp::now)
    }

    /// What was written before is on the disk, the journal's part of it included.
    pub(super) fn commit(&self) -> Result<(), Errno> {
        if self.read_only {
            return Ok(());
        }
        self.changes.store(0, Ordering::Relaxed);
        self.must(sync_volume)
    }
}

/// There is room in the journal for a transaction. `rsext4` 0.9.2 makes some at the beginning of each, but where that begins
/// with a single block it has the block in hand and fails. So one that comes to nothing begins first: nothing is ever
/// called `.` by a link.
fn make_log_room(volume: &mut Volume) {
    if let Ok(dot) = FileName::new(b".") {
        let root = volume.root_inode();
        let _ = volume.hard_link(root, root, dot);
    }
}

pub fn volume_on(device: Io, read_only: bool, time: CallTime) -> Ext4Result<Box<Volume>> {
    let options = MountOptions {
        readonly: read_only,
        replay_journal: !device.capabilities().read_only,
        block_validity: true,
    };
    let services = MountServices::new(Now(time), (), NoopObserver);
    Volume::mount(device, services, options).map(Box::new)
}

fn unmount_volume(volume: &mut Volume) -> Ext4Result<()> {
    make_log_room(volume);
    volume.unmount()
}

fn sync_volume(volume: &mut Volume) -> Ext4Result<()> {
    make_log_room(volume);
    volume.sync()
}

/// What the same call does next is in one transaction, as far as that holds it: a power cut leaves all of it, or nothing.
pub fn begin_transaction(volume: &mut Volume) -> Ext4Result<()> {
    sync_volume(volume)?;
    make_log_room(volume);
    Ok(())
}

pub fn unmount(disk: &'static dyn Disk, mut volume: Box<Volume>, mut stack: LargeStack) {
    let unmounted = stack.run(|| unmount_volume(&mut volume));
    if let Err(error) = unmounted {
        crate::warn!("{}: not unmounted cleanly: {}", disk.name(), Said(error));
    }
    let _ = blockdev::hand_over(disk);
}
