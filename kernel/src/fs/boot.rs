//! The first root: the boot archive unpacked into a tmpfs, the other file systems mounted over it.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::attr::{AttrChange, Kind, Stamp, makedev};
use super::cpio;
use super::dentry::Dentry;
use super::fdtable::FdTable;
use super::file::File;
use super::inode::{FileOps, Inode};
use super::iobuf::IoBuf;
use super::path::{Path, Walk};
use super::{debugfs, devfs, mount, procfs, sysfs, tty};
use linux_raw_sys::general as sys;
use mm::Errno;

/// Directories every root has, whatever the archive holds.
const ALWAYS: [(&[u8], u32); 6] = [
    (b"dev", 0o755),
    (b"proc", 0o555),
    (b"sys", 0o555),
    (b"tmp", 0o1777),
    (b"root", 0o700),
    (b"mnt", 0o755),
];

/// Builds the root from the archive and mounts /dev, /proc and /sys. Broken entries are logged and skipped: a
/// shell on half a root says more than a panic.
pub fn mount_root(archive: &'static [u8]) -> Result<(), Errno> {
    let root = mount::root();
    let mut links = BTreeMap::new();
    let mut count = 0usize;
    for entry in cpio::Reader::new(archive) {
        let Ok(entry) = entry else {
            crate::error!("boot archive: malformed after {count} entries");
            break;
        };
        if entry.name.is_empty()
            || entry.name == b"."
            || entry.name == b"boot"
            || entry.name.starts_with(b"boot/")
        {
            continue;
        }
        match unpack(&root, &entry, &mut links) {
            Ok(()) => count += 1,
            Err(e) => crate::error!(
                "boot archive: {}: {e:?}",
                alloc::string::String::from_utf8_lossy(entry.name)
            ),
        }
    }
    for (name, perm) in ALWAYS {
        match root.dentry.make(name, |dir| {
            dir.create(name, Kind::Directory.bits() | perm, 0)
        }) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
    }
    mount_on(b"/dev", devfs::root()?, "devtmpfs")?;
    mount_on(b"/proc", procfs::new_root()?, "proc")?;
    mount_on(b"/sys", sysfs::new_root()?, "sysfs")?;
    mount_on(b"/sys/kernel/debug", debugfs::new_root()?, "debugfs")?;
    crate::info!("root: {count} files from the boot archive");
    Ok(())
}

fn mount_on(at: &[u8], root: Arc<Dentry>, fstype: &'static str) -> Result<(), Errno> {
    let place = Walk::new(mount::root(), mount::root()).full(at, true)?;
    mount::attach(place, root, fstype, fstype, 0)
}

type Links = BTreeMap<(u32, u32, u32), Arc<dyn Inode>>;

fn unpack(root: &Path, entry: &cpio::Entry<'_>, links: &mut Links) -> Result<(), Errno> {
    let kind = Kind::of_mode(entry.mode).ok_or(Errno::EINVAL)?;
    let (dir, name) = make_parents(root, entry.name)?;
    let identity = (entry.dev.0, entry.dev.1, entry.ino);
    let linked = entry.nlink > 1 && kind != Kind::Directory;
    let inode = match links.get(&identity) {
        Some(inode) if linked => {
            let inode = inode.clone();
            dir.link(name, &inode)?;
            inode
        }
        _ => {
            let perm = entry.mode & 0o7777;
            let made = dir.make(name, |d| match kind {
                Kind::Symlink => d.symlink(name, entry.data),
                _ => d.create(
                    name,
                    kind.bits() | perm,
                    makedev(entry.rdev.0, entry.rdev.1),
                ),
            });
            let inode = match made {
                Err(Errno::EEXIST) if kind == Kind::Directory => dir.child(name)?.inode().clone(),
                other => other?.inode().clone(),
            };
            if linked {
                links.insert(identity, inode.clone());
            }
            inode
        }
    };
    // Of several names of one file, only one record carries the data.
    if kind == Kind::Regular && !entry.data.is_empty() {
        let path = Path::unnamed(inode.clone(), name, false);
        File::open(path, sys::O_WRONLY)?.write_at(&mut IoBuf::kernel(entry.data), 0)?;
    }
    let when = Some(Stamp {
        sec: i64::from(entry.mtime),
        nsec: 0,
    });
    inode.set_attr(&AttrChange {
        perm: Some(entry.mode & 0o7777),
        uid: Some(entry.uid),
        gid: Some(entry.gid),
        atime: when,
        mtime: when,
    })
}

/// Walks to the directory of `path`, making what is missing.
fn make_parents<'a>(root: &Path, path: &'a [u8]) -> Result<(Arc<Dentry>, &'a [u8]), Errno> {
    let parts: Vec<&[u8]> = path
        .split(|c| *c == b'/')
        .filter(|p| !p.is_empty() && *p != b".")
        .collect();
    let (name, parents) = parts.split_last().ok_or(Errno::EINVAL)?;
    let mut dir = root.dentry.clone();
    for part in parents.iter().chain([name]) {
        if *part == b".." || part.len() > super::path::NAME_MAX {
            return Err(Errno::EINVAL);
        }
    }
    for part in parents {
        dir = match dir.child(part) {
            Err(Errno::ENOENT) => {
                dir.make(part, |d| d.create(part, Kind::Directory.bits() | 0o755, 0))?
            }
            other => other?,
        };
        if !dir.is_dir() {
            return Err(Errno::ENOTDIR);
        }
    }
    Ok((dir, name))
}

/// Descriptors 0, 1 and 2 of the first process. With `shell` the console becomes a terminal that belongs to
/// `session`; without, input is at its end and output goes out byte for byte.
pub fn initial_files(shell: bool, session: u32) -> Result<FdTable, Errno> {
    let table = FdTable::new();
    let console = Walk::new(mount::root(), mount::root()).full(b"/dev/console", true)?;
    if shell {
        tty::start_terminal()?;
        tty::give_to(session, session);
        let file = File::open(console, sys::O_RDWR)?;
        for _ in 0..3 {
            table.install(file.clone(), false)?;
        }
        return Ok(table);
    }
    let null = Walk::new(mount::root(), mount::root()).full(b"/dev/null", true)?;
    let input: Arc<dyn FileOps> = devfs::null_ops();
    table.install(File::new(null, input, sys::O_RDONLY), false)?;
    let output = File::open(console, sys::O_WRONLY)?;
    table.install(output.clone(), false)?;
    table.install(output, false)?;
    Ok(table)
}
