//! Extended attributes: no file system here has any.

use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{path, real_file};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::fs::names;
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_getxattr, by_path),
    (sys::__NR_lgetxattr, by_link),
    (sys::__NR_fgetxattr, by_file),
    (sys::__NR_setxattr, by_path),
    (sys::__NR_lsetxattr, by_link),
    (sys::__NR_fsetxattr, by_file),
    (sys::__NR_removexattr, by_path),
    (sys::__NR_lremovexattr, by_link),
    (sys::__NR_fremovexattr, by_file),
    (sys::__NR_listxattr, list),
    (sys::__NR_llistxattr, list_link),
    (sys::__NR_flistxattr, list_file),
];

fn by_path(f: &mut TrapFrame) -> SysResult {
    names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)?;
    Err(Errno::EOPNOTSUPP)
}

fn by_link(f: &mut TrapFrame) -> SysResult {
    names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, false, false)?;
    Err(Errno::EOPNOTSUPP)
}

fn by_file(f: &mut TrapFrame) -> SysResult {
    real_file(f.arg(0))?;
    Err(Errno::EOPNOTSUPP)
}

/// An empty list.
fn list(f: &mut TrapFrame) -> SysResult {
    names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false).map(|_| 0)
}

fn list_link(f: &mut TrapFrame) -> SysResult {
    names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, false, false).map(|_| 0)
}

fn list_file(f: &mut TrapFrame) -> SysResult {
    real_file(f.arg(0)).map(|_| 0)
}
