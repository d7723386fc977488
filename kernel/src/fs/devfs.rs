//! Device nodes: what opening a device gives, and the tree mounted on /dev.
//!
//! /dev is a tmpfs like any other; what makes a node a device is its number, looked up here at open, so that nodes
//! made by `mknod` elsewhere or carried in the boot archive work the same.

use alloc::string::String;
use alloc::sync::Arc;
use linux_raw_sys::general as sys;

use super::attr::{Kind, major, makedev, minor};
use super::dentry::Dentry;
use super::file::File;
use super::inode::{FileOps, Inode, Mappable};
use super::iobuf::IoBuf;
use super::path::Path;
use super::pipe::PipeBuf;
use super::poll::{Notify, Ready};
use super::{blockdev, devmem, edu, fb, random, tmpfs, tty};
use crate::SysResult;
use crate::sync::Mutex;
use mm::Errno;

const MEM: u32 = 1;
const MISC: u32 = 10;
const SCREENS: u32 = 29;
/// One of the minors for local use.
const EDU: u32 = 240;
/// Character devices: name, major, minor, permissions.
const NODES: [(&[u8], u32, u32, u32); 9] = [
    (b"mem", MEM, 1, 0o600),
    (b"null", MEM, 3, 0o666),
    (b"zero", MEM, 5, 0o666),
    (b"full", MEM, 7, 0o666),
    (b"random", MEM, 8, 0o666),
    (b"urandom", MEM, 9, 0o666),
    (b"kmsg", MEM, 11, 0o644),
    (b"tty", 5, 0, 0o666),
    (b"console", 5, 1, 0o600),
];
const LINKS: [(&[u8], &[u8]); 4] = [
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
];

static ROOT: Mutex<Option<Arc<Dentry>>> = Mutex::new(None);

/// The device tree, ready to be mounted: wherever that is, it is one.
pub fn root() -> Result<Arc<Dentry>, Errno> {
    let mut root = ROOT.lock();
    match &*root {
        Some(root) => Ok(root.clone()),
        None => Ok(root.insert(new_root()?).clone()),
    }
}

/// A device has gone: its node goes, too, if it is where it was.
pub fn forget(name: &str) {
    if let Some(root) = &*ROOT.lock() {
        let _ = root.unlink(name.as_bytes(), false);
    }
}

fn new_root() -> Result<Arc<Dentry>, Errno> {
    let root: Arc<dyn Inode> = tmpfs::new_root(0o755);
    for (name, major, minor, perm) in NODES {
        root.create(name, Kind::Char.bits() | perm, makedev(major, minor))?;
    }
    if tty::is_terminal() {
        root.create(b"ttyS0", Kind::Char.bits() | 0o600, makedev(4, 64))?;
    }
    if crate::dev::edu::edu().is_some() {
        root.create(b"edu", Kind::Char.bits() | 0o600, makedev(MISC, EDU))?;
    }
    if crate::dev::bochs::screen().is_some() {
        root.create(b"fb0", Kind::Char.bits() | 0o600, makedev(SCREENS, 0))?;
    }
    for n in 0.. {
        let Some(known) = crate::dev::block::disk(n) else {
            break;
        };
        if known.gone {
            continue;
        }
        let mode = Kind::Block.bits() | 0o660;
        let number = makedev(known.major, known.minor);
        root.create(known.disk.name().as_bytes(), mode, number)?;
    }
    for (name, target) in LINKS {
        root.symlink(name, target)?;
    }
    root.create(b"shm", Kind::Directory.bits() | 0o1777, 0)?;
    Ok(Dentry::root(root))
}

/// Opens the device behind a node.
pub fn open_node(
    kind: Kind,
    rdev: u64,
    _path: &Path,
    flags: u32,
) -> Result<Arc<dyn FileOps>, Errno> {
    if kind == Kind::Block {
        return blockdev::open(rdev, flags);
    }
    if kind != Kind::Char {
        return Err(Errno::ENXIO);
    }
    let device = match (major(rdev), minor(rdev)) {
        (MEM, 1) => return devmem::open(),
        (MEM, 3) => Device::Null,
        (MEM, 5) => Device::Zero,
        (MEM, 7) => Device::Full,
        (MEM, 8 | 9) => Device::Random,
        (MEM, 11) => Device::Log,
        (SCREENS, 0) => return fb::open(),
        (MISC, EDU) => return edu::open(),
        (5, 0) => return tty::open_controlling(),
        (5, 1) | (4, 64) => return tty::open_console(flags & sys::O_NOCTTY != 0),
        _ => return Err(Errno::ENXIO),
    };
    Ok(Arc::new(device))
}

/// The devices without hardware.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    Null,
    Zero,
    Full,
    Random,
    /// Writing adds lines to the kernel log.
    Log,
}

impl FileOps for Device {
    fn read(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        match self {
            Device::Null => Ok(0),
            Device::Zero | Device::Full => by_chunks(buf, |buf, n| Ok(buf.put_zeros(n))),
            Device::Random => read_random(buf),
            Device::Log => Err(Errno::EAGAIN),
        }
    }

    fn write(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        let len = buf.left();
        match self {
            Device::Full => return Err(Errno::ENOSPC),
            Device::Log => {
                let mut line = [0u8; 256];
                let n = buf.take(&mut line)?;
                let text = String::from_utf8_lossy(&line[..n]);
                crate::klog!("{}", text.trim_end());
            }
            Device::Null | Device::Zero | Device::Random => {}
        }
        buf.skip(len);
        Ok(len)
    }

    fn splice_read(
        &self,
        file: &File,
        pos: &mut u64,
        most: usize,
        _nonblock: bool,
    ) -> Result<Option<PipeBuf>, Errno> {
        match self {
            Device::Null | Device::Log => Err(Errno::EINVAL),
            _ => PipeBuf::copied(most, |buf| self.read(file, buf, pos)),
        }
    }

    fn splice_write(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        match self {
            Device::Full | Device::Log => Err(Errno::EINVAL),
            _ => self.write(file, buf, pos),
        }
    }

    fn poll(&self, _file: &File, _watcher: Option<&Arc<dyn Notify>>) -> Ready {
        match self {
            // Nothing is ever read from it.
            Device::Log => Ready::WRITE,
            _ => Ready::READ | Ready::WRITE,
        }
    }

    fn pollable(&self) -> bool {
        matches!(self, Device::Random | Device::Log)
    }

    fn mmap(&self, _file: &File) -> Result<Mappable, Errno> {
        match self {
            Device::Zero => Ok(Mappable::Anonymous),
            _ => Err(Errno::ENODEV),
        }
    }
}

/// Fills `buf` a page at a time by `step`, until it is full, an address is bad or the caller is being killed.
fn by_chunks(
    buf: &mut IoBuf<'_>,
    mut step: impl FnMut(&mut IoBuf<'_>, usize) -> SysResult,
) -> SysResult {
    let mut done = 0;
    while buf.left() > 0 {
        let want = buf.left().min(4096);
        let n = step(buf, want)?;
        done += n;
        if n < want {
            return if done == 0 {
                Err(Errno::EFAULT)
            } else {
                Ok(done)
            };
        }
        if crate::task::fatal_signal_pending() {
            break;
        }
        crate::task::cond_resched();
    }
    Ok(done)
}

/// Fills `buf` with random bytes (also getrandom).
pub fn read_random(buf: &mut IoBuf<'_>) -> SysResult {
    by_chunks(buf, |buf, want| {
        let mut done = 0;
        while done < want {
            let mut bytes = [0u8; 256];
            let n = (want - done).min(bytes.len());
            random::fill(&mut bytes[..n]);
            let put = buf.put(&bytes[..n]).unwrap_or(0);
            done += put;
            if put < n {
                break;
            }
        }
        Ok(done)
    })
}

/// The end-of-file input of a program that nobody types to.
pub fn null_ops() -> Arc<dyn FileOps> {
    Arc::new(Device::Null)
}
