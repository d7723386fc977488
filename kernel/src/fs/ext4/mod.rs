//! ext4: files on a disk that Linux reads, too.
//!
//! Names, inodes, extents and the journal are `rsext4`'s (decision 0011); file data is in the page cache and goes straight
//! between frames and the blocks that the extents name. Rooms: `io` the disk and the frames as `rsext4` sees them · `size` what it
//! makes lists of · `call` how it is called · `file` where a file's bytes are · `node` inodes and names · `times` and `xattr` of
//! inodes · `dir` open directories · `data` open files · `mounted` which disks are · `work` what last uses leave to do.
//!
//! Lock order, outermost first: `closing` → dentry `busy` → a node's `io` → page cache (resize, a folio) → a file's `blocks` → the
//! mount's `core` → its table of nodes. Nobody touches user memory below `blocks`. Who waits for transfers in flight has nothing of
//! this but `busy` and `io`, and who ends them takes neither.
//!
//! One `Node` for an inode number, and one page cache: the table knows both weakly, since dirty pages outlive the last use of
//! a node. The nodes that were used last are kept, and with them their pages, while the file system is mounted.

mod call;
mod data;
mod dir;
mod file;
mod io;
mod mounted;
mod node;
mod size;
mod times;
mod work;
mod xattr;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicIsize, AtomicU32, AtomicU64, Ordering};
use mm::race::{Point, point};
use mm::{Errno, PAGE_SIZE};
use rsext4::{DirectoryEntryType, Ext4Result, InodeNumber};
use spin::Mutex as Spin;

use super::attr::makedev;
use super::blockdev;
use super::content::MAX_SIZE;
use super::dentry::Dentry;
use super::inode::FsStat;
use crate::arch::X86;
use crate::dev::block::{self, Disk, Known};
use crate::dev::flight::Landing;
use crate::memory::kspace::LargeStack;
use crate::memory::{self, Aside};
use crate::sync::Mutex;
use crate::task::space::can_wait;
use call::{CallTime, Core, Volume, unmount, volume_on};
use io::{Io, Lent, Said, errno};
use mounted::Claim;
use node::{Entry, Node};
pub use work::settle;
use work::{Work, later};

/// Frames that `rsext4` 0.9.2 fills from call to call, beside the journal: 128 bitmaps, 32 blocks, 128 inodes, one block in hand.
const CACHES: u64 = 256;
/// Those that one call may need for itself: 62 blocks that it changes, each as a cache and the journal have it; bitmaps that
/// it goes through; the maps of the caches twice, to go back to; buffers of 64 KiB.
const ONE_CALL: u64 = 320;
/// And for each group of blocks: its bitmap and its descriptor's block, as above, where one call frees what lies everywhere. What
/// lists say of it, while they are made, is less than a quarter of one.
const GROUP: u64 = 4;
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
    /// And those that it takes for a while when it mounts.
    lists: u64,
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

/// The root of the file system on a disk. `EINVAL`: none that we know; `EUCLEAN`: a broken one; `EIO`, `ENOMEM`; `EBUSY`:
/// mounted already, the other way; `EACCES`: a read-only disk; `ENXIO`: it is going.
pub fn mount(known: Known, read_only: bool) -> Result<Arc<Dentry>, Errno> {
    if known.disk.read_only() && !read_only {
        return Err(Errno::EACCES);
    }
    // What was mounted before may be on its way out.
    settle();
    let fs = match mounted::claim(known.disk)? {
        Ok(fs) if fs.read_only == read_only => fs,
        Ok(_) => return Err(Errno::EBUSY),
        Err(claim) => {
            // With the claim: who has the disk go waits for it (`leave`), or has said so already.
            block::known(known.major, known.minor).ok_or(Errno::ENXIO)?;
            point(X86, Point::Mount);
            let fs = Fs::new(claim, known, read_only)?;
            mounted::enter(&fs);
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
        work::start()?;
        blockdev::hand_over(known.disk)?;
        // The journal's part of what is held; a copy of it, and one more while a change is part of another.
        let journal = (memory::totals().0 / 128).clamp(128, 2048);
        let lent = Lent::new()?;
        let device = Io::new(known.disk, lent.clone())?;
        let size = device.size();
        let aside = CACHES + 3 * journal + ONE_CALL + GROUP * size.groups;
        memory::headroom_for(aside + size.lists())?;
        let call_time = CallTime::default();
        let mut stack = LargeStack::new().ok_or(Errno::ENOMEM)?;
        let volume = stack
            .run(|| volume_on(device, read_only, call_time.clone()))
            .map_err(|error| {
                crate::warn!("{}: not mounted: {}", known.disk.name(), Said(error));
                errno(error)
            })?;
        let aside = match Aside::new(aside) {
            Ok(aside) => aside,
            Err(errno) => {
                unmount(known.disk, volume, stack);
                return Err(errno);
            }
        };
        let block = volume.statfs().block_size;
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
            lists: size.lists(),
            free: AtomicU64::new(0),
            changes: AtomicU32::new(0),
            nodes: Spin::new(BTreeMap::new()),
            kept: Spin::new(VecDeque::new()),
            mounts: AtomicIsize::new(0),
            closing: Mutex::new(()),
        }))
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

    /// What is dirty in memory and what was written before are on the disk.
    fn sync(&self) -> Result<(), Errno> {
        let written = self.write_files().and(self.write_times());
        written.and(self.commit())
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

    /// The disk has what was written to files, by way of mappings, too; but not when.
    fn write_files(&self) -> Result<(), Errno> {
        // None is dropped under the table's lock, as below.
        let objects: Vec<_> = self
            .nodes
            .lock()
            .values()
            .filter_map(Entry::object)
            .collect();
        let mut result = Ok(());
        for object in &objects {
            result = result.and(object.write_back(&mut can_wait(), 0, u64::MAX));
        }
        result
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

impl Drop for Fs {
    fn drop(&mut self) {
        point(X86, Point::Unmount);
        if let (Some(core), Some(claim)) = (self.core.get_mut().take(), self.claim.take()) {
            later(Work::Unmount(claim, core));
        }
    }
}

/// Everything that is mounted is on its disk; errors are for who asks for one file system (`syncfs`).
pub fn sync() {
    settle();
    for fs in mounted::all() {
        let _ = fs.sync();
    }
}

/// What file systems have changed since their journals were committed is on their disks.
pub fn commit() {
    for fs in mounted::all() {
        let _ = fs.write_times();
        if fs.changes.load(Ordering::Relaxed) > 0 {
            let _ = fs.commit();
        }
    }
}

/// Before the machine is switched off: what is still mounted is written and left clean, and answers `EIO` from then on.
pub fn shut_down() {
    settle();
    mounted::all().iter().for_each(|fs| fs.close());
}

/// The same of what is mounted from one disk, before it goes; also of what is being mounted or unmounted now.
pub fn leave(disk: &'static dyn Disk) {
    settle();
    if let Some(fs) = mounted::on(disk) {
        fs.close();
    }
}
