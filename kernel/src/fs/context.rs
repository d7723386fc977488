//! Where a process stands in the tree: root, working directory, umask.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};
use spin::Mutex as Spin;

use super::mount;
use super::path::Path;
use mm::Errno;

/// Shared by threads (CLONE_FS), copied by fork.
pub struct FsContext {
    places: Spin<Places>,
    umask: AtomicU32,
}

#[derive(Clone)]
struct Places {
    cwd: Path,
    root: Path,
}

impl FsContext {
    /// The first process's: everything at the root of the tree.
    pub fn at_root() -> Self {
        let root = mount::root();
        FsContext {
            places: Spin::new(Places {
                cwd: root.clone(),
                root,
            }),
            umask: AtomicU32::new(0o022),
        }
    }

    /// fork's copy.
    pub fn try_clone(&self) -> Result<Self, Errno> {
        let places = self.places.lock().clone();
        Ok(FsContext {
            places: Spin::new(places),
            umask: AtomicU32::new(self.umask()),
        })
    }

    pub fn cwd(&self) -> Path {
        self.places.lock().cwd.clone()
    }

    pub fn root(&self) -> Path {
        self.places.lock().root.clone()
    }

    pub fn set_cwd(&self, to: Path) {
        // The old one may be the last reference to its dentry: drop it without the lock.
        let old = core::mem::replace(&mut self.places.lock().cwd, to);
        drop(old);
    }

    pub fn set_root(&self, to: Path) {
        let old = core::mem::replace(&mut self.places.lock().root, to);
        drop(old);
    }

    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Sets the mask, returns the old one.
    pub fn set_umask(&self, mask: u32) -> u32 {
        self.umask.swap(mask & 0o777, Ordering::Relaxed)
    }
}
