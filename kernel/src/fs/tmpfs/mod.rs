//! The memory file system: the root, /dev, /dev/shm, and the files of memfd_create.
//!
//! A directory's entries are a map under a spin lock, with a cookie for each name so that a listing goes on where
//! it stopped whatever was removed meanwhile. Two directories are locked in the order of their inode numbers.
//! A removed directory is dead: nothing can be made in it. File content is a page cache object (`content`).

mod file;
mod ops;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use spin::Mutex as Spin;

use super::attr::{Attr, AttrCell, Kind, anonymous_dev};
use super::content::{Content, page_limit};
use super::fifo::Fifo;
use super::inode::{FsStat, Inode};
use mm::Errno;
use mm::object::cache::cached_pages;

pub use file::{SEALS_ALL, memfd};

/// What all nodes of one mounted tmpfs share.
pub struct Super {
    dev: u64,
    next_ino: AtomicU64,
    nodes: AtomicU64,
}

/// A tmpfs inode.
pub struct Node {
    fs: Arc<Super>,
    attrs: AttrCell,
    body: Body,
}

enum Body {
    File {
        content: Content,
        seals: AtomicU32,
        /// See `Inode::writers`.
        writers: AtomicI32,
    },
    Dir(Spin<Dir>),
    Symlink(Box<[u8]>),
    Fifo(Fifo),
    /// A device or socket node: what it is lies elsewhere.
    Special,
}

#[derive(Default)]
struct Dir {
    entries: BTreeMap<Box<[u8]>, (Arc<Node>, u64)>,
    by_cookie: BTreeMap<u64, Box<[u8]>>,
    next_cookie: u64,
    parent_ino: u64,
    dead: bool,
}

/// The first cookies are `.` and `..`.
const FIRST_COOKIE: u64 = 2;

impl Dir {
    fn insert(&mut self, name: &[u8], node: Arc<Node>) {
        let cookie = self.next_cookie.max(FIRST_COOKIE);
        self.next_cookie = cookie + 1;
        self.by_cookie.insert(cookie, name.into());
        self.entries.insert(name.into(), (node, cookie));
    }

    fn remove(&mut self, name: &[u8]) -> Option<Arc<Node>> {
        let (node, cookie) = self.entries.remove(name)?;
        self.by_cookie.remove(&cookie);
        Some(node)
    }

    /// Puts `node` in the place of the entry `name`.
    fn replace(&mut self, name: &[u8], node: Arc<Node>) -> Option<Arc<Node>> {
        self.entries
            .get_mut(name)
            .map(|e| core::mem::replace(&mut e.0, node))
    }
}

/// A fresh file system; its root directory.
pub fn new_root(perm: u32) -> Arc<Node> {
    let fs = Arc::new(Super {
        dev: anonymous_dev(),
        next_ino: AtomicU64::new(1),
        nodes: AtomicU64::new(0),
    });
    let root = Node::build(
        &fs,
        Kind::Directory,
        perm,
        0,
        Body::Dir(Spin::new(Dir::default())),
    );
    let ino = root.attrs.ino();
    if let Body::Dir(d) = &root.body {
        d.lock().parent_ino = ino;
    }
    root
}

impl Node {
    fn build(fs: &Arc<Super>, kind: Kind, perm: u32, rdev: u64, body: Body) -> Arc<Self> {
        let ino = fs.next_ino.fetch_add(1, Ordering::Relaxed);
        fs.nodes.fetch_add(1, Ordering::Relaxed);
        Arc::new(Node {
            fs: fs.clone(),
            attrs: AttrCell::new(fs.dev, ino, kind, perm, rdev),
            body,
        })
    }

    fn new_node(&self, mode: u32, rdev: u64) -> Result<Arc<Self>, Errno> {
        crate::memory::headroom()?;
        let kind = Kind::of_mode(mode).ok_or(Errno::EINVAL)?;
        let body = match kind {
            Kind::Regular => Body::File {
                content: Content::new()?,
                seals: AtomicU32::new(file::F_SEAL_SEAL),
                writers: AtomicI32::new(0),
            },
            Kind::Directory => Body::Dir(Spin::new(Dir {
                parent_ino: self.attrs.ino(),
                ..Dir::default()
            })),
            Kind::Fifo => Body::Fifo(Fifo::new()),
            Kind::Char | Kind::Block | Kind::Socket => Body::Special,
            Kind::Symlink => return Err(Errno::EINVAL),
        };
        Ok(Node::build(&self.fs, kind, mode, rdev, body))
    }

    fn dir(&self) -> Result<&Spin<Dir>, Errno> {
        match &self.body {
            Body::Dir(d) => Ok(d),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn get_attr(&self) -> Attr {
        let (size, blocks) = match &self.body {
            Body::File { content, .. } => (content.size(), content.blocks()),
            Body::Dir(d) => ((d.lock().entries.len() as u64 + 2) * 20, 0),
            Body::Symlink(t) => (t.len() as u64, 0),
            Body::Fifo(_) | Body::Special => (0, 0),
        };
        self.attrs.get(size, blocks)
    }

    /// Adds a finished node under `name`.
    fn add(&self, name: &[u8], node: Arc<Node>) -> Result<Arc<dyn Inode>, Errno> {
        let mut dir = self.dir()?.lock();
        if dir.dead {
            return Err(Errno::ENOENT);
        }
        if dir.entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        dir.insert(name, node.clone());
        if node.attrs.kind() == Kind::Directory {
            self.attrs.add_links(1);
        }
        drop(dir);
        self.attrs.touch();
        Ok(node)
    }

    /// The node of `inode`, if it is of this file system.
    fn same_fs(&self, inode: &Arc<dyn Inode>) -> Result<Arc<Node>, Errno> {
        let node = inode
            .clone()
            .as_any()
            .downcast::<Node>()
            .map_err(|_| Errno::EXDEV)?;
        if Arc::ptr_eq(&node.fs, &self.fs) {
            Ok(node)
        } else {
            Err(Errno::EXDEV)
        }
    }

    fn stat_fs(&self) -> FsStat {
        let limit = page_limit();
        FsStat {
            magic: 0x0102_1994,
            blocks: limit,
            free: limit.saturating_sub(cached_pages()),
            files: limit,
            files_free: limit.saturating_sub(self.fs.nodes.load(Ordering::Relaxed)),
        }
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.fs.nodes.fetch_sub(1, Ordering::Relaxed);
        // A whole tree goes with its file system: in a loop, the stack is small.
        let mut pending: Vec<Arc<Node>> = Vec::new();
        take_children(&mut self.body, &mut pending);
        while let Some(node) = pending.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                take_children(&mut node.body, &mut pending);
            }
        }
    }
}

fn take_children(body: &mut Body, into: &mut Vec<Arc<Node>>) {
    if let Body::Dir(d) = body {
        let dir = d.get_mut();
        dir.by_cookie.clear();
        into.extend(
            core::mem::take(&mut dir.entries)
                .into_values()
                .map(|(n, _)| n),
        );
    }
}
