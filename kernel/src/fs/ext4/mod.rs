//! ext4: files on a disk that Linux reads, too.
//!
//! Names, inodes, extents and the journal are `rsext4`'s (decision 0011); file data is in the page cache and goes straight
//! between frames and the blocks that the extents name. Rooms: `io` the disk and the frames as `rsext4` sees them · `file`
//! where a file's bytes are · `node` inodes and directories ·
//! `data` open files.
//!
//! `rsext4` needs more stack than a thread has and one caller at a time: `Fs::with` takes the mount's lock and calls it on
//! the mount's own stack. Lock order, outermost first: dentry `busy` → a node's `io` → page cache (resize, a folio) → a
//! file's `blocks` → the mount → its table of nodes. Nobody touches user memory below `blocks`. Who waits for transfers in flight
//! has nothing of this but `busy` and `io`, and who ends them takes neither.
//!
//! It does not ask for memory, it takes it. So a mount has frames set aside: what a call may take, and what `rsext4` may keep from
//! call to call. A call that can be refused first asks whether there are more than those; one that cannot, to write back or to free,
//! goes ahead. What is kept too much, [`Fs::renew`] gives back.
//!
//! One `Node` for an inode number, and one page cache: the table knows both weakly, since dirty pages outlive the last use of
//! a node. The nodes that were used last are kept, and with them their pages, while the file system is mounted.
//! What the last use of something leaves to do — to free a file without a name, to unmount — sleeps, and last uses end
//! anywhere: the thread `ext4` does it, and [`settle`] waits for it.

mod data;
mod file;
mod io;
mod node;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicIsize, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use mm::race::{Point, point};
use mm::{Errno, PAGE_SIZE};
use rsext4::file::{FileExtentState, FileExtentTarget};
use rsext4::runtime::{Clock, MountServices, MountedServices, NoopObserver};
use rsext4::{
    BlockIo, DirectoryEntryType, Ext4, Ext4Result, Ext4Timestamp, FileName, FilePermissions,
    InodeMetadataUpdate, InodeNumber, MountOptions,
};
use spin::{Mutex as Spin, Once};

use super::attr::{Stamp, makedev};
use super::blockdev;
use super::content::MAX_SIZE;
use super::dentry::Dentry;
use super::inode::FsStat;
use super::writeback;
use crate::arch::X86;
use crate::dev::block::{self, Disk, Known, SECTOR};
use crate::dev::flight::Landing;
use crate::memory::kspace::LargeStack;
use crate::memory::{self, Aside, heap};
use crate::sync::Mutex;
use crate::task::space::can_wait;
use crate::task::{Sleep, WaitQueue};
use file::RUNS;
use io::{Io, LENT, Lent, Said, errno};
use node::{Entry, Node, Times};

/// `rsext4`'s side of a mount.
pub type Volume = Ext4<Io, MountedServices<(), NoopObserver>>;

/// Frames that `rsext4` 0.9.2 fills from call to call, beside the journal: 128 bitmaps, 32 blocks, 128 inodes, one block in hand.
const CACHES: u64 = 256;
/// Those that one call may need for itself: 62 blocks that it changes, each as a cache and the journal have it; bitmaps that
/// it goes through; the maps of the caches twice, to go back to; buffers of 64 KiB.
const ONE_CALL: u64 = 320;
/// And for each group of blocks: its bitmap and its descriptor's block, as above, where one call frees what lies everywhere.
const GROUP: u64 = 4;
/// Bytes of a disk for which a mount needs one byte in a row: the list of the journal's blocks.
const LISTED: u64 = 8192;
/// Nodes that are kept though nobody uses them.
const KEPT: usize = 256;
const MAGIC: u64 = 0xef53;

/// A mounted disk.
pub struct Fs {
    disk: &'static dyn Disk,
    /// Until it is unmounted.
    claim: Option<Claim>,
    landing: &'static Landing,
    dev: u64,
    /// Bytes of a block.
    block: u64,
    /// No file is longer.
    file_end: u64,
    /// Mounted so, or because that is all that we can do with it.
    read_only: bool,
    core: Mutex<Option<Core>>,
    lent: Arc<Lent>,
    call_time: CallTime,
    /// Frames that `rsext4` has, about, and should have at most.
    held: AtomicU64,
    most: u64,
    /// Free bytes when the file system was called last.
    free: AtomicU64,
    /// Changes since the journal was committed.
    changes: AtomicU32,
    nodes: Spin<BTreeMap<u32, Entry>>,
    /// The last ones used, the latest last.
    kept: Spin<VecDeque<Arc<Node>>>,
    mounts: AtomicIsize,
    /// Held by who closes it; the outermost lock.
    closing: Mutex<()>,
}

struct Core {
    volume: Box<Volume>,
    stack: LargeStack,
    /// What the calls may take.
    aside: Aside,
}

/// Changes after which the journal is committed: `rsext4` copies what a transaction has so far with every change to it.
const CHANGES: u32 = 32;

/// The time that `rsext4` writes down: one for a call, which may be that of a change in memory.
type CallTime = Arc<Spin<Option<Stamp>>>;

struct Now(CallTime);

impl Clock for Now {
    fn now(&self) -> Ext4Result<Ext4Timestamp> {
        let now = *self.0.lock();
        Ok(node::timestamp(now.unwrap_or_else(Stamp::now)))
    }
}

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

/// One entry for a disk: what is mounted twice is one file system.
static MOUNTED: Spin<Vec<InUse>> = Spin::new(Vec::new());
/// A disk is mounted, or nobody's any more.
static DECIDED: WaitQueue = WaitQueue::new();

/// A disk's entry in the table, which goes with it.
struct Claim(&'static dyn Disk);

impl Drop for Claim {
    fn drop(&mut self) {
        MOUNTED.lock().retain(|entry| !entry.is(self.0));
        DECIDED.wake_all();
    }
}

/// The file system on a disk, if it is mounted; else the disk. Waits for who is mounting it, or unmounting.
fn claim(disk: &'static dyn Disk) -> Result<Result<Arc<Fs>, Claim>, Errno> {
    loop {
        let mut mounted = MOUNTED.lock();
        match mounted.iter().find(|entry| entry.is(disk)) {
            Some(entry) => {
                if let Some(fs) = entry.fs.upgrade() {
                    return Ok(Ok(fs));
                }
            }
            None => {
                mounted.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                let fs = Weak::new();
                mounted.push(InUse { disk, fs });
                return Ok(Err(Claim(disk)));
            }
        }
        drop(mounted);
        decided(disk);
    }
}

/// Waits for who is mounting a disk, or unmounting.
fn decided(disk: &'static dyn Disk) {
    let _ = DECIDED.wait_while(Sleep::Uninterruptible, None, || {
        let between = |entry: &InUse| entry.is(disk) && entry.fs.strong_count() == 0;
        MOUNTED.lock().iter().any(between)
    });
}

fn all_mounted() -> Vec<Arc<Fs>> {
    let mounted = MOUNTED.lock();
    mounted.iter().filter_map(|m| m.fs.upgrade()).collect()
}

/// The root of the file system on a disk. `EINVAL`: none that we know; `EUCLEAN`: a broken one; `EIO`, `ENOMEM`; `EBUSY`:
/// mounted already, the other way; `EACCES`: a read-only disk; `ENXIO`: it is going.
pub fn mount(known: Known, read_only: bool) -> Result<Arc<Dentry>, Errno> {
    if known.disk.read_only() && !read_only {
        return Err(Errno::EACCES);
    }
    // What was mounted before may be on its way out.
    settle();
    let fs = match claim(known.disk)? {
        Ok(fs) if fs.read_only == read_only => fs,
        Ok(_) => return Err(Errno::EBUSY),
        Err(claim) => {
            // With the claim: who has the disk go waits for it (`leave`), or has said so already.
            block::known(known.major, known.minor).ok_or(Errno::ENXIO)?;
            let fs = Fs::new(claim, known, read_only)?;
            for entry in MOUNTED.lock().iter_mut().filter(|m| m.is(known.disk)) {
                entry.fs = Arc::downgrade(&fs);
            }
            DECIDED.wake_all();
            fs
        }
    };
    let root = fs.with(|volume| fs.find(volume, volume.root_inode()))?;
    if !root.is_dir() {
        return Err(Errno::EUCLEAN);
    }
    Ok(Dentry::root(root))
}

impl Fs {
    fn new(claim: Claim, known: Known, read_only: bool) -> Result<Arc<Fs>, Errno> {
        start_worker()?;
        blockdev::hand_over(known.disk)?;
        // The journal's part of what is held; a copy of it, and one more while a change is part of another.
        let journal = (memory::totals().0 / 128).clamp(128, 2048);
        let aside = CACHES + 3 * journal + ONE_CALL;
        memory::headroom_for(aside)?;
        let list = known.disk.sectors() * SECTOR / LISTED;
        let mut row = Vec::<u8>::new();
        let there = row.try_reserve_exact(list.clamp(LENT as u64, 2 << 20) as usize);
        there.map_err(|_| Errno::ENOMEM)?;
        drop(core::hint::black_box(row));
        let lent = Lent::new()?;
        let call_time = CallTime::default();
        let device = Io::new(known.disk, lent.clone())?;
        let mut stack = LargeStack::new().ok_or(Errno::ENOMEM)?;
        let volume = stack
            .run(|| volume_on(device, read_only, call_time.clone()))
            .map_err(|error| {
                crate::warn!("{}: not mounted: {}", known.disk.name(), Said(error));
                errno(error)
            })?;
        let stat = volume.statfs();
        let aside = Aside::new(aside + GROUP * u64::from(stat.block_groups));
        let aside = match aside {
            Ok(aside) => aside,
            Err(errno) => {
                unmount(known.disk, volume, stack);
                return Err(errno);
            }
        };
        let block = stat.block_size;
        Ok(Arc::new(Fs {
            block,
            file_end: (block << 32).saturating_sub(block).min(MAX_SIZE),
            disk: known.disk,
            claim: Some(claim),
            landing: known.landing,
            dev: makedev(known.major, known.minor),
            read_only,
            core: Mutex::new(Some(Core {
                volume,
                stack,
                aside,
            })),
            lent,
            call_time,
            held: AtomicU64::new(0),
            most: CACHES + journal,
            free: AtomicU64::new(0),
            changes: AtomicU32::new(0),
            nodes: Spin::new(BTreeMap::new()),
            kept: Spin::new(VecDeque::new()),
            mounts: AtomicIsize::new(0),
            closing: Mutex::new(()),
        }))
    }

    /// There is memory for a call that can be refused. Sleeps; takes what who writes back takes.
    fn ask(&self) -> Result<(), Errno> {
        writeback::make_room(&mut can_wait())?;
        let more = self.held.load(Ordering::Relaxed).saturating_sub(self.most);
        // Twice: the call may copy it.
        memory::headroom_for(2 * more)
    }

    /// Calls `rsext4`, if there is memory for it. Sleeps.
    fn with<R>(&self, f: impl FnOnce(&mut Volume) -> Ext4Result<R>) -> Result<R, Errno> {
        self.ask()?;
        self.must(f)
    }

    /// The same for what makes memory free, or cannot be told that there is none.
    fn must<R>(&self, f: impl FnOnce(&mut Volume) -> Ext4Result<R>) -> Result<R, Errno> {
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
    fn change<R>(&self, f: impl FnOnce(&mut Volume) -> Ext4Result<R>) -> Result<R, Errno> {
        self.ask()?;
        self.must_change(f)
    }

    /// The same where that cannot be refused.
    fn must_change<R>(&self, f: impl FnOnce(&mut Volume) -> Ext4Result<R>) -> Result<R, Errno> {
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

    /// The node of an inode that a name leads to; `volume` shows that the mount's lock is held, so that nobody changes the
    /// inode between the look at the disk and that at the table.
    fn find(self: &Arc<Self>, volume: &mut Volume, number: InodeNumber) -> Ext4Result<Arc<Node>> {
        let mut info = volume.inode(number)?;
        let known = self.nodes.lock().get(&number.raw()).and_then(Entry::node);
        let node = match known {
            Some(node) => node,
            None => {
                let mut target = Vec::new();
                if info.file_type() == DirectoryEntryType::Symlink {
                    // A path, at most; and a page, on the disks that Linux writes.
                    target.resize(info.size.min(4096) as usize, 0);
                    let n = volume.read_inode(number, 0, &mut target)?;
                    target.truncate(n);
                }
                if !target.is_empty() {
                    // To read it was an access.
                    info = volume.inode(number)?;
                }
                let node = Node::new(self, &info, target)?;
                let mut nodes = self.nodes.lock();
                let entry = nodes.entry(number.raw()).or_default();
                node.enter(entry);
                drop(nodes);
                node
            }
        };
        self.keep(&node);
        Ok(node)
    }

    /// The one that was used last. Nothing is kept where nothing is mounted: it would keep the file system.
    fn keep(&self, node: &Arc<Node>) {
        let mut gone = None;
        let mut kept = self.kept.lock();
        if self.mounts.load(Ordering::Acquire) == 0 {
            return;
        }
        if kept.back().is_some_and(|last| Arc::ptr_eq(last, node)) {
            return;
        }
        match kept.iter().position(|n| Arc::ptr_eq(n, node)) {
            Some(at) => drop(kept.remove(at)),
            // One with news for the disk stays until the disk has them.
            None if kept.len() >= KEPT => {
                let old = kept.iter().position(|node| !node.is_late());
                gone = old.and_then(|at| kept.remove(at));
            }
            None => {}
        }
        kept.push_back(node.clone());
        drop(kept);
        drop(gone);
    }

    /// A node that has no name any more is kept by its users only.
    fn forget(&self, node: &Node) {
        let mut kept = self.kept.lock();
        let at = kept
            .iter()
            .position(|n| core::ptr::eq(Arc::as_ptr(n), node));
        let gone = at.and_then(|at| kept.remove(at));
        drop(kept);
        drop(gone);
    }

    /// The last user of an inode, or of its page cache, has gone.
    fn left(&self, number: InodeNumber) {
        let mut nodes = self.nodes.lock();
        if nodes.get(&number.raw()).is_some_and(Entry::is_dead) {
            nodes.remove(&number.raw());
        }
    }

    /// The same of one that has no name.
    fn free_later(self: &Arc<Self>, number: InodeNumber) {
        if !self.read_only {
            later(Work::Free(self.clone(), number));
        }
    }

    /// The disk has yet to hear of an inode's times.
    fn times_later(self: &Arc<Self>, number: InodeNumber, times: Times) {
        if !self.read_only {
            later(Work::Time(self.clone(), number, times));
        }
    }

    fn write_time(&self, number: InodeNumber, times: &Times) -> Result<(), Errno> {
        self.must_change(|volume| {
            // The change time is that of the call; nothing but that changes with the same permissions again.
            *self.call_time.lock() = Some(times.ctime);
            let mode = volume.inode(number)?.mode;
            let update = InodeMetadataUpdate {
                permissions: Some(FilePermissions::new(mode & 0o7777)?),
                atime: times.atime.map(node::timestamp),
                mtime: times.mtime.map(node::timestamp),
                ..InodeMetadataUpdate::default()
            };
            volume.update_inode_metadata(number, update).map(drop)
        })
    }

    /// When the call is: for who runs in one.
    fn call_time(&self) -> Stamp {
        self.call_time.lock().unwrap_or_else(Stamp::now)
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
                if kept {
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

    /// A mount has come or gone. With the last one goes what is kept.
    fn mounted(&self, by: isize) {
        if self.mounts.fetch_add(by, Ordering::AcqRel) + by == 0 {
            let kept = core::mem::take(&mut *self.kept.lock());
            drop(kept);
        }
    }

    fn statfs(&self) -> FsStat {
        let stat = self.with(|volume| Ok(volume.statfs())).ok();
        // In pages, as every file system here has it.
        let pages =
            |n: u64, block: u64| (n as u128 * u128::from(block) / u128::from(PAGE_SIZE)) as u64;
        FsStat {
            magic: MAGIC,
            blocks: stat
                .as_ref()
                .map_or(0, |s| pages(s.total_blocks, s.block_size)),
            free: stat
                .as_ref()
                .map_or(0, |s| pages(s.free_blocks, s.block_size)),
            files: stat.as_ref().map_or(0, |s| s.total_inodes.into()),
            files_free: stat.as_ref().map_or(0, |s| s.free_inodes.into()),
        }
    }

    /// What was written before is on the disk, the journal's part of it included.
    fn commit(&self) -> Result<(), Errno> {
        if self.read_only {
            return Ok(());
        }
        self.changes.store(0, Ordering::Relaxed);
        self.must(sync_volume)
    }

    /// The same of everything that is dirty in memory.
    fn sync(&self) -> Result<(), Errno> {
        self.write_times().and(self.commit())
    }

    /// It is written and left clean, and answers `EIO` from then on. Who closes it, too, waits until that is so.
    fn close(&self) {
        let _one = self.closing.lock();
        let _ = self.sync();
        let core = self.core.lock().take();
        if let Some(core) = core {
            unmount(self.disk, core.volume, core.stack);
        }
    }

    /// The disk has what was written to files, and when.
    fn write_times(&self) -> Result<(), Errno> {
        // No node is dropped under the table's lock: that takes it, too.
        let nodes: Vec<_> = self.nodes.lock().values().filter_map(Entry::node).collect();
        let mut result = Ok(());
        for node in nodes.iter().filter(|node| node.is_late()) {
            result = result.and(node.write_all());
        }
        result
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

fn volume_on(device: Io, read_only: bool, time: CallTime) -> Ext4Result<Box<Volume>> {
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

impl Drop for Fs {
    fn drop(&mut self) {
        point(X86, Point::Unmount);
        if let (Some(core), Some(claim)) = (self.core.get_mut().take(), self.claim.take()) {
            later(Work::Unmount(claim, core));
        }
    }
}

/// What a last use leaves to do.
enum Work {
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

fn later(work: Work) {
    OPEN.fetch_add(1, Ordering::SeqCst);
    WORK.lock().push(work);
    CALL.wake_one();
}

/// Before something more is left to do: `rsext4` walks the disk's list of files without names, which is to be short.
fn catch_up() {
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

/// Everything that is mounted is on its disk; errors are for who asks for one file system (`syncfs`).
pub fn sync() {
    settle();
    for fs in all_mounted() {
        let _ = fs.sync();
    }
}

/// What file systems have changed since their journals were committed is on their disks.
pub fn commit() {
    for fs in all_mounted() {
        let _ = fs.write_times();
        if fs.changes.load(Ordering::Relaxed) > 0 {
            let _ = fs.commit();
        }
    }
}

/// Before the machine is switched off: what is still mounted is written and left clean, and answers `EIO` from then on.
pub fn shut_down() {
    settle();
    all_mounted().iter().for_each(|fs| fs.close());
}

/// The same of what is mounted from one disk, before it goes; also of what is being mounted or unmounted now.
pub fn leave(disk: &'static dyn Disk) {
    settle();
    loop {
        decided(disk);
        let mounted = MOUNTED.lock();
        let entry = mounted.iter().find(|entry| entry.is(disk));
        let fs = entry.map(|entry| entry.fs.upgrade());
        drop(mounted);
        match fs {
            None => return,
            Some(Some(fs)) => return fs.close(),
            Some(None) => {} // its last user has just gone
        }
    }
}

fn start_worker() -> Result<(), Errno> {
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

fn unmount(disk: &'static dyn Disk, mut volume: Box<Volume>, mut stack: LargeStack) {
    let unmounted = stack.run(|| unmount_volume(&mut volume));
    if let Err(error) = unmounted {
        crate::warn!("{}: not unmounted cleanly: {}", disk.name(), Said(error));
    }
    let _ = blockdev::hand_over(disk);
}
