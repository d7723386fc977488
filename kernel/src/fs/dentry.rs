//! Names in use: one `Dentry` for each place in the tree that somebody refers to.
//!
//! A dentry keeps its inode and its parent alive; a parent knows its children weakly, so the set of dentries is
//! exactly what open files, working directories and mounts need, and there is at most one for a name.
//! Protocol: a name is looked up, made, taken away or moved while the names of its directory are held (`Names`; of
//! both directories, the lower address first, for a move), together with the file system's own change.
//! So a lookup can never put back a name that is just going. Names are held by the `children` lock or, where the
//! file system sleeps, by `busy`, and `children` is taken for each look at the table. What is unhooked is dropped
//! after the locks: a dentry's drop takes its parent's `children`.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use spin::{Mutex as Spin, MutexGuard as SpinGuard};

use super::attr::Kind;
use super::inode::Inode;
use crate::sync::{Mutex, MutexGuard};
use mm::Errno;

type Children = BTreeMap<Box<[u8]>, Weak<Dentry>>;

/// A name in the tree, with the inode behind it.
pub struct Dentry {
    inode: Arc<dyn Inode>,
    kind: Kind,
    link: Spin<Link>,
    children: Spin<Children>,
    /// Whether the file system sleeps: then `busy` holds the names.
    sleeps: bool,
    busy: Mutex<()>,
    /// Mounts that stand on this dentry.
    mounts: AtomicUsize,
    unlinked: AtomicBool,
}

struct Link {
    name: Box<[u8]>,
    parent: Option<Arc<Dentry>>,
}

impl Dentry {
    fn build(inode: Arc<dyn Inode>, name: &[u8], parent: Option<Arc<Dentry>>) -> Arc<Self> {
        let kind = inode.kind();
        Arc::new(Dentry {
            kind,
            sleeps: inode.sleeps(),
            inode,
            link: Spin::new(Link {
                name: name.into(),
                parent,
            }),
            children: Spin::new(BTreeMap::new()),
            busy: Mutex::new(()),
            mounts: AtomicUsize::new(0),
            unlinked: AtomicBool::new(false),
        })
    }

    /// The root of a file system.
    pub fn root(inode: Arc<dyn Inode>) -> Arc<Self> {
        Self::build(inode, b"/", None)
    }

    /// A file outside every tree: a pipe, a memfd; `name` is all there is to show.
    pub fn unnamed(inode: Arc<dyn Inode>, name: &[u8], deleted: bool) -> Arc<Self> {
        let d = Self::build(inode, name, None);
        d.unlinked.store(deleted, Ordering::Relaxed);
        d
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Whether the name is gone while somebody still uses the file.
    pub fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Relaxed)
    }

    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.link.lock().parent.clone()
    }

    pub fn name(&self) -> Vec<u8> {
        self.link.lock().name.to_vec()
    }

    pub(super) fn mount_count(&self) -> &AtomicUsize {
        &self.mounts
    }

    pub fn is_mountpoint(&self) -> bool {
        self.mounts.load(Ordering::Acquire) != 0
    }

    /// Whether `self` is `other` or above it.
    pub fn is_ancestor_of(&self, other: &Arc<Dentry>) -> bool {
        let mut at = Some(other.clone());
        while let Some(d) = at {
            if core::ptr::eq(Arc::as_ptr(&d), self) {
                return true;
            }
            at = d.parent();
        }
        false
    }

    /// The child called `name`.
    pub fn child(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Dentry>, Errno> {
        if !self.inode.cacheable() {
            let inode = self.inode.lookup(name)?;
            return Ok(Self::build(inode, name, Some(self.clone())));
        }
        if self.sleeps {
            // Names in use need no file system.
            if let Some(d) = self.children.lock().get(name).and_then(Weak::upgrade) {
                return Ok(d);
            }
        }
        let mut names = Names::hold(self);
        if let Some(d) = names.get(name) {
            return Ok(d);
        }
        let inode = self.inode.lookup(name)?;
        Ok(self.adopt(&mut names, name, inode))
    }

    fn adopt(
        self: &Arc<Self>,
        names: &mut Names<'_>,
        name: &[u8],
        inode: Arc<dyn Inode>,
    ) -> Arc<Dentry> {
        let d = Self::build(inode, name, Some(self.clone()));
        names.put(name, &d);
        d
    }

    /// Makes `name` by `make`, which asks the file system.
    pub fn make(
        self: &Arc<Self>,
        name: &[u8],
        make: impl FnOnce(&Arc<dyn Inode>) -> Result<Arc<dyn Inode>, Errno>,
    ) -> Result<Arc<Dentry>, Errno> {
        let mut names = Names::hold(self);
        let inode = make(&self.inode)?;
        Ok(self.adopt(&mut names, name, inode))
    }

    /// Gives `inode` the further name `name`.
    pub fn link(self: &Arc<Self>, name: &[u8], inode: &Arc<dyn Inode>) -> Result<(), Errno> {
        let _names = Names::hold(self);
        self.inode.link(name, inode)
    }

    /// Takes `name` away. EBUSY where something is mounted.
    pub fn unlink(&self, name: &[u8], dir: bool) -> Result<(), Errno> {
        let mut names = Names::hold(self);
        let known = names.get(name);
        let result = if known.as_ref().is_some_and(|d| d.is_mountpoint()) {
            Err(Errno::EBUSY)
        } else {
            self.inode.unlink(name, dir)
        };
        if result.is_ok() {
            names.remove(name);
            if let Some(d) = &known {
                d.unlinked.store(true, Ordering::Relaxed);
            }
        }
        drop(names);
        drop(known);
        result.map(drop)
    }

    /// Moves `old` of `from` to `new` of `to`; both are directories of one file system, and the caller holds the
    /// rename lock and has refused moves into the moved directory itself.
    pub fn rename(
        from: &Arc<Self>,
        old: &[u8],
        to: &Arc<Self>,
        new: &[u8],
        exchange: bool,
    ) -> Result<(), Errno> {
        let mut pair = Pair::lock(from, to);
        let moved = pair.from().get(old);
        let target = pair.to().get(new);
        let busy = [&moved, &target]
            .into_iter()
            .flatten()
            .any(|d| d.is_mountpoint());
        let same = matches!((&moved, &target), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        let replaced = match busy {
            true => Err(Errno::EBUSY),
            false => from.inode.rename(old, &to.inode, new, exchange),
        };
        let mut old_parents = (None, None);
        if replaced.is_ok() && !same {
            pair.from().remove(old);
            pair.to().remove(new);
            if let Some(d) = &moved {
                old_parents.0 = d.relink(new, to);
                pair.to().put(new, d);
            }
            match &target {
                Some(d) if exchange => {
                    old_parents.1 = d.relink(old, from);
                    pair.from().put(old, d);
                }
                Some(d) => d.unlinked.store(true, Ordering::Relaxed),
                None => {}
            }
        }
        drop(pair);
        drop((moved, target, old_parents));
        replaced.map(drop)
    }

    /// Leaves the parent's list of children and gives the reference to it back. The last reference to `self` is
    /// gone: its own entry is dead, and a live one under the name is a newer dentry.
    fn unhook(&mut self) -> Option<Arc<Dentry>> {
        let link = self.link.get_mut();
        let parent = link.parent.take()?;
        let mut children = parent.children.lock();
        if children
            .get(&link.name)
            .is_some_and(|w| w.strong_count() == 0)
        {
            children.remove(&link.name);
        }
        drop(children);
        Some(parent)
    }

    fn relink(&self, name: &[u8], parent: &Arc<Dentry>) -> Option<Arc<Dentry>> {
        let mut link = self.link.lock();
        link.name = name.into();
        link.parent.replace(parent.clone())
    }
}

/// The names of a directory, which stay as they are but for what the holder does.
struct Names<'a> {
    dentry: &'a Dentry,
    by: Held<'a>,
}

enum Held<'a> {
    Spin(SpinGuard<'a, Children>),
    Busy(#[expect(dead_code, reason = "held")] MutexGuard<'a, ()>),
}

impl<'a> Names<'a> {
    fn hold(dentry: &'a Dentry) -> Self {
        let by = match dentry.sleeps {
            true => Held::Busy(dentry.busy.lock()),
            false => Held::Spin(dentry.children.lock()),
        };
        Names { dentry, by }
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Children) -> R) -> R {
        match &mut self.by {
            Held::Spin(children) => f(children),
            Held::Busy(_) => f(&mut self.dentry.children.lock()),
        }
    }

    fn get(&mut self, name: &[u8]) -> Option<Arc<Dentry>> {
        self.with(|c| c.get(name).and_then(Weak::upgrade))
    }

    fn put(&mut self, name: &[u8], d: &Arc<Dentry>) {
        self.with(|c| c.insert(name.into(), Arc::downgrade(d)));
    }

    fn remove(&mut self, name: &[u8]) {
        self.with(|c| c.remove(name));
    }
}

/// The names of two directories, which may be one.
struct Pair<'a> {
    first: Names<'a>,
    second: Option<Names<'a>>,
    from_is_first: bool,
}

impl<'a> Pair<'a> {
    fn lock(from: &'a Arc<Dentry>, to: &'a Arc<Dentry>) -> Self {
        if Arc::ptr_eq(from, to) {
            return Pair {
                first: Names::hold(from),
                second: None,
                from_is_first: true,
            };
        }
        let from_is_first = Arc::as_ptr(from) < Arc::as_ptr(to);
        let (a, b) = if from_is_first {
            (from, to)
        } else {
            (to, from)
        };
        let first = Names::hold(a);
        Pair {
            first,
            second: Some(Names::hold(b)),
            from_is_first,
        }
    }

    fn from(&mut self) -> &mut Names<'a> {
        match &mut self.second {
            Some(second) if !self.from_is_first => second,
            _ => &mut self.first,
        }
    }

    fn to(&mut self) -> &mut Names<'a> {
        match &mut self.second {
            Some(second) if self.from_is_first => second,
            _ => &mut self.first,
        }
    }
}

impl Drop for Dentry {
    fn drop(&mut self) {
        // A deep path is a long chain of last references: let it go in a loop, the stack is small.
        let mut next = self.unhook();
        while let Some(mut d) = next.and_then(Arc::into_inner) {
            next = d.unhook();
        }
    }
}
