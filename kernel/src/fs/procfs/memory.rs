//! /proc/PID/mem, a process's memory as a file, and /proc/PID/auxv.
//!
//! Who may open it may trace the process. The open file stays with the space that the process had then: after an
//! exec or the end there is nothing left in it.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

use super::super::caller;
use super::super::file::File;
use super::super::inode::FileOps;
use super::super::iobuf::IoBuf;
use super::super::pseudo::Text;
use super::process::Target;
use crate::SysResult;
use crate::task::Space;
use mm::Errno;

/// Bytes moved at a time.
const CHUNK: usize = 4096;

/// A new open file on the memory of a process.
pub fn open(target: &Target) -> Result<Arc<dyn FileOps>, Errno> {
    let process = target.process()?;
    caller::may_look_into(&process)?;
    let space = process
        .space()
        .map_or_else(Weak::new, |s| Arc::downgrade(&s));
    Ok(Arc::new(MemFile { space }))
}

struct MemFile {
    space: Weak<Space>,
}

impl MemFile {
    /// Moves bytes between the space and `buf`; `move_some` does one chunk.
    fn each(
        &self,
        buf: &mut IoBuf<'_>,
        pos: &mut u64,
        mut move_some: impl FnMut(&Space, &mut IoBuf<'_>, u64, &mut [u8]) -> SysResult,
    ) -> SysResult {
        let Some(space) = self.space.upgrade() else {
            return Ok(0);
        };
        let mut chunk = Vec::new();
        let size = CHUNK.min(buf.left());
        chunk.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
        chunk.resize(size, 0u8);
        let mut done = 0;
        while buf.left() > 0 {
            let n = buf.left().min(CHUNK);
            match move_some(&space, buf, *pos, &mut chunk[..n]) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    *pos += n as u64;
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
            if crate::task::fatal_signal_pending() {
                break;
            }
            crate::task::cond_resched();
        }
        Ok(done)
    }
}

impl FileOps for MemFile {
    fn has_end(&self) -> bool {
        false
    }

    fn read(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.each(buf, pos, |space, buf, at, chunk| {
            let n = space.peek(at, chunk).map_err(|_| Errno::EIO)?;
            buf.put(&chunk[..n])
        })
    }

    fn write(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.each(buf, pos, |space, buf, at, chunk| {
            let n = buf.take(chunk)?;
            space.poke(at, &chunk[..n]).map_err(|_| Errno::EIO)
        })
    }
}

/// The auxiliary vector that the program was started with.
pub fn auxv(target: &Target, out: &mut Text) -> fmt::Result {
    let Some(space) = target.process().ok().and_then(|p| p.space()) else {
        return Ok(());
    };
    let words = *space.auxv.lock();
    for pair in words.chunks_exact(2) {
        out.bytes(&pair[0].to_le_bytes())?;
        out.bytes(&pair[1].to_le_bytes())?;
        if pair[0] == 0 {
            break;
        }
    }
    Ok(())
}
