//! A tmpfs node as an inode: names made, moved and removed.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::AtomicI32;
use spin::MutexGuard;

use super::super::attr::{Attr, AttrChange, Kind};
use super::super::devfs;
use super::super::inode::{FileOps, FsStat, Inode, Link};
use super::super::mapped;
use super::super::path::Path;
use super::{Body, Dir, Node};
use mm::Errno;

impl Inode for Node {
    fn attr(&self) -> Attr {
        self.get_attr()
    }

    fn kind(&self) -> Kind {
        self.attrs.kind()
    }

    fn set_attr(&self, change: &AttrChange) -> Result<(), Errno> {
        if change.perm.is_some_and(|new| self.exec_sealed(new)) {
            return Err(Errno::EPERM);
        }
        self.attrs.set(change);
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let dir = self.dir()?.lock();
        match dir.entries.get(name) {
            Some((node, _)) => Ok(node.clone()),
            None => Err(Errno::ENOENT),
        }
    }

    fn create(&self, name: &[u8], mode: u32, rdev: u64) -> Result<Arc<dyn Inode>, Errno> {
        let node = self.new_node(mode, rdev)?;
        self.add(name, node)
    }

    fn create_unnamed(&self, mode: u32) -> Result<Arc<dyn Inode>, Errno> {
        let node = self.new_node(mode, 0)?;
        node.attrs.add_links(-1);
        Ok(node)
    }

    fn symlink(&self, name: &[u8], target: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        crate::memory::headroom()?;
        let node = Node::build(
            &self.fs,
            Kind::Symlink,
            0o777,
            0,
            Body::Symlink(target.into()),
        );
        self.add(name, node)
    }

    fn link(&self, name: &[u8], inode: &Arc<dyn Inode>) -> Result<(), Errno> {
        let node = self.same_fs(inode)?;
        if node.attrs.kind() == Kind::Directory {
            return Err(Errno::EPERM);
        }
        self.add(name, node.clone())?;
        node.attrs.add_links(1);
        Ok(())
    }

    fn unlink(&self, name: &[u8], want_dir: bool) -> Result<Arc<dyn Inode>, Errno> {
        let mut dir = self.dir()?.lock();
        let node = dir
            .entries
            .get(name)
            .map(|e| e.0.clone())
            .ok_or(Errno::ENOENT)?;
        retire(&node, want_dir)?;
        let removed = dir.remove(name);
        if want_dir {
            self.attrs.add_links(-1);
        }
        drop(dir);
        self.attrs.touch();
        drop(removed);
        Ok(node)
    }

    fn rename(
        &self,
        old: &[u8],
        to: &Arc<dyn Inode>,
        new: &[u8],
        exchange: bool,
    ) -> Result<Option<Arc<dyn Inode>>, Errno> {
        let to = self.same_fs(to)?;
        let mut dirs = TwoDirs::lock(self, &to)?;
        let node = dirs
            .from()
            .entries
            .get(old)
            .map(|e| e.0.clone())
            .ok_or(Errno::ENOENT)?;
        let target = dirs.to().entries.get(new).map(|e| e.0.clone());
        let is_dir = |n: &Arc<Node>| n.attrs.kind() == Kind::Directory;
        let moves_dir = is_dir(&node);
        if dirs.to().dead {
            return Err(Errno::ENOENT);
        }
        if exchange {
            let target = target.ok_or(Errno::ENOENT)?;
            dirs.from().replace(old, target.clone());
            dirs.to().replace(new, node.clone());
            if moves_dir != is_dir(&target) {
                let delta = if moves_dir { 1 } else { -1 };
                to.attrs.add_links(delta);
                self.attrs.add_links(-delta);
            }
            set_parent(&target, self);
            set_parent(&node, &to);
            drop(dirs);
            self.attrs.touch();
            to.attrs.touch();
            return Ok(None);
        }
        if let Some(target) = &target {
            if Arc::ptr_eq(target, &node) {
                return Ok(None);
            }
            match (moves_dir, is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
            retire(target, moves_dir)?;
            dirs.to().replace(new, node.clone());
        } else {
            dirs.to().insert(new, node.clone());
        }
        let removed = dirs.from().remove(old);
        if moves_dir {
            self.attrs.add_links(-1);
            if target.is_none() {
                to.attrs.add_links(1);
            }
            set_parent(&node, &to);
        }
        drop(dirs);
        drop(removed);
        self.attrs.touch();
        to.attrs.touch();
        node.attrs.add_links(0);
        Ok(target.map(|t| t as Arc<dyn Inode>))
    }

    fn readlink(&self) -> Result<Link, Errno> {
        match &self.body {
            Body::Symlink(target) => Ok(Link::Text(target.to_vec())),
            _ => Err(Errno::EINVAL),
        }
    }

    fn truncate(&self, len: u64) -> Result<(), Errno> {
        self.set_len(len)
    }

    fn statfs(&self) -> FsStat {
        self.stat_fs()
    }

    fn open(self: Arc<Self>, path: &Path, flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        match &self.body {
            Body::File { .. } | Body::Dir(_) => Ok(self),
            Body::Fifo(fifo) => fifo.open(flags),
            Body::Special => devfs::open_node(self.attrs.kind(), self.attrs.rdev(), path, flags),
            Body::Symlink(_) => Err(Errno::ELOOP),
        }
    }

    fn writers(&self) -> Option<&AtomicI32> {
        match &self.body {
            Body::File { writers, .. } => Some(writers),
            _ => None,
        }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self.any()
    }
}

/// A node loses a name. A directory must be empty and is dead from now on.
fn retire(node: &Arc<Node>, want_dir: bool) -> Result<(), Errno> {
    match (&node.body, want_dir) {
        (Body::Dir(_), false) => return Err(Errno::EISDIR),
        (Body::Dir(d), true) => {
            let mut d = d.lock();
            if !d.entries.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            d.dead = true;
            drop(d);
            node.attrs.add_links(-2);
        }
        (_, true) => return Err(Errno::ENOTDIR),
        (body, false) => {
            if let (0, Body::File { content, .. }) = (node.attrs.add_links(-1), body) {
                mapped::deleted(content.object());
            }
        }
    }
    Ok(())
}

fn set_parent(node: &Node, parent: &Node) {
    if let Body::Dir(d) = &node.body {
        d.lock().parent_ino = parent.attrs.ino();
    }
}

/// The entry locks of two directories, which may be one, taken in the order of their inode numbers.
struct TwoDirs<'a> {
    first: MutexGuard<'a, Dir>,
    second: Option<MutexGuard<'a, Dir>>,
    from_is_first: bool,
}

impl<'a> TwoDirs<'a> {
    fn lock(from: &'a Node, to: &'a Node) -> Result<Self, Errno> {
        let (a, b) = (from.dir()?, to.dir()?);
        if core::ptr::eq(a, b) {
            return Ok(TwoDirs {
                first: a.lock(),
                second: None,
                from_is_first: true,
            });
        }
        let from_is_first = from.attrs.ino() < to.attrs.ino();
        let (a, b) = if from_is_first { (a, b) } else { (b, a) };
        let first = a.lock();
        Ok(TwoDirs {
            first,
            second: Some(b.lock()),
            from_is_first,
        })
    }

    fn from(&mut self) -> &mut Dir {
        match &mut self.second {
            Some(second) if !self.from_is_first => second,
            _ => &mut self.first,
        }
    }

    fn to(&mut self) -> &mut Dir {
        match &mut self.second {
            Some(second) if self.from_is_first => second,
            _ => &mut self.first,
        }
    }
}
