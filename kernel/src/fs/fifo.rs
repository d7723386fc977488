//! Pipes as files: the inode of a pipe made by `pipe`, and FIFOs, whose pipe lasts as long as it is open.

use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::sync::atomic::Ordering;
use linux_raw_sys::general as sys;
use spin::Mutex as Spin;

use super::attr::{Attr, AttrChange, Kind};
use super::inode::{FileOps, FsStat, Inode};
use super::path::Path;
use super::pipe::{Pipe, PipeEnd, ends};
use crate::task::Sleep;
use mm::Errno;

/// The inode of a pipe made by `pipe`: opening it again (/proc/PID/fd/N) gives another end.
pub struct PipeNode(Arc<Pipe>);

impl PipeNode {
    pub fn inode(pipe: &Arc<Pipe>) -> Arc<dyn Inode> {
        Arc::new(PipeNode(pipe.clone()))
    }
}

impl Inode for PipeNode {
    fn attr(&self) -> Attr {
        self.0.attrs.get(0, 0)
    }

    fn kind(&self) -> Kind {
        Kind::Fifo
    }

    fn set_attr(&self, change: &AttrChange) -> Result<(), Errno> {
        self.0.attrs.set(change);
        Ok(())
    }

    fn statfs(&self) -> FsStat {
        FsStat {
            magic: 0x5049_5045,
            blocks: 0,
            free: 0,
            files: 0,
            files_free: 0,
        }
    }

    fn open(self: Arc<Self>, _path: &Path, flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        Ok(PipeEnd::open(&self.0, flags))
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The body of a FIFO's inode: its pipe exists while it is open.
pub struct Fifo(Spin<Weak<Pipe>>);

impl Default for Fifo {
    fn default() -> Self {
        Self::new()
    }
}

impl Fifo {
    pub fn new() -> Self {
        Fifo(Spin::new(Weak::new()))
    }

    /// Opens an end and waits for the other kind, as POSIX wants it.
    pub fn open(&self, flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        let fresh = Pipe::new()?;
        let pipe = {
            let mut slot = self.0.lock();
            match slot.upgrade() {
                Some(p) => p,
                None => {
                    *slot = Arc::downgrade(&fresh);
                    fresh
                }
            }
        };
        let (reads, writes) = ends(flags);
        let nonblock = flags & sys::O_NONBLOCK != 0;
        if writes && !reads && nonblock && Pipe::gone(&pipe.readers) {
            return Err(Errno::ENXIO);
        }
        let (queue, peers, opens) = if reads {
            (&pipe.read_wait, &pipe.writers, &pipe.writer_opens)
        } else {
            (&pipe.write_wait, &pipe.readers, &pipe.reader_opens)
        };
        let before = opens.load(Ordering::SeqCst);
        let end = PipeEnd::open(&pipe, flags);
        if reads != writes && !nonblock {
            let alone = || Pipe::gone(peers) && opens.load(Ordering::SeqCst) == before;
            if queue.wait_while(Sleep::Interruptible, None, alone).is_err() {
                pipe.leave(reads, writes);
                return Err(Errno::ERESTARTSYS);
            }
        }
        Ok(end)
    }
}
