//! Open files of ext4.

use linux_raw_sys::general as sys;
use mm::Errno;

use super::node::{Body, Node, Regular};
use crate::SysResult;
use crate::fs::file::File;
use crate::fs::inode::{DirSink, FileOps, Mappable};
use crate::fs::iobuf::IoBuf;
use crate::fs::mapped;
use crate::task::space::can_wait;

impl Node {
    fn file(&self) -> Result<&Regular, Errno> {
        match &self.body {
            Body::File(file) => Ok(file),
            Body::Dir => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// truncate.
    pub(super) fn cut(&self, _file: &Regular, _len: u64) -> Result<(), Errno> {
        Err(Errno::EROFS)
    }
}

impl FileOps for Node {
    fn read(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let regular = self.file()?;
        let n = regular.content.read(buf, pos)?;
        if file.flags() & sys::O_NOATIME == 0 {
            self.attrs.accessed();
        }
        Ok(n)
    }

    /// Not yet.
    fn write(&self, _file: &File, _buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        Err(Errno::EROFS)
    }

    fn mmap_write_denied(&self) -> bool {
        true
    }

    fn size(&self) -> u64 {
        self.file().map_or(0, |file| file.content.size())
    }

    fn is_dir(&self) -> bool {
        Node::is_dir(self)
    }

    fn readdir(&self, _file: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result<(), Errno> {
        self.entries(pos, sink)
    }

    fn splices_by_copy(&self) -> bool {
        !Node::is_dir(self)
    }

    fn mmap(&self, file: &File) -> Result<Mappable, Errno> {
        let object = self.file().map_err(|_| Errno::ENODEV)?.content.object();
        mapped::remember(object, file, self.attrs.dev(), self.attrs.ino());
        Ok(Mappable::Object(object.clone()))
    }

    fn fsync(&self) -> Result<(), Errno> {
        self.fs.sync()
    }

    fn advise(&self, range: core::ops::Range<u64>, needed: bool) {
        let Ok(file) = self.file() else { return };
        let object = file.content.object();
        if needed {
            let end = range.end.div_ceil(mm::PAGE_SIZE);
            object.read_ahead(&mut can_wait(), range.start / mm::PAGE_SIZE, end);
        } else {
            let first = range.start.div_ceil(mm::PAGE_SIZE);
            object.forget(&mut can_wait(), first, range.end / mm::PAGE_SIZE);
        }
    }
}
