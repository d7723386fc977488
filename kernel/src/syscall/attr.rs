//! Changing what `stat` shows: permissions, owners, times.

use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{UserTime, at_flags, path};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::get_user;
use crate::fs::attr::{AttrChange, Kind, Stamp};
use crate::fs::{Path, access, names};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_chmod, chmod),
    (sys::__NR_fchmod, fchmod),
    (sys::__NR_fchmodat, fchmodat),
    (sys::__NR_fchmodat2, fchmodat2),
    (sys::__NR_chown, chown),
    (sys::__NR_lchown, lchown),
    (sys::__NR_fchown, fchown),
    (sys::__NR_fchownat, fchownat),
    (sys::__NR_utimensat, utimensat),
    (sys::__NR_utimes, utimes),
    (sys::__NR_futimesat, futimesat),
    (sys::__NR_utime, utime),
];

/// Sets times: who may write the file may set them to now.
fn change_times(place: &Path, what: &AttrChange, now: bool) -> SysResult {
    let a = place.inode().attr();
    if now && access::owner(&a).is_err() {
        access::may(&a, access::WRITE)?;
        return apply(place, what);
    }
    change(place, what)
}

fn apply(place: &Path, what: &AttrChange) -> SysResult {
    if place.mnt.read_only() || place.inode().read_only() {
        return Err(Errno::EROFS);
    }
    place.inode().set_attr(what).map(|()| 0)
}

/// Changes attributes, unless the mount is read-only or the caller may not.
fn change(place: &Path, what: &AttrChange) -> SysResult {
    if !access::overrides() {
        let a = place.inode().attr();
        if what.uid.is_some() || what.gid.is_some() {
            access::may_chown(&a, what.uid, what.gid)?;
        } else {
            access::owner(&a)?;
        }
    }
    apply(place, what)
}

fn perm(mode: u64) -> AttrChange {
    AttrChange {
        perm: Some(mode as u32 & 0o7777),
        ..AttrChange::default()
    }
}

fn chmod(f: &mut TrapFrame) -> SysResult {
    change(
        &names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)?,
        &perm(f.arg(1)),
    )
}

fn fchmod(f: &mut TrapFrame) -> SysResult {
    change(super::args::real_file(f.arg(0))?.path(), &perm(f.arg(1)))
}

fn fchmodat(f: &mut TrapFrame) -> SysResult {
    change(
        &names::resolve(f.arg(0) as i32, &path(f.arg(1))?, true, false)?,
        &perm(f.arg(2)),
    )
}

fn fchmodat2(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(3) as u32;
    if flags & !(sys::AT_SYMLINK_NOFOLLOW | sys::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let (empty, follow) = at_flags(flags);
    let place = names::resolve(f.arg(0) as i32, &path(f.arg(1))?, follow, empty)?;
    if place.dentry.kind() == Kind::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    change(&place, &perm(f.arg(2)))
}

fn owner(uid: u64, gid: u64) -> AttrChange {
    let id = |v: u64| (v as u32 != u32::MAX).then_some(v as u32);
    AttrChange {
        uid: id(uid),
        gid: id(gid),
        ..AttrChange::default()
    }
}

fn chown(f: &mut TrapFrame) -> SysResult {
    change(
        &names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)?,
        &owner(f.arg(1), f.arg(2)),
    )
}

fn lchown(f: &mut TrapFrame) -> SysResult {
    change(
        &names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, false, false)?,
        &owner(f.arg(1), f.arg(2)),
    )
}

fn fchown(f: &mut TrapFrame) -> SysResult {
    change(
        super::args::real_file(f.arg(0))?.path(),
        &owner(f.arg(1), f.arg(2)),
    )
}

fn fchownat(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(4) as u32;
    if flags & !(sys::AT_SYMLINK_NOFOLLOW | sys::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let (empty, follow) = at_flags(flags);
    let place = names::resolve(f.arg(0) as i32, &path(f.arg(1))?, follow, empty)?;
    change(&place, &owner(f.arg(2), f.arg(3)))
}

fn times(atime: Option<Stamp>, mtime: Option<Stamp>) -> AttrChange {
    AttrChange {
        atime,
        mtime,
        ..AttrChange::default()
    }
}

fn utimensat(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(3) as u32;
    if flags & !(sys::AT_SYMLINK_NOFOLLOW | sys::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let now = Stamp::now();
    let mut both = [Some(now); 2];
    if f.arg(2) != 0 {
        for (i, slot) in both.iter_mut().enumerate() {
            let t: UserTime = get_user(f.arg(2).checked_add(16 * i as u64).ok_or(Errno::EFAULT)?)?;
            *slot = match t.nsec {
                n if n == i64::from(sys::UTIME_OMIT) => None,
                n if n == i64::from(sys::UTIME_NOW) => Some(now),
                n if (0..1_000_000_000).contains(&n) => Some(Stamp {
                    sec: t.sec,
                    nsec: n as u32,
                }),
                _ => return Err(Errno::EINVAL),
            };
        }
        if both == [None; 2] {
            return Ok(0);
        }
    }
    let to_now = both == [Some(now); 2];
    let what = times(both[0], both[1]);
    // futimens: no path, the descriptor itself.
    if f.arg(1) == 0 {
        if flags & sys::AT_SYMLINK_NOFOLLOW != 0 {
            return Err(Errno::EINVAL);
        }
        return change_times(super::args::real_file(f.arg(0))?.path(), &what, to_now);
    }
    let (empty, follow) = at_flags(flags);
    change_times(
        &names::resolve(f.arg(0) as i32, &path(f.arg(1))?, follow, empty)?,
        &what,
        to_now,
    )
}

/// Two `struct timeval`, or now.
fn user_timevals(addr: u64) -> Result<AttrChange, Errno> {
    if addr == 0 {
        let now = Some(Stamp::now());
        return Ok(times(now, now));
    }
    let v: [i64; 4] = get_user(addr)?;
    let stamp = |sec: i64, usec: i64| {
        (0..1_000_000)
            .contains(&usec)
            .then(|| Stamp {
                sec,
                nsec: usec as u32 * 1000,
            })
            .ok_or(Errno::EINVAL)
    };
    Ok(times(Some(stamp(v[0], v[1])?), Some(stamp(v[2], v[3])?)))
}

fn utimes(f: &mut TrapFrame) -> SysResult {
    let what = user_timevals(f.arg(1))?;
    change_times(
        &names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)?,
        &what,
        f.arg(1) == 0,
    )
}

fn futimesat(f: &mut TrapFrame) -> SysResult {
    let what = user_timevals(f.arg(2))?;
    if f.arg(1) == 0 {
        return change_times(
            super::args::real_file(f.arg(0))?.path(),
            &what,
            f.arg(2) == 0,
        );
    }
    change_times(
        &names::resolve(f.arg(0) as i32, &path(f.arg(1))?, true, false)?,
        &what,
        f.arg(2) == 0,
    )
}

fn utime(f: &mut TrapFrame) -> SysResult {
    let what = match f.arg(1) {
        0 => user_timevals(0)?,
        addr => {
            let [a, m]: [i64; 2] = get_user(addr)?;
            let stamp = |sec| Some(Stamp { sec, nsec: 0 });
            times(stamp(a), stamp(m))
        }
    };
    change_times(
        &names::resolve(sys::AT_FDCWD, &path(f.arg(0))?, true, false)?,
        &what,
        f.arg(1) == 0,
    )
}
