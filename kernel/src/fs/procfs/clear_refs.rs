//! /proc/PID/clear_refs: a number says what is to be forgotten about the process's pages.
#![forbid(unsafe_code)]

use alloc::sync::Arc;

use mm::Errno;
use mm::ops::{self, ClearRefs};

use super::super::file::File;
use super::super::inode::FileOps;
use super::super::iobuf::IoBuf;
use super::process::Target;
use crate::SysResult;
use crate::task::space::can_wait;

struct Writer(Target);

/// Opens a process's.
pub fn open(target: &Target) -> Result<Arc<dyn FileOps>, Errno> {
    target.process()?;
    Ok(Arc::new(Writer(*target)))
}

impl FileOps for Writer {
    fn write(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let mut bytes = [0u8; 12];
        let n = buf.take(&mut bytes)?;
        let text = core::str::from_utf8(&bytes[..n]).map_err(|_| Errno::EINVAL)?;
        let what = match text.trim_ascii().parse::<i32>() {
            Ok(1) => ClearRefs::All,
            Ok(2) => ClearRefs::Anon,
            Ok(3) => ClearRefs::Mapped,
            Ok(4) => ClearRefs::SoftDirty,
            Ok(5) => ClearRefs::PeakRss,
            _ => return Err(Errno::EINVAL),
        };
        let process = self.0.process()?;
        // A process without memory has nothing to forget.
        if let Some(space) = process.space() {
            ops::clear_refs(&space, &mut can_wait(), what)?;
        }
        *pos += n as u64;
        Ok(n)
    }
}
