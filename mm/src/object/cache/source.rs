//! Where an object's pages come from and go: what a file system or a disk implements, and the pages that it is given.

use super::FileObject;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::errno::Errno;
use crate::phys::{FolioRef, Frame, Hw, Owned};
use crate::wait::CanWait;
use alloc::sync::Arc;

/// Where an object's pages come from, and where they go. All calls sleep, and may come from several threads at once.
pub trait Source<H: Hw>: Send + Sync {
    /// Fills the frames with the pages from `first` on, as far as the object goes; the rest of its last page is zeroes
    /// already. Nobody writes to them after it returned. No lock is held. `EIO`; `ENOMEM`: what is free is needed elsewhere.
    fn read(&self, wait: &mut CanWait<H>, first: u64, into: &Unfilled) -> Result<(), Errno>;
    /// Whether pages are written back. Asked once.
    fn writable(&self) -> bool {
        false
    }
    /// `count` pages from `first` on are about to become dirty: the source makes sure that it has a place for them, and here
    /// waits who makes pages dirty faster than they are written. The caller holds at most what orders its own writes: no
    /// lock of this crate. `ENOSPC`, `EIO`: they do not become dirty.
    fn prepare(&self, _wait: &mut CanWait<H>, _first: u64, _count: u64) -> Result<(), Errno> {
        Ok(())
    }
    /// The object has dirty pages and had none since [`FileObject::unlist`]: to be kept until they are written. No lock is
    /// held; does not sleep.
    fn dirtied(&self, _object: Arc<FileObject<H>>) {}
    /// What was written before stays, whatever happens to the machine. No lock is held. `EIO`.
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
    /// Writes the first `len` bytes of pages from `first` on; `len` ends within the last of them only at the object's end.
    /// `resize` is held for writing: no truncation and no other `write` of the object runs; reads and `prepare` do.
    /// `EIO`, `ENOSPC`: the pages count as written, and who asks for the object's data (`fsync`) is told once. `ENOMEM`: they stay
    /// dirty.
    fn write(
        &self,
        _wait: &mut CanWait<H>,
        _first: u64,
        _pages: &Dirty<H>,
        _len: u64,
    ) -> Result<(), Errno> {
        Err(Errno::EIO)
    }
}

/// Pages on their way to a source: clean, and perhaps being written again by their users, which makes them dirty again.
pub struct Dirty<H: Hw> {
    pub(crate) pages: [Option<FolioRef<H>>; WINDOW],
}

impl<H: Hw> Dirty<H> {
    /// Which frames, in the order of their pages.
    pub fn pfns(&self) -> impl Iterator<Item = Pfn> {
        self.pages.iter().flatten().map(|page| page.pfn())
    }

    /// That of page `n`.
    pub fn pfn(&self, n: usize) -> Option<Pfn> {
        Some(self.pages.get(n)?.as_ref()?.pfn())
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.pfns().count() as u64 * PAGE_SIZE
    }

    /// Copies bytes of one page, from the `skip`th of all on.
    pub fn copy(&self, skip: u64, out: &mut [u8]) {
        let at = (skip & (PAGE_SIZE - 1)) as usize;
        let page = self.pages.get((skip >> PAGE_SHIFT) as usize);
        let Some(page) = page.and_then(Option::as_ref) else {
            return;
        };
        let len = out.len().min(PAGE_SIZE as usize - at);
        // SAFETY: inside the page's 4096 bytes, which our reference keeps; others may write it meanwhile, as through a
        // shared mapping: bytes are copied as they are.
        unsafe { core::ptr::copy_nonoverlapping(page.ptr().add(at), out.as_mut_ptr(), len) };
    }
}

/// Pages that are read in at once, an aligned window.
pub const WINDOW: usize = 16;

/// Pages that are read in because somebody says that he will need them.
pub const AHEAD: u64 = 512;

/// Frames that wait for their content.
pub struct Unfilled {
    pub(super) frames: [Option<Frame<Owned>>; WINDOW],
}

impl Unfilled {
    /// Which, in the order of their pages.
    pub fn pfns(&self) -> impl Iterator<Item = Pfn> {
        self.frames.iter().flatten().map(Frame::pfn)
    }

    /// That of page `n`.
    pub fn pfn(&self, n: usize) -> Option<Pfn> {
        Some(self.frames.get(n)?.as_ref()?.pfn())
    }

    /// Zeroes `len` bytes after the first `skip`, as far as there are frames.
    pub fn clear<H: Hw>(&self, hw: H, skip: u64, len: u64) {
        let (mut at, mut left) = (skip & (PAGE_SIZE - 1), len);
        for pfn in self.pfns().skip((skip >> PAGE_SHIFT) as usize) {
            let n = left.min(PAGE_SIZE - at);
            // SAFETY: inside the 4096 bytes of a frame that is ours and that nobody else has yet.
            unsafe {
                hw.frame_ptr(pfn)
                    .add(at as usize)
                    .write_bytes(0, n as usize)
            };
            (at, left) = (0, left - n);
        }
    }
}
