//! Open tmpfs files and directories; memfd and its seals.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use linux_raw_sys::general as sys;

use super::super::attr::Kind;
use super::super::file::File;
use super::super::inode::{DirSink, FileOps, Inode, Mappable};
use super::super::iobuf::IoBuf;
use super::super::mapped;
use super::super::path::Path;
use super::super::pipe::PipeBuf;
use super::{Body, FIRST_COOKIE, Node};
use crate::SysResult;
use mm::Errno;

pub const F_SEAL_SEAL: u32 = 1;
pub const F_SEAL_SHRINK: u32 = 2;
pub const F_SEAL_GROW: u32 = 4;
pub const F_SEAL_WRITE: u32 = 8;
pub const F_SEAL_FUTURE_WRITE: u32 = 16;
pub const F_SEAL_EXEC: u32 = 32;
/// Every seal there is.
pub const SEALS_ALL: u32 =
    F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC;
const ANY_EXEC: u32 = 0o111;
const SEALED_WRITE: u32 = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;

impl Node {
    fn file(&self) -> Result<(&super::Content, &AtomicU32), Errno> {
        match &self.body {
            Body::File { content, seals, .. } => Ok((content, seals)),
            Body::Dir(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn set_len(&self, len: u64) -> Result<(), Errno> {
        let (content, seals) = self.file()?;
        let seals = seals.load(Ordering::Acquire);
        let size = content.size();
        if len < size && seals & F_SEAL_SHRINK != 0 || len > size && seals & F_SEAL_GROW != 0 {
            return Err(Errno::EPERM);
        }
        content.truncate(len)?;
        self.attrs.touch();
        Ok(())
    }

    /// F_GET_SEALS.
    pub fn seals(&self) -> Result<u32, Errno> {
        Ok(self
            .file()
            .map_err(|_| Errno::EINVAL)?
            .1
            .load(Ordering::Acquire))
    }

    /// F_ADD_SEALS.
    pub fn add_seals(&self, new: u32) -> Result<(), Errno> {
        let (content, seals) = self.file().map_err(|_| Errno::EINVAL)?;
        if new & !SEALS_ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let old = seals.load(Ordering::Acquire);
        if old & F_SEAL_SEAL != 0 {
            return Err(Errno::EPERM);
        }
        if new & F_SEAL_WRITE != 0
            && old & F_SEAL_WRITE == 0
            && content.object().has_writable_mappings()
        {
            return Err(Errno::EBUSY);
        }
        // A program that stays one stays as it is.
        let more = match new & F_SEAL_EXEC != 0 && self.attrs.get(0, 0).mode & ANY_EXEC != 0 {
            true => F_SEAL_SHRINK | F_SEAL_GROW | SEALED_WRITE,
            false => 0,
        };
        seals.fetch_or(new | more, Ordering::AcqRel);
        Ok(())
    }

    /// Whether permissions `new` would change what F_SEAL_EXEC keeps.
    pub(super) fn exec_sealed(&self, new: u32) -> bool {
        self.seals().is_ok_and(|s| s & F_SEAL_EXEC != 0)
            && (self.attrs.get(0, 0).mode ^ new) & ANY_EXEC != 0
    }

    /// Whether a shared writable mapping is refused.
    fn write_sealed(&self) -> bool {
        self.file()
            .is_ok_and(|(_, s)| s.load(Ordering::Acquire) & SEALED_WRITE != 0)
    }
}

impl FileOps for Node {
    fn read(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let (content, _) = self.file()?;
        let n = content.read(buf, pos)?;
        if file.flags() & sys::O_NOATIME == 0 {
            self.attrs.accessed();
        }
        Ok(n)
    }

    fn write(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.put(file, buf, pos, file.append())
    }

    fn put(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64, append: bool) -> SysResult {
        let (content, seals) = self.file()?;
        let seals = seals.load(Ordering::Acquire);
        if seals & SEALED_WRITE != 0 {
            return Err(Errno::EPERM);
        }
        let n = content.write(buf, pos, append, seals & F_SEAL_GROW == 0)?;
        if n > 0 {
            self.attrs.touch();
        }
        Ok(n)
    }

    fn splice_read(
        &self,
        file: &File,
        pos: &mut u64,
        most: usize,
        _nonblock: bool,
    ) -> Result<Option<PipeBuf>, Errno> {
        let (content, _) = self.file().map_err(|_| Errno::EINVAL)?;
        if file.flags() & sys::O_NOATIME == 0 {
            self.attrs.accessed();
        }
        Ok(content.lend(pos, most))
    }

    fn splice_write(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.file().map_err(|_| Errno::EINVAL)?;
        self.write(file, buf, pos)
    }

    fn size(&self) -> u64 {
        self.file().map_or(0, |(c, _)| c.size())
    }

    fn seek_data(&self, pos: u64, hole: bool) -> Result<u64, Errno> {
        self.file()
            .map_err(|_| Errno::EINVAL)?
            .0
            .seek_data(pos, hole)
    }

    fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    fn readdir(&self, file: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result<(), Errno> {
        let dir = self.dir()?;
        let parent = dir.lock().parent_ino;
        let dots = [(self.attrs.ino(), &b"."[..]), (parent, &b".."[..])];
        for (i, (ino, name)) in dots.into_iter().enumerate().skip(*pos as usize) {
            if !sink.add(ino, i as u64 + 1, Kind::Directory, name) {
                return Ok(());
            }
            *pos = i as u64 + 1;
        }
        let d = dir.lock();
        let from = (*pos).max(FIRST_COOKIE);
        for (cookie, name) in d.by_cookie.range(from..) {
            let Some((node, _)) = d.entries.get(name) else {
                continue;
            };
            if !sink.add(node.attrs.ino(), cookie + 1, node.attrs.kind(), name) {
                break;
            }
            *pos = cookie + 1;
        }
        drop(d);
        let _ = file;
        Ok(())
    }

    fn mmap(&self, file: &File) -> Result<Mappable, Errno> {
        let (content, _) = self.file().map_err(|_| Errno::ENODEV)?;
        mapped::remember(content.object(), file, self.attrs.dev(), self.attrs.ino());
        Ok(Mappable::Object(content.object().clone()))
    }

    fn mmap_write_denied(&self) -> bool {
        self.write_sealed()
    }

    fn fallocate(&self, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        let (content, seals) = self.file().map_err(|_| Errno::ENODEV)?;
        const KNOWN: u32 = sys::FALLOC_FL_KEEP_SIZE | sys::FALLOC_FL_PUNCH_HOLE;
        let punch = mode & sys::FALLOC_FL_PUNCH_HOLE != 0;
        let keep = mode & sys::FALLOC_FL_KEEP_SIZE != 0;
        if mode & !KNOWN != 0 || punch && !keep {
            return Err(Errno::EOPNOTSUPP);
        }
        let seals = seals.load(Ordering::Acquire);
        if punch && seals & SEALED_WRITE != 0 {
            return Err(Errno::EPERM);
        }
        let grows = !keep && offset.saturating_add(len) > content.size();
        if grows && seals & F_SEAL_GROW != 0 {
            return Err(Errno::EPERM);
        }
        content.allocate(offset, len, punch, keep)?;
        self.attrs.touch();
        Ok(())
    }

    fn fsync(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// A file of `memfd_create`: in no directory, its seals open when `sealing` says so.
pub fn memfd(name: &[u8], sealing: bool, exec: bool, flags: u32) -> Result<Arc<File>, Errno> {
    static FS: spin::Once<Arc<Node>> = spin::Once::new();
    let fs = FS.call_once(|| super::new_root(0o700));
    let perm = if exec { 0o777 } else { 0o666 };
    let node = fs.new_node(Kind::Regular.bits() | perm, 0)?;
    node.attrs.add_links(-1);
    if let (true, Body::File { seals, .. }) = (sealing, &node.body) {
        seals.store(if exec { 0 } else { F_SEAL_EXEC }, Ordering::Release);
    }
    let mut shown = Vec::from(*b"/memfd:");
    shown.extend_from_slice(name);
    let path = Path::unnamed(node.clone() as Arc<dyn Inode>, &shown, true);
    Ok(File::new(path, node, flags))
}
