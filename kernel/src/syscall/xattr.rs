//! Extended attributes: named bytes beside a file. Who may see and set them is decided here; the file system keeps them.

use alloc::vec::Vec;
use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{path, real_file};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{copy_from_user, copy_to_user, read_cstr};
use crate::fs::attr::Kind;
use crate::fs::path::Path;
use crate::fs::{access, caller, names};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_getxattr, |f| get(&by_path(f)?, f)),
    (sys::__NR_lgetxattr, |f| get(&by_link(f)?, f)),
    (sys::__NR_fgetxattr, |f| get(&by_file(f)?, f)),
    (sys::__NR_setxattr, |f| set(&by_path(f)?, f)),
    (sys::__NR_lsetxattr, |f| set(&by_link(f)?, f)),
    (sys::__NR_fsetxattr, |f| set(&by_file(f)?, f)),
    (sys::__NR_removexattr, |f| remove(&by_path(f)?, f)),
    (sys::__NR_lremovexattr, |f| remove(&by_link(f)?, f)),
    (sys::__NR_fremovexattr, |f| remove(&by_file(f)?, f)),
    (sys::__NR_listxattr, |f| list(&by_path(f)?, f)),
    (sys::__NR_llistxattr, |f| list(&by_link(f)?, f)),
    (sys::__NR_flistxattr, |f| list(&by_file(f)?, f)),
];

/// Bytes of a name, and of a value.
const NAME_MAX: usize = 255;
const SIZE_MAX: u64 = 65536;

fn by_path(f: &TrapFrame) -> Result<Path, Errno> {
    names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)
}

fn by_link(f: &TrapFrame) -> Result<Path, Errno> {
    names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, false, false)
}

fn by_file(f: &TrapFrame) -> Result<Path, Errno> {
    Ok(real_file(f.arg(0))?.path().clone())
}

fn name(at: u64) -> Result<Vec<u8>, Errno> {
    match read_cstr(at, NAME_MAX + 1) {
        Ok(name) if name.is_empty() => Err(Errno::ERANGE),
        Err(Errno::ENAMETOOLONG) => Err(Errno::ERANGE),
        name => name,
    }
}

/// Whether the caller may do that (`access::READ`, `WRITE`) with the attribute.
fn may(at: &Path, name: &[u8], want: u32) -> Result<(), Errno> {
    let refused = match want {
        access::READ => Errno::ENODATA,
        _ => Errno::EPERM,
    };
    let admin = caller::capable(caller::CAP_SYS_ADMIN);
    if name.starts_with(b"security.") {
        return (want == access::READ || admin).then_some(()).ok_or(refused);
    }
    if name.starts_with(b"system.") {
        return Ok(());
    }
    if name.starts_with(b"trusted.") {
        return admin.then_some(()).ok_or(refused);
    }
    let attr = at.inode().attr();
    if name.starts_with(b"user.") {
        match at.inode().kind() {
            Kind::Regular => {}
            Kind::Directory if want == access::READ || attr.mode & access::S_ISVTX == 0 => {}
            Kind::Directory => access::owner(&attr)?,
            _ => return Err(refused),
        }
    }
    access::may(&attr, want)
}

/// Bytes for a buffer of `size`; one of none asks how many there are.
fn answer(bytes: &[u8], to: u64, size: u64) -> SysResult {
    if size != 0 {
        if bytes.len() as u64 > size {
            return Err(Errno::ERANGE);
        }
        copy_to_user(to, bytes)?;
    }
    Ok(bytes.len())
}

fn get(at: &Path, f: &TrapFrame) -> SysResult {
    let name = name(f.arg(1))?;
    may(at, &name, access::READ)?;
    answer(&at.inode().xattr(&name)?, f.arg(2), f.arg(3))
}

fn set(at: &Path, f: &TrapFrame) -> SysResult {
    let (size, flags) = (f.arg(3), f.arg(4) as u32);
    if flags & !(sys::XATTR_CREATE | sys::XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = name(f.arg(1))?;
    if size > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    let size = size as usize;
    let mut value = Vec::new();
    value.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
    value.resize(size, 0);
    copy_from_user(&mut value, f.arg(2))?;
    names::writable(at)?;
    may(at, &name, access::WRITE)?;
    at.inode().set_xattr(&name, &value, flags).map(|()| 0)
}

fn remove(at: &Path, f: &TrapFrame) -> SysResult {
    let name = name(f.arg(1))?;
    names::writable(at)?;
    may(at, &name, access::WRITE)?;
    at.inode().remove_xattr(&name).map(|()| 0)
}

fn list(at: &Path, f: &TrapFrame) -> SysResult {
    let admin = caller::capable(caller::CAP_SYS_ADMIN);
    let mut all = Vec::new();
    for name in at.inode().xattrs()? {
        if admin || !name.starts_with(b"trusted.") {
            all.extend_from_slice(&name);
            all.push(0);
        }
    }
    answer(&all, f.arg(1), f.arg(2))
}
