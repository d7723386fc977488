//! The mount table: which file system stands on which directory.
//!
//! One namespace. A mount covers the dentry it stands on, in the mount that dentry was reached through; the
//! latest one on a place is on top. `MOUNTS` is taken before nothing: look up, clone, let go.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use spin::{Mutex as Spin, Once};

use super::dentry::Dentry;
use super::path::Path;
use super::tmpfs;
use mm::Errno;

/// A file system in the tree.
pub struct Mount {
    /// Unique number, as `statx` and `mountinfo` show it.
    pub id: u64,
    /// The dentry that stands in the place of the one covered.
    pub root: Arc<Dentry>,
    /// File system type.
    pub fstype: &'static str,
    /// What was mounted, as the caller named it.
    pub source: String,
    /// MS_RDONLY, MS_NOSUID, ...
    pub flags: AtomicU32,
    at: Spin<Option<Path>>,
}

/// A mount's options that are kept and shown.
pub const KEPT_FLAGS: u32 = {
    use linux_raw_sys::general::{
        MS_NOATIME, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_RELATIME,
    };
    MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_RELATIME
};

static MOUNTS: Spin<Vec<Arc<Mount>>> = Spin::new(Vec::new());
static ROOT: Once<Path> = Once::new();
static UNNAMED: Once<Arc<Mount>> = Once::new();

impl Mount {
    fn new(root: Arc<Dentry>, fstype: &'static str, source: &str, flags: u32) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        root.inode().mounted(1);
        Arc::new(Mount {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            root,
            fstype,
            source: String::from(source),
            flags: AtomicU32::new(flags & KEPT_FLAGS),
            at: Spin::new(None),
        })
    }

    /// Where the mount stands; `None` for the root and what is outside the tree.
    pub fn at(&self) -> Option<Path> {
        self.at.lock().clone()
    }

    /// Whether writing through this mount fails with EROFS.
    pub fn read_only(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & linux_raw_sys::general::MS_RDONLY != 0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.root.inode().mounted(-1);
    }
}

/// The root of the tree: an empty tmpfs from its first use on, which is before the archive is unpacked.
pub fn root() -> Path {
    let make = || {
        let mnt = Mount::new(Dentry::root(tmpfs::new_root(0o755)), "tmpfs", "tmpfs", 0);
        MOUNTS.lock().push(mnt.clone());
        let dentry = mnt.root.clone();
        Path { mnt, dentry }
    };
    ROOT.call_once(make).clone()
}

/// The mount that files outside every tree belong to.
pub fn unnamed() -> Arc<Mount> {
    UNNAMED
        .call_once(|| Mount::new(root().dentry, "anon_inodefs", "none", 0))
        .clone()
}

/// Mounts `root` on `at`.
pub fn attach(
    at: Path,
    root: Arc<Dentry>,
    fstype: &'static str,
    source: &str,
    flags: u32,
) -> Result<(), Errno> {
    if at.dentry.is_dir() != root.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let mnt = Mount::new(root, fstype, source, flags);
    let mut table = MOUNTS.lock();
    if table.len() >= 100_000 {
        return Err(Errno::ENOSPC);
    }
    table.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    at.dentry.mount_count().fetch_add(1, Ordering::AcqRel);
    *mnt.at.lock() = Some(at);
    table.push(mnt);
    Ok(())
}

/// Takes down the mount whose root is `path`. Without `lazy` EBUSY while anything uses it.
pub fn detach(path: Path, lazy: bool) -> Result<(), Errno> {
    let mnt = path.mnt.clone();
    if !Arc::ptr_eq(&path.dentry, &mnt.root) || mnt.at.lock().is_none() {
        return Err(Errno::EINVAL);
    }
    drop(path);
    let mut table = MOUNTS.lock();
    let covered = |m: &Arc<Mount>| {
        m.at.lock()
            .as_ref()
            .is_some_and(|p| Arc::ptr_eq(&p.mnt, &mnt))
    };
    if !lazy {
        // The table's reference and ours; every path inside holds one more.
        let child_mounts = table.iter().any(covered);
        if child_mounts || Arc::strong_count(&mnt) > 2 {
            return Err(Errno::EBUSY);
        }
    }
    let Some(i) = table.iter().position(|m| Arc::ptr_eq(m, &mnt)) else {
        return Err(Errno::EINVAL);
    };
    let mut gone = Vec::from([table.remove(i)]);
    // Lazily, what is mounted further down leaves the tree with it.
    let mut n = 0;
    while n < gone.len() {
        let above = gone[n].clone();
        let mut i = 0;
        while i < table.len() {
            let inside = table[i]
                .at
                .lock()
                .as_ref()
                .is_some_and(|p| Arc::ptr_eq(&p.mnt, &above));
            if inside {
                gone.push(table.remove(i));
            } else {
                i += 1;
            }
        }
        n += 1;
    }
    drop(table);
    for m in &gone {
        let at = m.at.lock().take();
        if let Some(p) = &at {
            p.dentry.mount_count().fetch_sub(1, Ordering::AcqRel);
        }
    }
    Ok(())
}

/// The top mount that stands exactly on `path`, as the path of its root.
pub fn covering(path: &Path) -> Option<Path> {
    let table = MOUNTS.lock();
    let m = table.iter().rev().find(|m| {
        m.at.lock()
            .as_ref()
            .is_some_and(|p| Arc::ptr_eq(&p.dentry, &path.dentry) && Arc::ptr_eq(&p.mnt, &path.mnt))
    })?;
    Some(Path {
        mnt: m.clone(),
        dentry: m.root.clone(),
    })
}

/// All mounts, in the order they were made.
pub fn all() -> Vec<Arc<Mount>> {
    MOUNTS.lock().clone()
}
