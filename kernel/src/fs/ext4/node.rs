//! Inodes of ext4: names made, moved and removed; attributes.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use mm::Errno;
use rsext4::{
    DeviceNumber, DirectoryEntryType, Ext4Error, Ext4ErrorKind, Ext4Result, FileName,
    FilePermissions, InodeInfo, InodeMetadataUpdate, InodeNumber, MutationContext, RenameOptions,
    SpecialInodeKind,
};

use super::Fs;
use super::call::{Volume, begin_transaction};
use super::file::{Bytes, FileSource};
use super::times::{stamp, timestamp};
use super::work::catch_up;
use crate::arch::X86;
use crate::fs::access;
use crate::fs::attr::{Attr, AttrCell, AttrChange, Kind, major, makedev, minor};
use crate::fs::content::Content;
use crate::fs::devfs;
use crate::fs::fifo::Fifo;
use crate::fs::inode::{FileOps, FsStat, Inode, Link, Object};
use crate::fs::mapped;
use crate::fs::path::Path;
use crate::fs::writeback;
use crate::sync::RwLock;

const S_ISGID: u32 = 0o2000;

/// An inode that is in use.
pub struct Node {
    pub fs: Arc<Fs>,
    pub number: InodeNumber,
    pub attrs: AttrCell,
    /// 512-byte blocks, as the disk had them last.
    blocks: AtomicU64,
    /// The directory's size.
    size: AtomicU64,
    /// Which of its times are others than the disk's.
    pub late: AtomicU8,
    pub body: Body,
}

/// What is in it.
pub enum Body {
    File(Regular),
    Dir,
    Symlink(Box<[u8]>),
    Fifo(Fifo),
    Special,
}

/// A regular file.
pub struct Regular {
    pub bytes: Arc<Bytes>,
    pub content: Content,
    /// Shared by direct transfers, held alone by who changes the size: Linux's inode lock.
    pub io: RwLock<()>,
    /// See `Inode::writers`.
    writers: AtomicI32,
}

/// What the table knows of an inode: its page cache may outlive its node.
#[derive(Default)]
pub struct Entry {
    node: Weak<Node>,
    bytes: Weak<Bytes>,
    object: Weak<Object>,
}

impl Entry {
    pub fn node(&self) -> Option<Arc<Node>> {
        self.node.upgrade()
    }

    pub fn object(&self) -> Option<Arc<Object>> {
        self.object.upgrade()
    }

    pub fn is_dead(&self) -> bool {
        self.node.strong_count() == 0 && self.object.strong_count() == 0
    }
}

fn kind_of(info: &InodeInfo) -> Ext4Result<Kind> {
    match info.file_type() {
        DirectoryEntryType::Unknown => Err(Ext4Error::corrupted()),
        known => Ok(entry_kind(known)),
    }
}

pub fn entry_kind(of: DirectoryEntryType) -> Kind {
    match of {
        DirectoryEntryType::Directory => Kind::Directory,
        DirectoryEntryType::CharacterDevice => Kind::Char,
        DirectoryEntryType::BlockDevice => Kind::Block,
        DirectoryEntryType::Fifo => Kind::Fifo,
        DirectoryEntryType::Socket => Kind::Socket,
        DirectoryEntryType::Symlink => Kind::Symlink,
        _ => Kind::Regular,
    }
}

impl Node {
    /// The node of an inode that has none; `target` is a symbolic link's.
    pub fn new(fs: &Arc<Fs>, info: &InodeInfo, target: Vec<u8>) -> Ext4Result<Arc<Node>> {
        let kind = kind_of(info)?;
        let rdev = info
            .device_number
            .map_or(0, |d| makedev(d.major(), d.minor()));
        let body = match kind {
            Kind::Regular => {
                let (bytes, object) = Node::cache(fs, info)?;
                Body::File(Regular {
                    bytes,
                    content: Content::of(object, fs.file_end),
                    io: RwLock::new(()),
                    writers: AtomicI32::new(0),
                })
            }
            Kind::Directory => Body::Dir,
            Kind::Symlink => Body::Symlink(target.into_boxed_slice()),
            Kind::Fifo => Body::Fifo(Fifo::new()),
            Kind::Char | Kind::Block | Kind::Socket => Body::Special,
        };
        let attr = Attr {
            dev: fs.dev,
            ino: info.number.as_u64(),
            mode: u32::from(info.mode),
            nlink: u32::from(info.links),
            uid: info.uid,
            gid: info.gid,
            rdev,
            size: info.size,
            blocks: info.blocks,
            atime: stamp(info.atime),
            mtime: stamp(info.mtime),
            ctime: stamp(info.ctime),
            btime: stamp(info.btime),
        };
        Ok(Arc::new(Node {
            fs: fs.clone(),
            number: info.number,
            attrs: AttrCell::of(&attr, kind),
            blocks: AtomicU64::new(info.blocks),
            size: AtomicU64::new(info.size),
            late: AtomicU8::new(0),
            body,
        }))
    }

    /// A file's page cache: the one that is there, or a new one.
    fn cache(fs: &Arc<Fs>, info: &InodeInfo) -> Ext4Result<(Arc<Bytes>, Arc<Object>)> {
        let nodes = fs.nodes.lock();
        let entry = nodes.get(&info.number.raw());
        let known = entry.and_then(|e| Some((e.bytes.upgrade()?, e.object.upgrade()?)));
        drop(nodes);
        if let Some(known) = known {
            return Ok(known);
        }
        let bytes = Bytes::new(fs.clone(), info.number, info.size);
        let source = Box::new(FileSource(bytes.clone()));
        let object = Object::new_paged(X86, source, info.size);
        writeback::register(&object).map_err(|_| Ext4Error::no_memory())?;
        Ok((bytes, object))
    }

    /// Tells the table.
    pub fn enter(self: &Arc<Self>, entry: &mut Entry) {
        entry.node = Arc::downgrade(self);
        if let Body::File(file) = &self.body {
            entry.bytes = Arc::downgrade(&file.bytes);
            entry.object = Arc::downgrade(file.content.object());
        }
    }

    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir)
    }

    /// What the disk says now of what only it knows.
    fn renew(&self, info: &InodeInfo) {
        self.blocks.store(info.blocks, Ordering::Relaxed);
        if self.is_dir() {
            self.size.store(info.size, Ordering::Relaxed);
        }
        self.attrs.set_links(u32::from(info.links));
    }

    pub(super) fn look_again(&self, volume: &mut Volume) -> Ext4Result<()> {
        let info = volume.inode(self.number)?;
        self.renew(&info);
        Ok(())
    }

    /// Whose the new file is, and its mode.
    fn context(&self, mode: u32) -> (MutationContext, u32) {
        let (uid, mut gid) = access::new_owner();
        let mut perm = mode & 0o7777;
        let dir = self.attrs.get(0, 0);
        if dir.mode & S_ISGID != 0 {
            gid = dir.gid;
            if Kind::of_mode(mode) == Some(Kind::Directory) {
                perm |= S_ISGID;
            }
        }
        (MutationContext::new(uid, gid, 0, 0), perm)
    }

    /// Makes a file by `make`, or a name; it is in the directory afterwards.
    fn add(
        self: &Arc<Self>,
        born: bool,
        make: impl FnOnce(&mut Volume) -> Ext4Result<InodeInfo>,
    ) -> Result<Arc<dyn Inode>, Errno> {
        if self.attrs.nlink() == 0 {
            // A removed directory that somebody still stands in.
            return Err(Errno::ENOENT);
        }
        crate::memory::headroom()?;
        let node = self.fs.change(|volume| {
            let info = make(volume)?;
            self.look_again(volume)?;
            let node = self.fs.find(volume, info.number)?;
            if born {
                node.attrs.born(self.fs.call_time());
            }
            Ok(node)
        })?;
        self.modified();
        Ok(node)
    }

    /// The node of `inode`, if it is of this file system.
    fn same_fs(&self, inode: &Arc<dyn Inode>) -> Result<Arc<Node>, Errno> {
        let node = inode.clone().as_any().downcast::<Node>();
        let node = node.map_err(|_| Errno::EXDEV)?;
        if Arc::ptr_eq(&node.fs, &self.fs) {
            Ok(node)
        } else {
            Err(Errno::EXDEV)
        }
    }

    /// The node has lost a name.
    fn unnamed(&self, links: u16) {
        self.attrs.set_links(u32::from(links));
        if links == 0 {
            if let Body::File(file) = &self.body {
                mapped::deleted(file.content.object());
                file.bytes.unnamed.store(true, Ordering::Release);
            }
            self.fs.forget(self);
        } else {
            self.altered();
        }
    }

    /// Myself, for what keeps me.
    fn me(&self) -> Result<Arc<Node>, Errno> {
        let nodes = self.fs.nodes.lock();
        let me = nodes.get(&self.number.raw()).and_then(Entry::node);
        me.ok_or(Errno::ENOENT)
    }
}

fn name_of(name: &[u8]) -> Result<FileName<'_>, Errno> {
    FileName::new(name).map_err(|_| Errno::EINVAL)
}

fn permissions(perm: u32) -> Result<FilePermissions, Errno> {
    FilePermissions::new((perm & 0o7777) as u16).map_err(|_| Errno::EINVAL)
}

/// There is room for a name in the block of the directory where it belongs: a file that had it has gone.
fn make_name_room(volume: &mut Volume, dir: InodeNumber, name: FileName<'_>) -> Ext4Result<()> {
    let nobody = MutationContext::new(0, 0, 0, 0);
    let mode = FilePermissions::new(0o600)?;
    let file = volume.create_regular_file(nobody, dir, name, mode)?;
    let _ = volume.unlink(dir, name)?;
    volume.reap_unlinked_inode(file.number)
}

impl Inode for Node {
    fn attr(&self) -> Attr {
        if let Body::File(file) = &self.body
            && !file.bytes.counted.swap(true, Ordering::AcqRel)
            && let Ok(info) = self.fs.must(|volume| volume.inode(self.number))
        {
            self.blocks.store(info.blocks, Ordering::Relaxed);
        }
        let size = match &self.body {
            Body::File(file) => file.content.size(),
            Body::Symlink(target) => target.len() as u64,
            _ => self.size.load(Ordering::Relaxed),
        };
        self.attrs.get(size, self.blocks.load(Ordering::Relaxed))
    }

    fn kind(&self) -> Kind {
        self.attrs.kind()
    }

    fn set_attr(&self, change: &AttrChange) -> Result<(), Errno> {
        let now = self.attrs.get(0, 0);
        let owner = (change.uid.is_some() || change.gid.is_some())
            .then(|| (change.uid.unwrap_or(now.uid), change.gid.unwrap_or(now.gid)));
        let update = InodeMetadataUpdate {
            permissions: change.perm.map(permissions).transpose()?,
            owner,
            atime: change.atime.map(timestamp),
            mtime: change.mtime.map(timestamp),
            ..InodeMetadataUpdate::default()
        };
        self.fs
            .change(|volume| volume.update_inode_metadata(self.number, update))?;
        self.changed(change);
        Ok(())
    }

    fn sleeps(&self) -> bool {
        true
    }

    fn mounted(&self, by: isize) {
        self.fs.mounted(by);
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        if !self.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let name = name_of(name)?;
        let found = self.fs.with(|volume| {
            let info = volume.lookup_child(self.number, name)?;
            info.map(|info| self.fs.find(volume, info.number))
                .transpose()
        })?;
        Ok(found.ok_or(Errno::ENOENT)?)
    }

    fn create(&self, name: &[u8], mode: u32, rdev: u64) -> Result<Arc<dyn Inode>, Errno> {
        let me = self.me()?;
        let kind = Kind::of_mode(mode).ok_or(Errno::EINVAL)?;
        let name = name_of(name)?;
        let (context, perm) = self.context(mode);
        let perm = permissions(perm)?;
        let device = || DeviceNumber::new(major(rdev), minor(rdev));
        me.add(true, |volume| match kind {
            Kind::Regular => volume.create_regular_file(context, self.number, name, perm),
            Kind::Directory => volume.create_directory(context, self.number, name, perm),
            Kind::Symlink => Err(Ext4Error::invalid_input()),
            Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => {
                let special = match kind {
                    Kind::Char => SpecialInodeKind::CharacterDevice(device()?),
                    Kind::Block => SpecialInodeKind::BlockDevice(device()?),
                    Kind::Fifo => SpecialInodeKind::Fifo,
                    _ => SpecialInodeKind::Socket,
                };
                volume.create_special_inode(context, self.number, name, perm, special)
            }
        })
    }

    fn symlink(&self, name: &[u8], target: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let me = self.me()?;
        let name = name_of(name)?;
        let (context, _) = self.context(0);
        me.add(true, |volume| {
            volume.create_symlink(context, self.number, name, target)
        })
    }

    fn link(&self, name: &[u8], inode: &Arc<dyn Inode>) -> Result<(), Errno> {
        let node = self.same_fs(inode)?;
        if node.is_dir() {
            return Err(Errno::EPERM);
        }
        if node.attrs.nlink() == 0 {
            return Err(Errno::ENOENT);
        }
        let me = self.me()?;
        let name = name_of(name)?;
        me.add(false, |volume| {
            volume.hard_link(node.number, self.number, name)
        })?;
        node.attrs.add_links(1);
        node.altered();
        Ok(())
    }

    fn unlink(&self, name: &[u8], dir: bool) -> Result<Arc<dyn Inode>, Errno> {
        catch_up();
        let name = name_of(name)?;
        let (node, outcome) = self.fs.change(|volume| {
            let info = volume.lookup_child(self.number, name)?;
            let info = info.ok_or_else(Ext4Error::not_found)?;
            let node = self.fs.find(volume, info.number)?;
            let outcome = match (dir, info.is_directory()) {
                (true, true) => volume.remove_empty_directory(self.number, name)?,
                (false, false) => volume.unlink(self.number, name)?,
                (true, false) => return Err(Ext4Error::not_dir()),
                (false, true) => return Err(Ext4Error::is_dir()),
            };
            self.look_again(volume)?;
            Ok((node, outcome))
        })?;
        node.unnamed(outcome.remaining_links);
        self.modified();
        Ok(node)
    }

    fn rename(
        &self,
        old: &[u8],
        to: &Arc<dyn Inode>,
        new: &[u8],
        exchange: bool,
    ) -> Result<Option<Arc<dyn Inode>>, Errno> {
        catch_up();
        let to = self.same_fs(to)?;
        let (old, new) = (name_of(old)?, name_of(new)?);
        if to.attrs.nlink() == 0 {
            return Err(Errno::ENOENT);
        }
        let (moved, other, replaced) = self.fs.change(|volume| {
            let target = volume.lookup_child(to.number, new)?;
            let target = target
                .map(|info| self.fs.find(volume, info.number))
                .transpose()?;
            let moved = volume.lookup_child(self.number, old)?;
            let moved = moved.ok_or_else(Ext4Error::not_found)?;
            let moved = self.fs.find(volume, moved.number)?;
            match &target {
                Some(node) if !exchange && moved.is_dir() && !node.is_dir() => {
                    return Err(Ext4Error::not_dir());
                }
                Some(node) if !exchange && !moved.is_dir() && node.is_dir() => {
                    return Err(Ext4Error::is_dir());
                }
                _ => {}
            }
            let options = match exchange {
                true => RenameOptions::EXCHANGE,
                false => RenameOptions::REPLACE,
            };
            let rename =
                |volume: &mut Volume| volume.rename(self.number, old, to.number, new, options);
            let outcome = match rename(volume) {
                // `rsext4` 0.9.2 looks for the old name where it was, though the new one may just have split that block. It has undone all.
                Err(error)
                    if target.is_none()
                        && self.number == to.number
                        && (error.is_corruption() || error.kind() == Ext4ErrorKind::NotFound) =>
                {
                    begin_transaction(volume)?;
                    make_name_room(volume, self.number, new)?;
                    rename(volume)?
                }
                outcome => outcome?,
            };
            self.look_again(volume)?;
            to.look_again(volume)?;
            let other = target.clone().filter(|_| exchange);
            Ok((moved, other, target.zip(outcome.replaced)))
        })?;
        self.modified();
        to.modified();
        moved.altered();
        other.inspect(|node| node.altered());
        let Some((node, outcome)) = replaced else {
            return Ok(None);
        };
        node.unnamed(outcome.remaining_links);
        Ok(Some(node))
    }

    fn readlink(&self) -> Result<Link, Errno> {
        match &self.body {
            Body::Symlink(target) => Ok(Link::Text(target.to_vec())),
            _ => Err(Errno::EINVAL),
        }
    }

    fn truncate(&self, len: u64) -> Result<(), Errno> {
        match &self.body {
            Body::File(file) => self.cut(file, len),
            Body::Dir => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn xattr(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.get_xattr(name)
    }

    fn xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        self.list_xattrs()
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> Result<(), Errno> {
        self.put_xattr(name, value, flags)
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        self.drop_xattr(name)
    }

    fn statfs(&self) -> FsStat {
        self.fs.statfs()
    }

    fn sync_fs(&self) -> Result<(), Errno> {
        self.fs.sync()
    }

    fn open(self: Arc<Self>, path: &Path, flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        match &self.body {
            Body::File(_) | Body::Dir => Ok(self),
            Body::Fifo(fifo) => fifo.open(flags),
            Body::Special => devfs::open_node(self.attrs.kind(), self.attrs.rdev(), path, flags),
            Body::Symlink(_) => Err(Errno::ELOOP),
        }
    }

    fn read_only(&self) -> bool {
        self.fs.read_only
    }

    fn writers(&self) -> Option<&AtomicI32> {
        match &self.body {
            Body::File(file) => Some(&file.writers),
            _ => None,
        }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.attrs.nlink() > 0
            && let Some(times) = self.take_late()
        {
            self.fs.times_later(self.number, times);
        }
        // A regular file's inode goes with its page cache, which mappings use.
        if matches!(self.body, Body::File(_)) {
            return;
        }
        self.fs.left(self.number);
        if self.attrs.nlink() == 0 {
            self.fs.free_later(self.number);
        }
    }
}
