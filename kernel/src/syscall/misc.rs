//! The rest of what belongs to a process: names, limits, usage, prctl, and what asks about the machine.

use core::sync::atomic::Ordering;

use mm::Errno;
use spin::Mutex as Spin;

use super::Calls;
use super::process::rusage;
use crate::SysResult;
use crate::arch::uaccess::{copy_from_user, copy_to_user, get_user, put_user};
use crate::arch::{self, TrapFrame};
use crate::task::process::{CAP_ALL, Limit, NRLIMITS, RLIMIT_NOFILE};
use crate::task::{self, acct, current, table};
use linux_raw_sys::{general as sys, prctl as pr};

pub const CALLS: Calls = &[
    (sys::__NR_uname, uname),
    (sys::__NR_sethostname, sethostname),
    (sys::__NR_setdomainname, setdomainname),
    (sys::__NR_sysinfo, sysinfo),
    (sys::__NR_getrandom, getrandom),
    (sys::__NR_prlimit64, prlimit64),
    (sys::__NR_getrlimit, getrlimit),
    (sys::__NR_setrlimit, setrlimit),
    (sys::__NR_getrusage, getrusage),
    (sys::__NR_arch_prctl, arch_prctl),
    (sys::__NR_prctl, prctl),
    (sys::__NR_personality, personality),
    (sys::__NR_membarrier, membarrier),
    (sys::__NR_reboot, reboot),
    (sys::__NR_rseq, rseq),
];

const CAP_SYS_BOOT: u32 = 22;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

fn need(cap: u32) -> Result<(), Errno> {
    if current().process.creds().capable(cap) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// A name of at most 64 bytes.
#[derive(Clone, Copy)]
struct Name([u8; 65]);

impl Name {
    const fn new(text: &str) -> Name {
        let b = text.as_bytes();
        let mut n = [0; 65];
        let mut i = 0;
        while i < b.len() {
            n[i] = b[i];
            i += 1;
        }
        Name(n)
    }
}

static HOST: Spin<Name> = Spin::new(Name::new("pinfold"));
static DOMAIN: Spin<Name> = Spin::new(Name::new("(none)"));

/// The host's name, for `/proc/sys/kernel/hostname`.
pub fn host_name() -> alloc::vec::Vec<u8> {
    let n = HOST.lock().0;
    n.iter().copied().take_while(|&b| b != 0).collect()
}

/// What `uname` calls this kernel: programs ask for a Linux that knows what we know.
pub const RELEASE: &str = "6.12.0";
pub const VERSION: &str = "#1 SMP Pinfold";

fn uname(f: &mut TrapFrame) -> SysResult {
    let mut out = [0u8; 65 * 6];
    let names = [
        Name::new("Linux"),
        *HOST.lock(),
        Name::new(RELEASE),
        Name::new(VERSION),
        Name::new("x86_64"),
        *DOMAIN.lock(),
    ];
    for (slot, name) in out.chunks_exact_mut(65).zip(names) {
        slot.copy_from_slice(&name.0);
    }
    copy_to_user(f.arg(0), &out)?;
    Ok(0)
}

fn set_name(which: &Spin<Name>, at: u64, len: u64) -> SysResult {
    need(CAP_SYS_ADMIN)?;
    if len > 64 {
        return Err(Errno::EINVAL);
    }
    let mut n = [0u8; 65];
    copy_from_user(&mut n[..len as usize], at)?;
    *which.lock() = Name(n);
    Ok(0)
}

fn sethostname(f: &mut TrapFrame) -> SysResult {
    set_name(&HOST, f.arg(0), f.arg(1))
}

fn setdomainname(f: &mut TrapFrame) -> SysResult {
    set_name(&DOMAIN, f.arg(0), f.arg(1))
}

fn sysinfo(f: &mut TrapFrame) -> SysResult {
    let (total, free) = crate::memory::totals();
    let tasks = table::lock();
    let procs = tasks.used() as u64;
    drop(tasks);
    // uptime, loads[3], totalram, freeram, sharedram, bufferram, totalswap, freeswap, procs, totalhigh, freehigh, unit
    let mut w = [0u64; 14];
    w[0] = arch::time::now_ns() / 1_000_000_000;
    w[4] = total * 4096;
    w[5] = free * 4096;
    w[10] = procs & 0xffff;
    w[13] = 1;
    put_user(f.arg(0), &w)?;
    Ok(0)
}

fn getrandom(f: &mut TrapFrame) -> SysResult {
    let (at, len, flags) = (f.arg(0), f.arg(1) as usize, f.arg(2) as u32);
    if flags & !(sys::GRND_NONBLOCK | sys::GRND_RANDOM | sys::GRND_INSECURE) != 0
        || flags & (sys::GRND_RANDOM | sys::GRND_INSECURE) == sys::GRND_RANDOM | sys::GRND_INSECURE
    {
        return Err(Errno::EINVAL);
    }
    let len = len.min(i32::MAX as usize & !4095);
    let mut done = 0;
    let mut buf = [0u8; 256];
    while done < len {
        let n = (len - done).min(buf.len());
        crate::fs::random::fill(&mut buf[..n]);
        if let Err(e) = copy_to_user(at.wrapping_add(done as u64), &buf[..n]) {
            return if done == 0 { Err(e) } else { Ok(done) };
        }
        done += n;
        if task::signal_pending() && done < len {
            break;
        }
        task::cond_resched();
    }
    Ok(done)
}

// SAFETY: two integers, no padding.
unsafe impl arch::uaccess::Pod for Limit {}

fn do_limit(p: &task::Process, which: u32, new: Option<Limit>) -> Result<Limit, Errno> {
    if which as usize >= NRLIMITS {
        return Err(Errno::EINVAL);
    }
    let old = p.limit(which);
    if let Some(new) = new {
        if new.soft > new.hard {
            return Err(Errno::EINVAL);
        }
        if which == RLIMIT_NOFILE && new.hard > 1 << 20 {
            return Err(Errno::EPERM);
        }
        if new.hard > old.hard {
            need(CAP_SYS_RESOURCE)?;
        }
        p.set_limit(which, new)?;
    }
    Ok(old)
}

fn prlimit64(f: &mut TrapFrame) -> SysResult {
    let (pid, which, new, old) = (f.arg(0) as i32, f.arg(1) as u32, f.arg(2), f.arg(3));
    let new = if new != 0 {
        Some(get_user::<Limit>(new)?)
    } else {
        None
    };
    let before = if pid == 0 {
        do_limit(&current().process, which, new)?
    } else {
        let t = table::find_thread(pid as u32).ok_or(Errno::ESRCH)?;
        let (mine, theirs) = (current().process.creds(), t.process.creds());
        if !core::ptr::eq(&*t.process, &*current().process)
            && !mine.capable(CAP_SYS_RESOURCE)
            && [theirs.uid, theirs.euid, theirs.suid]
                .iter()
                .any(|u| *u != mine.uid)
        {
            return Err(Errno::EPERM);
        }
        do_limit(&t.process, which, new)?
    };
    if old != 0 {
        put_user(old, &before)?;
    }
    Ok(0)
}

fn getrlimit(f: &mut TrapFrame) -> SysResult {
    let l = do_limit(&current().process, f.arg(0) as u32, None)?;
    put_user(f.arg(1), &l)?;
    Ok(0)
}

fn setrlimit(f: &mut TrapFrame) -> SysResult {
    let new: Limit = get_user(f.arg(1))?;
    do_limit(&current().process, f.arg(0) as u32, Some(new))?;
    Ok(0)
}

fn getrusage(f: &mut TrapFrame) -> SysResult {
    let me = current();
    let mut usage = match f.arg(0) as i32 {
        0 => me.process.usage(),
        -1 => me.process.children_usage(),
        1 => acct::of_thread(me),
        _ => return Err(Errno::EINVAL),
    };
    if f.arg(0) as i32 == 1
        && let Some(space) = me.space()
    {
        usage.max_rss_kib = space.max_rss_kib();
    }
    put_user(f.arg(1), &rusage(&usage))?;
    Ok(0)
}

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;

fn arch_prctl(f: &mut TrapFrame) -> SysResult {
    let (code, addr) = (f.arg(0), f.arg(1));
    match code {
        ARCH_SET_FS | ARCH_SET_GS if addr >= mm::USER_END => return Err(Errno::EPERM),
        ARCH_SET_FS => arch::set_fs_base(addr),
        ARCH_SET_GS => arch::set_user_gs_base(addr),
        ARCH_GET_FS => put_user(addr, &arch::fs_base())?,
        ARCH_GET_GS => put_user(addr, &arch::user_gs_base())?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn prctl(f: &mut TrapFrame) -> SysResult {
    let (op, a, b, c, d) = (f.arg(0) as u32, f.arg(1), f.arg(2), f.arg(3), f.arg(4));
    let me = current();
    let p = &me.process;
    match op {
        pr::PR_SET_NAME => {
            let mut name = [0u8; 16];
            for (i, slot) in name[..15].iter_mut().enumerate() {
                let byte: u8 = get_user(a.wrapping_add(i as u64))?;
                if byte == 0 {
                    break;
                }
                *slot = byte;
            }
            *me.comm.lock() = name;
        }
        pr::PR_GET_NAME => {
            let name = *me.comm.lock();
            copy_to_user(a, &name)?;
        }
        pr::PR_SET_PDEATHSIG if a <= 64 => p.death_signal.store(a as u32, Ordering::Relaxed),
        pr::PR_GET_PDEATHSIG => put_user(a, &p.death_signal.load(Ordering::Relaxed))?,
        pr::PR_GET_DUMPABLE => return Ok(p.dumpable.load(Ordering::Relaxed) as usize),
        pr::PR_SET_DUMPABLE if a <= 1 => p.dumpable.store(a as u8, Ordering::Relaxed),
        pr::PR_SET_CHILD_SUBREAPER => p.subreaper.store(a != 0, Ordering::Relaxed),
        pr::PR_GET_CHILD_SUBREAPER => put_user(a, &(p.subreaper.load(Ordering::Relaxed) as u32))?,
        pr::PR_SET_NO_NEW_PRIVS if a == 1 && b == 0 && c == 0 && d == 0 => {
            p.with_creds(|creds| creds.no_new_privs = true);
        }
        pr::PR_GET_NO_NEW_PRIVS if a == 0 && b == 0 && c == 0 && d == 0 => {
            return Ok(p.creds().no_new_privs as usize);
        }
        pr::PR_SET_TIMERSLACK => p
            .timer_slack
            .store(if a == 0 { 50_000 } else { a }, Ordering::Relaxed),
        pr::PR_GET_TIMERSLACK => return Ok(p.timer_slack.load(Ordering::Relaxed) as usize),
        pr::PR_CAPBSET_READ if CAP_ALL & 1 << a.min(63) != 0 => {
            return Ok((p.creds().cap_bounding >> a & 1) as usize);
        }
        pr::PR_CAPBSET_DROP if CAP_ALL & 1 << a.min(63) != 0 => {
            p.with_creds(|creds| creds.cap_bounding &= !(1 << a));
        }
        pr::PR_GET_KEEPCAPS => return Ok((p.creds().securebits >> 4 & 1) as usize),
        pr::PR_SET_KEEPCAPS if a <= 1 => {
            p.with_creds(|creds| creds.securebits = creds.securebits & !16 | (a as u32) << 4);
        }
        pr::PR_GET_SECUREBITS => return Ok(p.creds().securebits as usize),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn personality(f: &mut TrapFrame) -> SysResult {
    let p = &current().process;
    let new = f.arg(0) as u32;
    let old = p.personality.load(Ordering::Relaxed);
    if new != u32::MAX {
        p.personality.store(new, Ordering::Relaxed);
    }
    Ok(old as usize)
}

const MEMBARRIER_QUERY: u32 = 0;
const MEMBARRIER_GLOBAL: u32 = 1;
const MEMBARRIER_GLOBAL_EXPEDITED: u32 = 2;
const MEMBARRIER_PRIVATE_EXPEDITED: u32 = 8;
const MEMBARRIER_PRIVATE_SYNC_CORE: u32 = 32;
const MEMBARRIER_GET_REGISTRATIONS: u32 = 512;
/// Each kind that registers, as its registration's command.
const MEMBARRIER_REGISTER: u32 = 4 | 16 | 64;

fn nothing() {}

/// Every kind interrupts every CPU: taking the interrupt orders what came before against what comes after, and its
/// end serialises the CPU.
fn membarrier(f: &mut TrapFrame) -> SysResult {
    let registered = &current().process.membarrier;
    if f.arg(1) != 0 {
        return Err(Errno::EINVAL);
    }
    let cmd = f.arg(0) as u32;
    match cmd {
        MEMBARRIER_QUERY => {
            return Ok((MEMBARRIER_GLOBAL
                | MEMBARRIER_GLOBAL_EXPEDITED
                | MEMBARRIER_PRIVATE_EXPEDITED
                | MEMBARRIER_PRIVATE_SYNC_CORE
                | MEMBARRIER_REGISTER
                | MEMBARRIER_GET_REGISTRATIONS) as usize);
        }
        MEMBARRIER_GET_REGISTRATIONS => return Ok(registered.load(Ordering::Relaxed) as usize),
        MEMBARRIER_GLOBAL | MEMBARRIER_GLOBAL_EXPEDITED => {}
        // A private one is for who has registered: its registration is the next bit.
        MEMBARRIER_PRIVATE_EXPEDITED | MEMBARRIER_PRIVATE_SYNC_CORE => {
            if registered.load(Ordering::Relaxed) & cmd << 1 == 0 {
                return Err(Errno::EPERM);
            }
        }
        _ if cmd.is_power_of_two() && cmd & MEMBARRIER_REGISTER != 0 => {
            registered.fetch_or(cmd, Ordering::Relaxed);
            return Ok(0);
        }
        _ => return Err(Errno::EINVAL),
    }
    arch::run_on_all(nothing);
    Ok(0)
}

fn reboot(f: &mut TrapFrame) -> SysResult {
    const MAGIC1: u32 = 0xfee1_dead;
    const MAGIC2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
    const CAD_ON: u32 = 0x89ab_cdef;
    const CAD_OFF: u32 = 0;
    const RESTART: u32 = 0x0123_4567;
    const HALT: u32 = 0xcdef_0123;
    const POWER_OFF: u32 = 0x4321_fedc;
    need(CAP_SYS_BOOT)?;
    if f.arg(0) as u32 != MAGIC1 || !MAGIC2.contains(&(f.arg(1) as u32)) {
        return Err(Errno::EINVAL);
    }
    match f.arg(2) as u32 {
        CAD_ON | CAD_OFF => Ok(0),
        RESTART | HALT | POWER_OFF => task::init::finish(0),
        _ => Err(Errno::EINVAL),
    }
}

/// A Linux built without it says the same; the C library copes. Not worth a line in the log.
fn rseq(_: &mut TrapFrame) -> SysResult {
    Err(Errno::ENOSYS)
}
