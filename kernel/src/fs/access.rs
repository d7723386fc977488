//! Who may do what: permission bits against the caller's credentials.
//!
//! Files are looked at with the file system ids (`access` asks with the real ones). A caller with the capabilities
//! of root passes every test but one: a file that nobody may execute.
#![forbid(unsafe_code)]

use super::attr::{Attr, Kind};
use super::dentry::Dentry;
use crate::task::{Creds, current};
use mm::Errno;

/// Bits of a request, as in a permission triple.
pub const READ: u32 = 4;
pub const WRITE: u32 = 2;
pub const EXEC: u32 = 1;

const CAP_CHOWN: u32 = 0;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_FOWNER: u32 = 3;
pub const S_ISVTX: u32 = 0o1000;

/// Whether the caller passes every directory and file: asked once, before a walk.
pub fn overrides() -> bool {
    current()
        .process
        .with_creds(|c| c.capable(CAP_DAC_OVERRIDE))
}

/// EACCES unless `who` may do all of `want` with the file.
pub fn check(a: &Attr, want: u32, who: &Creds) -> Result<(), Errno> {
    let is_dir = Kind::of_mode(a.mode) == Some(Kind::Directory);
    let shift = if who.fsuid == a.uid {
        6
    } else if who.in_group(a.gid) {
        3
    } else {
        0
    };
    if a.mode >> shift & want == want {
        return Ok(());
    }
    let all_but_exec = want & EXEC == 0 || is_dir || a.mode & 0o111 != 0;
    if who.capable(CAP_DAC_OVERRIDE) && all_but_exec {
        return Ok(());
    }
    let only_looks = want == READ || is_dir && want & WRITE == 0;
    if who.capable(CAP_DAC_READ_SEARCH) && only_looks {
        return Ok(());
    }
    Err(Errno::EACCES)
}

/// `check` for the caller.
pub fn may(a: &Attr, want: u32) -> Result<(), Errno> {
    check(a, want, &current().process.creds())
}

/// EACCES unless the caller may change the names in directory `dir`.
pub fn may_change(dir: &Dentry) -> Result<(), Errno> {
    if overrides() {
        Ok(())
    } else {
        may(&dir.inode().attr(), WRITE | EXEC)
    }
}

/// As `may_change`, for taking `victim` away: in a sticky directory only its owner or the directory's may.
pub fn may_remove(dir: &Dentry, victim: &Dentry) -> Result<(), Errno> {
    may_change(dir)?;
    let who = current().process.creds();
    let d = dir.inode().attr();
    let sticky =
        d.mode & S_ISVTX != 0 && d.uid != who.fsuid && victim.inode().attr().uid != who.fsuid;
    if sticky && !who.capable(CAP_FOWNER) {
        Err(Errno::EPERM)
    } else {
        Ok(())
    }
}

/// EPERM unless the caller owns the file.
pub fn owner(a: &Attr) -> Result<(), Errno> {
    let who = current().process.creds();
    if who.fsuid == a.uid || who.capable(CAP_FOWNER) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// EPERM unless the caller may give the file this owner and group: its owner may change the group to one of its own.
pub fn may_chown(a: &Attr, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let who = current().process.creds();
    let owns = who.fsuid == a.uid;
    let uid_ok = uid.is_none_or(|u| owns && u == a.uid);
    let gid_ok = gid.is_none_or(|g| owns && (g == a.gid || who.in_group(g)));
    if uid_ok && gid_ok || who.capable(CAP_CHOWN) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// Owner and group of a file that the caller makes.
pub fn new_owner() -> (u32, u32) {
    crate::task::try_current().map_or((0, 0), |t| t.process.with_creds(|c| (c.fsuid, c.fsgid)))
}
