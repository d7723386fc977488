//! User and group ids, groups, capabilities.

use mm::Errno;

use super::Calls;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{get_user, put_user};
use crate::task::process::{CAP_ALL, Creds, NGROUPS};
use crate::task::{current, table};
use linux_raw_sys::general as sys;

pub const CALLS: Calls = &[
    (sys::__NR_getuid, getuid),
    (sys::__NR_geteuid, geteuid),
    (sys::__NR_getgid, getgid),
    (sys::__NR_getegid, getegid),
    (sys::__NR_getresuid, getresuid),
    (sys::__NR_getresgid, getresgid),
    (sys::__NR_setuid, setuid),
    (sys::__NR_setgid, setgid),
    (sys::__NR_setreuid, setreuid),
    (sys::__NR_setregid, setregid),
    (sys::__NR_setresuid, setresuid),
    (sys::__NR_setresgid, setresgid),
    (sys::__NR_setfsuid, setfsuid),
    (sys::__NR_setfsgid, setfsgid),
    (sys::__NR_getgroups, getgroups),
    (sys::__NR_setgroups, setgroups),
    (sys::__NR_capget, capget),
    (sys::__NR_capset, capset),
];

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
/// "Leave as it is."
const KEEP: u32 = u32::MAX;

fn getuid(_: &mut TrapFrame) -> SysResult {
    Ok(current().process.creds().uid as usize)
}

fn geteuid(_: &mut TrapFrame) -> SysResult {
    Ok(current().process.creds().euid as usize)
}

fn getgid(_: &mut TrapFrame) -> SysResult {
    Ok(current().process.creds().gid as usize)
}

fn getegid(_: &mut TrapFrame) -> SysResult {
    Ok(current().process.creds().egid as usize)
}

fn put3(f: &TrapFrame, ids: [u32; 3]) -> SysResult {
    for (i, id) in ids.iter().enumerate() {
        put_user(f.arg(i), id)?;
    }
    Ok(0)
}

fn getresuid(f: &mut TrapFrame) -> SysResult {
    let c = current().process.creds();
    put3(f, [c.uid, c.euid, c.suid])
}

fn getresgid(f: &mut TrapFrame) -> SysResult {
    let c = current().process.creds();
    put3(f, [c.gid, c.egid, c.sgid])
}

/// Changes a copy of the credentials and installs it if `f` allows.
fn change(f: impl FnOnce(&mut Creds) -> Result<(), Errno>) -> SysResult {
    current().process.with_creds(|c| {
        let old = *c;
        let mut new = *c;
        f(&mut new)?;
        if new.euid != old.euid || new.uid != old.uid || new.suid != old.suid {
            follow_root(&old, &mut new);
        }
        *c = new;
        Ok(0)
    })
}

/// Leaving root drops capabilities, coming back to it raises them.
fn follow_root(old: &Creds, new: &mut Creds) {
    let root = |c: &Creds| [c.uid, c.euid, c.suid].contains(&0);
    if root(old) && !root(new) {
        new.cap_permitted = 0;
        new.cap_effective = 0;
        new.cap_ambient = 0;
    }
    if old.euid == 0 && new.euid != 0 {
        new.cap_effective = 0;
    }
    if old.euid != 0 && new.euid == 0 {
        new.cap_effective = new.cap_permitted;
    }
}

fn setuid(f: &mut TrapFrame) -> SysResult {
    let id = f.arg(0) as u32;
    if id == KEEP {
        return Err(Errno::EINVAL);
    }
    change(|c| {
        if c.capable(CAP_SETUID) {
            c.uid = id;
            c.suid = id;
        } else if id != c.uid && id != c.suid {
            return Err(Errno::EPERM);
        }
        c.euid = id;
        c.fsuid = id;
        Ok(())
    })
}

fn setgid(f: &mut TrapFrame) -> SysResult {
    let id = f.arg(0) as u32;
    if id == KEEP {
        return Err(Errno::EINVAL);
    }
    change(|c| {
        if c.capable(CAP_SETGID) {
            c.gid = id;
            c.sgid = id;
        } else if id != c.gid && id != c.sgid {
            return Err(Errno::EPERM);
        }
        c.egid = id;
        c.fsgid = id;
        Ok(())
    })
}

fn setreuid(f: &mut TrapFrame) -> SysResult {
    let (r, e) = (f.arg(0) as u32, f.arg(1) as u32);
    change(|c| {
        let old = *c;
        let free = c.capable(CAP_SETUID);
        if !free
            && (r != KEEP && ![old.uid, old.euid].contains(&r)
                || e != KEEP && ![old.uid, old.euid, old.suid].contains(&e))
        {
            return Err(Errno::EPERM);
        }
        if r != KEEP {
            c.uid = r;
        }
        if e != KEEP {
            c.euid = e;
        }
        if r != KEEP || e != KEEP && e != old.uid {
            c.suid = c.euid;
        }
        c.fsuid = c.euid;
        Ok(())
    })
}

fn setregid(f: &mut TrapFrame) -> SysResult {
    let (r, e) = (f.arg(0) as u32, f.arg(1) as u32);
    change(|c| {
        let old = *c;
        let free = c.capable(CAP_SETGID);
        if !free
            && (r != KEEP && ![old.gid, old.egid].contains(&r)
                || e != KEEP && ![old.gid, old.egid, old.sgid].contains(&e))
        {
            return Err(Errno::EPERM);
        }
        if r != KEEP {
            c.gid = r;
        }
        if e != KEEP {
            c.egid = e;
        }
        if r != KEEP || e != KEEP && e != old.gid {
            c.sgid = c.egid;
        }
        c.fsgid = c.egid;
        Ok(())
    })
}

fn setresuid(f: &mut TrapFrame) -> SysResult {
    let ids = [f.arg(0) as u32, f.arg(1) as u32, f.arg(2) as u32];
    change(|c| {
        let known = [c.uid, c.euid, c.suid];
        if !c.capable(CAP_SETUID) && ids.iter().any(|i| *i != KEEP && !known.contains(i)) {
            return Err(Errno::EPERM);
        }
        for (slot, id) in [&mut c.uid, &mut c.euid, &mut c.suid].into_iter().zip(ids) {
            if id != KEEP {
                *slot = id;
            }
        }
        c.fsuid = c.euid;
        Ok(())
    })
}

fn setresgid(f: &mut TrapFrame) -> SysResult {
    let ids = [f.arg(0) as u32, f.arg(1) as u32, f.arg(2) as u32];
    change(|c| {
        let known = [c.gid, c.egid, c.sgid];
        if !c.capable(CAP_SETGID) && ids.iter().any(|i| *i != KEEP && !known.contains(i)) {
            return Err(Errno::EPERM);
        }
        for (slot, id) in [&mut c.gid, &mut c.egid, &mut c.sgid].into_iter().zip(ids) {
            if id != KEEP {
                *slot = id;
            }
        }
        c.fsgid = c.egid;
        Ok(())
    })
}

fn setfsuid(f: &mut TrapFrame) -> SysResult {
    let id = f.arg(0) as u32;
    Ok(current().process.with_creds(|c| {
        let old = c.fsuid;
        if id != KEEP && (c.capable(CAP_SETUID) || [c.uid, c.euid, c.suid, c.fsuid].contains(&id)) {
            c.fsuid = id;
        }
        old
    }) as usize)
}

fn setfsgid(f: &mut TrapFrame) -> SysResult {
    let id = f.arg(0) as u32;
    Ok(current().process.with_creds(|c| {
        let old = c.fsgid;
        if id != KEEP && (c.capable(CAP_SETGID) || [c.gid, c.egid, c.sgid, c.fsgid].contains(&id)) {
            c.fsgid = id;
        }
        old
    }) as usize)
}

fn getgroups(f: &mut TrapFrame) -> SysResult {
    let size = f.arg(0) as i32;
    if size < 0 {
        return Err(Errno::EINVAL);
    }
    let c = current().process.creds();
    if size > 0 {
        if (size as usize) < c.ngroups {
            return Err(Errno::EINVAL);
        }
        for (i, g) in c.groups[..c.ngroups].iter().enumerate() {
            put_user(f.arg(1).wrapping_add(i as u64 * 4), g)?;
        }
    }
    Ok(c.ngroups)
}

fn setgroups(f: &mut TrapFrame) -> SysResult {
    let n = f.arg(0) as usize;
    if !current().process.creds().capable(CAP_SETGID) {
        return Err(Errno::EPERM);
    }
    if n > NGROUPS {
        return Err(Errno::EINVAL);
    }
    let mut groups = [0u32; NGROUPS];
    for (i, g) in groups[..n].iter_mut().enumerate() {
        *g = get_user(f.arg(1).wrapping_add(i as u64 * 4))?;
    }
    current().process.with_creds(|c| {
        c.groups = groups;
        c.ngroups = n;
    });
    Ok(0)
}

const CAP_V1: u32 = 0x1998_0330;
const CAP_V2: u32 = 0x2007_1026;
const CAP_V3: u32 = 0x2008_0522;

/// Words of each set for a header's version.
fn cap_header(at: u64) -> Result<(usize, i32), Errno> {
    let version: u32 = get_user(at)?;
    let pid: i32 = get_user(at.wrapping_add(4))?;
    match version {
        CAP_V1 => Ok((1, pid)),
        CAP_V2 | CAP_V3 => Ok((2, pid)),
        _ => {
            put_user(at, &CAP_V3)?;
            Err(Errno::EINVAL)
        }
    }
}

fn capget(f: &mut TrapFrame) -> SysResult {
    let (words, pid) = match cap_header(f.arg(0)) {
        Ok(h) => h,
        // A null data pointer asks for the version only.
        Err(Errno::EINVAL) if f.arg(1) == 0 => return Ok(0),
        Err(e) => return Err(e),
    };
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    let c = if pid == 0 {
        current().process.creds()
    } else {
        table::find_thread(pid as u32)
            .ok_or(Errno::ESRCH)?
            .process
            .creds()
    };
    if f.arg(1) == 0 {
        return Ok(0);
    }
    for i in 0..words {
        let part = |set: u64| (set >> (32 * i)) as u32;
        let at = f.arg(1).wrapping_add(12 * i as u64);
        put_user(
            at,
            &[
                part(c.cap_effective),
                part(c.cap_permitted),
                part(c.cap_inheritable),
            ],
        )?;
    }
    Ok(0)
}

fn capset(f: &mut TrapFrame) -> SysResult {
    let (words, pid) = cap_header(f.arg(0))?;
    let me = current();
    if pid != 0 && pid as u32 != me.tid() && pid as u32 != me.process.pid {
        return Err(Errno::EPERM);
    }
    let mut sets = [0u64; 3];
    for i in 0..words {
        let w: [u32; 3] = get_user(f.arg(1).wrapping_add(12 * i as u64))?;
        for (set, w) in sets.iter_mut().zip(w) {
            *set |= (w as u64) << (32 * i);
        }
    }
    let [effective, permitted, inheritable] = sets.map(|s| s & CAP_ALL);
    change(|c| {
        if permitted & !c.cap_permitted != 0
            || effective & !permitted != 0
            || inheritable & !(c.cap_inheritable | c.cap_permitted | c.cap_bounding) != 0
        {
            return Err(Errno::EPERM);
        }
        c.cap_effective = effective;
        c.cap_permitted = permitted;
        c.cap_inheritable = inheritable;
        c.cap_ambient &= permitted & inheritable;
        Ok(())
    })
}
