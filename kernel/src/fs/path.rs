//! From a path to a file: the one walk.
//!
//! A `Walk` stands at a directory and consumes components. `..` stops at the caller's root; mounts are crossed both
//! ways; symbolic links are spliced into what is left of the path, forty at most. `parent` stops before the last
//! component, for calls that make or remove a name; `full` goes through.

use alloc::borrow::Cow;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::access;
use super::attr::Kind;
use super::dentry::Dentry;
use super::inode::{Inode, Link};
use super::mount::{self, Mount};
use mm::Errno;

/// Longest path, its NUL included.
pub const PATH_MAX: usize = 4096;
/// Longest component.
pub const NAME_MAX: usize = 255;
const MAX_LINKS: u32 = 40;

/// A place in the tree: a dentry and the mount it was reached through.
#[derive(Clone)]
pub struct Path {
    pub mnt: Arc<Mount>,
    pub dentry: Arc<Dentry>,
}

impl Path {
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }

    pub fn same(&self, other: &Path) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mnt, &other.mnt)
    }

    /// A path for a file outside every tree.
    pub fn unnamed(inode: Arc<dyn Inode>, name: &[u8], deleted: bool) -> Path {
        Path {
            mnt: mount::unnamed(),
            dentry: Dentry::unnamed(inode, name, deleted),
        }
    }

    /// The mounts on top of this place.
    fn covered(mut self) -> Path {
        while self.dentry.is_mountpoint() {
            match mount::covering(&self) {
                Some(top) => self = top,
                None => break,
            }
        }
        self
    }

    /// One step up, not above `root`.
    fn up(self, root: &Path) -> Path {
        let mut at = self;
        loop {
            if at.same(root) {
                return at;
            }
            if !Arc::ptr_eq(&at.dentry, &at.mnt.root) {
                let Some(parent) = at.dentry.parent() else {
                    return at;
                };
                at.dentry = parent;
                return at.covered();
            }
            match at.mnt.at() {
                Some(below) => at = below,
                None => return at,
            }
        }
    }

    /// The path as text, seen from `root`. The flag is false when it does not lead there.
    pub fn text(&self, root: &Path) -> (Vec<u8>, bool) {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut len = 0;
        let mut at = self.clone();
        let reached = loop {
            // Longer than any path that a call takes or gives: callers refuse it by its length.
            if at.same(root) || len > 2 * PATH_MAX {
                break true;
            }
            if Arc::ptr_eq(&at.dentry, &at.mnt.root) {
                match at.mnt.at() {
                    Some(below) => at = below,
                    None => break false,
                }
                continue;
            }
            let name = at.dentry.name();
            len += name.len() + 1;
            names.push(name);
            match at.dentry.parent() {
                Some(parent) => at.dentry = parent,
                None => {
                    // Outside every tree: the name is the whole text.
                    let only = names.pop().unwrap_or_default();
                    return (only, true);
                }
            }
        };
        let mut text = Vec::new();
        for name in names.iter().rev() {
            text.push(b'/');
            text.extend_from_slice(name);
        }
        if text.is_empty() {
            text.push(b'/');
        }
        (text, reached)
    }

    /// As /proc shows it: the text, with a mark when the name is gone.
    pub fn display(&self, root: &Path) -> Vec<u8> {
        let (mut text, _) = self.text(root);
        if self.dentry.is_unlinked() {
            text.extend_from_slice(b" (deleted)");
        }
        text
    }
}

/// The restrictions of `openat2`.
#[derive(Clone, Copy, Default)]
pub struct Limits {
    pub no_symlinks: bool,
    pub no_magic: bool,
    pub no_xdev: bool,
    /// Not above the start, by `..`, by an absolute path or by a jump.
    pub beneath: bool,
}

/// The last component of a path whose parent was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    /// A name, and whether slashes followed it.
    Name(Vec<u8>, bool),
    /// The path ended in `.`, `..` or was `/`: there is no name to make or remove.
    Dot,
    DotDot,
    Root,
}

/// A walk in progress.
pub struct Walk {
    root: Path,
    at: Path,
    links: u32,
    limits: Limits,
    /// Every directory may be searched: the caller has root's capabilities.
    privileged: bool,
}

/// The first component of `path` and what follows it, leading slashes skipped.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let start = path.iter().position(|c| *c != b'/').unwrap_or(path.len());
    let path = &path[start..];
    let end = path.iter().position(|c| *c == b'/').unwrap_or(path.len());
    path.split_at(end)
}

impl Walk {
    /// A walk from `start`, for a caller whose root is `root`.
    pub fn new(root: Path, start: Path) -> Self {
        Walk {
            root,
            at: start,
            links: 0,
            limits: Limits::default(),
            privileged: access::overrides(),
        }
    }

    pub fn limited(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Walks all of `path`; the last component's symbolic link is followed when `follow` says so.
    pub fn full(mut self, path: &[u8], follow: bool) -> Result<Path, Errno> {
        let mut path = Cow::Borrowed(path);
        loop {
            let last = self.parent_of(&path)?;
            let (name, slash) = match last {
                Last::Name(name, slash) => (name, slash),
                Last::DotDot => {
                    self.step_up()?;
                    return Ok(self.at);
                }
                Last::Dot | Last::Root => return Ok(self.at),
            };
            match self.last(&name, follow || slash)? {
                Some(mut target) => {
                    if slash {
                        target.push(b'/');
                    }
                    path = Cow::Owned(target);
                }
                None if slash && !self.at.dentry.is_dir() => return Err(Errno::ENOTDIR),
                None => return Ok(self.at),
            }
        }
    }

    /// Walks to the directory that holds the last component of `path`.
    pub fn parent(mut self, path: &[u8]) -> Result<(Path, Last), Errno> {
        let last = self.parent_of(path)?;
        Ok((self.at, last))
    }

    /// As `parent`, keeping the walk for `last`.
    pub fn parent_of(&mut self, path: &[u8]) -> Result<Last, Errno> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut path = Cow::Borrowed(path);
        let mut from = 0;
        if path[0] == b'/' {
            self.jump_to_root()?;
        }
        loop {
            let (name, rest) = split(&path[from..]);
            if name.is_empty() {
                return Ok(Last::Root);
            }
            if !self.at.dentry.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            if name.len() > NAME_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            if rest.iter().all(|c| *c == b'/') {
                return Ok(match name {
                    b"." => Last::Dot,
                    b".." => Last::DotDot,
                    _ => Last::Name(name.to_vec(), !rest.is_empty()),
                });
            }
            let next = path.len() - rest.len();
            match name {
                b"." => {}
                b".." => self.step_up()?,
                _ => {
                    let name = name.to_vec();
                    if let Some(mut target) = self.last(&name, true)? {
                        target.push(b'/');
                        target.extend_from_slice(&path[next..]);
                        if target[0] == b'/' {
                            self.jump_to_root()?;
                        }
                        path = Cow::Owned(target);
                        from = 0;
                        continue;
                    }
                }
            }
            from = next;
        }
    }

    /// Steps to `name`, if it exists. A symbolic link is, with `follow`, not stepped to: its text comes back, to be
    /// walked from here (it is relative to the directory we stand in). A magic link jumps.
    pub fn last(&mut self, name: &[u8], follow: bool) -> Result<Option<Vec<u8>>, Errno> {
        self.search()?;
        let dentry = self.at.dentry.child(name)?;
        if dentry.kind() == Kind::Symlink && follow {
            self.links += 1;
            if self.links > MAX_LINKS || self.limits.no_symlinks {
                return Err(Errno::ELOOP);
            }
            match dentry.inode().readlink()? {
                Link::Text(t) if t.is_empty() => return Err(Errno::ENOENT),
                Link::Text(t) => return Ok(Some(t)),
                Link::Jump(_) if self.limits.no_magic => return Err(Errno::ELOOP),
                Link::Jump(_) if self.limits.beneath => return Err(Errno::EXDEV),
                Link::Jump(to) => {
                    self.moved(to)?;
                    return Ok(None);
                }
            }
        }
        let to = Path {
            mnt: self.at.mnt.clone(),
            dentry,
        }
        .covered();
        self.moved(to)?;
        Ok(None)
    }

    /// Where the walk stands.
    pub fn here(&self) -> &Path {
        &self.at
    }

    pub fn into_path(self) -> Path {
        self.at
    }

    fn step_up(&mut self) -> Result<(), Errno> {
        if self.limits.beneath && self.at.same(&self.root) {
            return Err(Errno::EXDEV);
        }
        self.search()?;
        let to = self.at.clone().up(&self.root);
        self.moved(to)
    }

    /// Whether we stand at a directory that the caller may search.
    fn search(&self) -> Result<(), Errno> {
        if !self.at.dentry.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if self.privileged {
            Ok(())
        } else {
            access::may(&self.at.inode().attr(), access::EXEC)
        }
    }

    fn jump_to_root(&mut self) -> Result<(), Errno> {
        if self.limits.beneath {
            return Err(Errno::EXDEV);
        }
        let to = self.root.clone();
        self.moved(to)
    }

    fn moved(&mut self, to: Path) -> Result<(), Errno> {
        if self.limits.no_xdev && !Arc::ptr_eq(&to.mnt, &self.at.mnt) {
            return Err(Errno::EXDEV);
        }
        self.at = to;
        Ok(())
    }
}
