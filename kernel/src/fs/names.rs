//! Calls that make, move and remove names; opening by path. What `*at` system calls share.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use linux_raw_sys::general as sys;

use super::access;
use super::attr::Kind;
use super::caller;
use super::dentry::Dentry;
use super::file::File;
use super::inode::Inode;
use super::mount;
use super::path::{Last, Limits, Path, Walk};
use crate::sync::Mutex;
use mm::Errno;

/// Held while directories move: two moves at once could make a cycle.
static RENAME: Mutex<()> = Mutex::new(());

/// Where `path` starts: the root, the working directory, or the directory `dirfd`.
pub fn start(dirfd: i32, path: &[u8]) -> Result<Walk, Errno> {
    let fs = caller::fs();
    let root = fs.root();
    let at = if path.first() == Some(&b'/') {
        root.clone()
    } else if dirfd == sys::AT_FDCWD {
        fs.cwd()
    } else {
        let file = caller::files().get(dirfd)?;
        if !path.is_empty() && !file.dentry().is_dir() {
            return Err(Errno::ENOTDIR);
        }
        file.path().clone()
    };
    Ok(Walk::new(root, at))
}

/// The file at `path`. `AT_EMPTY_PATH` with an empty path is `dirfd` itself.
pub fn resolve(dirfd: i32, path: &[u8], follow: bool, empty_ok: bool) -> Result<Path, Errno> {
    let walk = start(dirfd, path)?;
    if path.is_empty() && empty_ok {
        return Ok(walk.into_path());
    }
    walk.full(path, follow)
}

/// A path of the kernel's own, from the root of the tree.
pub fn lookup_kernel(path: &[u8]) -> Result<Path, Errno> {
    Walk::new(mount::root(), mount::root()).full(path, true)
}

/// Opens a program for execution: a regular file with an execute bit.
pub fn open_exec(
    dirfd: i32,
    path: &[u8],
    follow: bool,
    empty_ok: bool,
) -> Result<Arc<File>, Errno> {
    let place = resolve(dirfd, path, follow, empty_ok)?;
    match place.dentry.kind() {
        Kind::Regular => {}
        Kind::Symlink => return Err(Errno::ELOOP),
        _ => return Err(Errno::EACCES),
    }
    let noexec = place.mnt.flags.load(core::sync::atomic::Ordering::Relaxed) & sys::MS_NOEXEC != 0;
    if noexec {
        return Err(Errno::EACCES);
    }
    access::may(&place.inode().attr(), access::EXEC)?;
    File::open_to_run(place)
}

pub fn writable(dir: &Path) -> Result<(), Errno> {
    if dir.mnt.read_only() || dir.inode().read_only() {
        Err(Errno::EROFS)
    } else {
        Ok(())
    }
}

/// The directory and the name that a call is to make. A trailing slash is for directories only.
fn new_name(dirfd: i32, path: &[u8], dir: bool) -> Result<(Path, alloc::vec::Vec<u8>), Errno> {
    let (parent, last) = start(dirfd, path)?.parent(path)?;
    match last {
        Last::Name(name, slash) => {
            if !parent.dentry.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            if slash && !dir {
                // "name/" exists as a directory, or cannot be made as anything else.
                return Err(if parent.dentry.child(&name).is_ok() {
                    Errno::EEXIST
                } else {
                    Errno::ENOENT
                });
            }
            if parent.dentry.child(&name).is_ok() {
                return Err(Errno::EEXIST);
            }
            writable(&parent)?;
            access::may_change(&parent.dentry)?;
            Ok((parent, name))
        }
        _ => Err(Errno::EEXIST),
    }
}

/// mknod, mkdir, and regular files that must not exist.
pub fn make(dirfd: i32, path: &[u8], mode: u32, rdev: u64) -> Result<(), Errno> {
    let (parent, name) = new_name(dirfd, path, Kind::of_mode(mode) == Some(Kind::Directory))?;
    let mode = mode & !caller::fs().umask();
    parent
        .dentry
        .make(&name, |d| d.create(&name, mode, rdev))
        .map(drop)
}

pub fn symlink(target: &[u8], dirfd: i32, path: &[u8]) -> Result<(), Errno> {
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let (parent, name) = new_name(dirfd, path, false)?;
    parent
        .dentry
        .make(&name, |d| d.symlink(&name, target))
        .map(drop)
}

pub fn link(from: Path, dirfd: i32, path: &[u8]) -> Result<(), Errno> {
    let (parent, name) = new_name(dirfd, path, false)?;
    if !Arc::ptr_eq(&from.mnt, &parent.mnt) {
        return Err(Errno::EXDEV);
    }
    if from.dentry.is_dir() {
        return Err(Errno::EPERM);
    }
    parent.dentry.link(&name, from.inode())
}

/// unlink, or rmdir with `dir`.
pub fn unlink(dirfd: i32, path: &[u8], dir: bool) -> Result<(), Errno> {
    let (parent, last) = start(dirfd, path)?.parent(path)?;
    let (name, slash) = match (last, dir) {
        (Last::Name(name, slash), _) => (name, slash),
        (Last::Dot, true) => return Err(Errno::EINVAL),
        (Last::DotDot, true) => return Err(Errno::ENOTEMPTY),
        (Last::Root, true) => return Err(Errno::EBUSY),
        (_, false) => return Err(Errno::EISDIR),
    };
    if !parent.dentry.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let child = parent.dentry.child(&name)?;
    if slash && !dir {
        return Err(if child.is_dir() {
            Errno::EISDIR
        } else {
            Errno::ENOTDIR
        });
    }
    writable(&parent)?;
    access::may_remove(&parent.dentry, &child)?;
    // `child` lives until after the locks, so the inode is dropped here and not inside.
    parent.dentry.unlink(&name, dir)
}

/// renameat2.
pub fn rename(from: (i32, &[u8]), to: (i32, &[u8]), flags: u32) -> Result<(), Errno> {
    const NOREPLACE: u32 = sys::RENAME_NOREPLACE;
    const EXCHANGE: u32 = sys::RENAME_EXCHANGE;
    if flags & !(NOREPLACE | EXCHANGE) != 0 || flags == NOREPLACE | EXCHANGE {
        return Err(Errno::EINVAL);
    }
    let (old_dir, old) = start(from.0, from.1)?.parent(from.1)?;
    let (new_dir, new) = start(to.0, to.1)?.parent(to.1)?;
    let (Last::Name(old, old_slash), Last::Name(new, new_slash)) = (old, new) else {
        return Err(if flags & NOREPLACE != 0 {
            Errno::EEXIST
        } else {
            Errno::EBUSY
        });
    };
    if !Arc::ptr_eq(&old_dir.mnt, &new_dir.mnt) {
        return Err(Errno::EXDEV);
    }
    if !old_dir.dentry.is_dir() || !new_dir.dentry.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    writable(&old_dir)?;
    let _one = RENAME.lock();
    let moved = old_dir.dentry.child(&old)?;
    let target = match new_dir.dentry.child(&new) {
        Ok(d) => Some(d),
        Err(Errno::ENOENT) => None,
        Err(e) => return Err(e),
    };
    access::may_remove(&old_dir.dentry, &moved)?;
    match &target {
        Some(t) => access::may_remove(&new_dir.dentry, t)?,
        None => access::may_change(&new_dir.dentry)?,
    }
    if target.is_some() && flags & NOREPLACE != 0 {
        return Err(Errno::EEXIST);
    }
    if target.is_none() && flags & EXCHANGE != 0 {
        return Err(Errno::ENOENT);
    }
    if !moved.is_dir() && (old_slash || new_slash && flags & EXCHANGE == 0) {
        return Err(Errno::ENOTDIR);
    }
    // A directory into itself, or one that would replace its own ancestor.
    if moved.is_ancestor_of(&new_dir.dentry) {
        return Err(Errno::EINVAL);
    }
    if let Some(t) = &target {
        if t.is_ancestor_of(&old_dir.dentry) {
            return Err(if flags & EXCHANGE != 0 {
                Errno::EINVAL
            } else {
                Errno::ENOTEMPTY
            });
        }
        if Arc::ptr_eq(t.inode(), moved.inode()) {
            // Two names of one file: nothing to do.
            return Ok(());
        }
    }
    Dentry::rename(
        &old_dir.dentry,
        &old,
        &new_dir.dentry,
        &new,
        flags & EXCHANGE != 0,
    )
}

/// What `open` was asked for.
pub struct OpenHow {
    pub flags: u32,
    pub mode: u32,
    pub limits: Limits,
    /// The start is the root for this walk (RESOLVE_IN_ROOT, RESOLVE_BENEATH).
    pub in_root: bool,
}

/// open, openat, openat2.
pub fn open(dirfd: i32, path: &[u8], how: &OpenHow) -> Result<Arc<File>, Errno> {
    let flags = how.flags;
    let mut walk = start(dirfd, path)?;
    if how.in_root {
        let base = match path.first() {
            Some(b'/') if how.limits.beneath => return Err(Errno::EXDEV),
            Some(b'/') => start(dirfd, b".")?.into_path(),
            _ => walk.into_path(),
        };
        walk = Walk::new(base.clone(), base);
    }
    let walk = walk.limited(how.limits);
    if flags & TMPFILE_BIT != 0 {
        return open_unnamed(walk.full(path, true)?, how);
    }
    let follow = flags & sys::O_NOFOLLOW == 0
        && (flags & (sys::O_CREAT | sys::O_EXCL) != sys::O_CREAT | sys::O_EXCL);
    if flags & sys::O_CREAT == 0 || flags & sys::O_PATH != 0 {
        return finish(walk.full(path, follow)?, how, false);
    }
    create(walk, path, follow, how)
}

/// O_TMPFILE without the O_DIRECTORY that comes with it.
const TMPFILE_BIT: u32 = sys::O_TMPFILE & !sys::O_DIRECTORY;

/// open with O_CREAT: the last component may be missing, or be a link to what is missing.
fn create(mut walk: Walk, path: &[u8], follow: bool, how: &OpenHow) -> Result<Arc<File>, Errno> {
    let mut path = alloc::borrow::Cow::Borrowed(path);
    loop {
        let (name, slash) = match walk.parent_of(&path)? {
            Last::Name(name, slash) => (name, slash),
            _ => return Err(Errno::EISDIR),
        };
        match walk.last(&name, follow) {
            Ok(Some(target)) => path = alloc::borrow::Cow::Owned(target),
            Ok(None) if slash => return Err(Errno::EISDIR),
            Ok(None) if how.flags & sys::O_EXCL != 0 => return Err(Errno::EEXIST),
            Ok(None) => return finish(walk.into_path(), how, false),
            Err(Errno::ENOENT) if slash => return Err(Errno::EISDIR),
            Err(Errno::ENOENT) => {
                let dir = walk.here().clone();
                writable(&dir)?;
                access::may_change(&dir.dentry)?;
                let mode = how.mode & 0o7777 & !caller::fs().umask() | Kind::Regular.bits();
                match dir.dentry.make(&name, |d| d.create(&name, mode, 0)) {
                    Ok(dentry) => {
                        return finish(
                            Path {
                                mnt: dir.mnt,
                                dentry,
                            },
                            how,
                            true,
                        );
                    }
                    // Somebody else made it meanwhile: look again.
                    Err(Errno::EEXIST) if how.flags & sys::O_EXCL == 0 => {
                        path = alloc::borrow::Cow::Owned(name);
                    }
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        }
    }
}

fn finish(place: Path, how: &OpenHow, created: bool) -> Result<Arc<File>, Errno> {
    let flags = how.flags;
    let kind = place.dentry.kind();
    if flags & sys::O_DIRECTORY != 0 && kind != Kind::Directory {
        return Err(Errno::ENOTDIR);
    }
    if flags & sys::O_PATH != 0 {
        return File::open(place, flags);
    }
    let writes = flags & sys::O_ACCMODE != sys::O_RDONLY;
    match kind {
        Kind::Symlink => return Err(Errno::ELOOP),
        Kind::Directory if writes || flags & (sys::O_CREAT | sys::O_TRUNC) != 0 => {
            return Err(Errno::EISDIR);
        }
        Kind::Socket => return Err(Errno::ENXIO),
        _ => {}
    }
    let changes = writes || flags & sys::O_TRUNC != 0;
    if changes && matches!(kind, Kind::Regular | Kind::Directory) {
        writable(&place)?;
    }
    if !created {
        let reads = if flags & sys::O_ACCMODE != sys::O_WRONLY {
            access::READ
        } else {
            0
        };
        let want = reads | if changes { access::WRITE } else { 0 };
        if !access::overrides() {
            access::may(&place.inode().attr(), want)?;
        }
        if flags & sys::O_NOATIME != 0 {
            access::owner(&place.inode().attr())?;
        }
    }
    let inode = place.inode().clone();
    let file = File::open(place, flags)?;
    if flags & sys::O_TRUNC != 0 && kind == Kind::Regular && !created {
        super::file::not_running(&inode)?;
        inode.truncate(0)?;
    }
    Ok(file)
}

fn open_unnamed(dir: Path, how: &OpenHow) -> Result<Arc<File>, Errno> {
    if !dir.dentry.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if how.flags & sys::O_ACCMODE == sys::O_RDONLY {
        return Err(Errno::EINVAL);
    }
    writable(&dir)?;
    access::may_change(&dir.dentry)?;
    let mode = how.mode & 0o7777 & !caller::fs().umask() | Kind::Regular.bits();
    let inode: Arc<dyn Inode> = dir.inode().create_unnamed(mode)?;
    // Shown as if it had been a file of the directory.
    let mut name = dir.display(&super::mount::root());
    if name.last() != Some(&b'/') {
        name.push(b'/');
    }
    name.extend_from_slice(alloc::format!("#{}", inode.attr().ino).as_bytes());
    let place = Path {
        mnt: dir.mnt,
        dentry: Dentry::unnamed(inode, &name, true),
    };
    File::open(place, how.flags)
}
