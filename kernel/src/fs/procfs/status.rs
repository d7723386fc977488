//! A process in numbers: stat, statm, status, limits, and the texts it was started with.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use super::super::caller;
use super::super::pseudo::Text;
use super::super::tty;
use super::process::Target;
use crate::task::{Process, Space, Thread};
use mm::Errno;

/// Sizes of an address space in pages.
#[derive(Default, Clone, Copy)]
struct Sizes {
    total: u64,
    peak: u64,
    anon: u64,
    file: u64,
    shmem: u64,
    max_rss_kib: u64,
    locked: u64,
    pinned: u64,
    data: u64,
    stack: u64,
    exec: u64,
    tables: u64,
}

impl Sizes {
    fn of(space: Option<&Arc<Space>>) -> Self {
        space.map_or_else(Self::default, |s| {
            let u = caller::space_usage(s);
            Sizes {
                total: u.total,
                peak: u.peak,
                anon: u.anon,
                file: u.file,
                shmem: u.shmem,
                max_rss_kib: u.max_rss_kib,
                locked: u.locked,
                pinned: s.pinned(),
                data: u.data,
                stack: u.stack,
                exec: u.exec,
                tables: u.tables,
            }
        })
    }

    fn rss(&self) -> u64 {
        self.anon + self.file + self.shmem
    }
}

fn comm_of(p: &Process, t: Option<&Arc<Thread>>) -> String {
    let comm = t.map_or_else(|| p.comm(), |t| *t.comm.lock());
    let end = comm.iter().position(|c| *c == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

fn letter(p: &Process, t: Option<&Arc<Thread>>) -> char {
    if p.is_zombie() {
        'Z'
    } else {
        t.map_or('X', |t| t.state_letter() as char)
    }
}

/// Hundredths of a second.
fn ticks(ns: u64) -> u64 {
    ns / 10_000_000
}

pub fn stat(target: &Target, out: &mut Text) -> fmt::Result {
    let Ok(p) = target.process() else {
        return Ok(());
    };
    let thread = target.thread().ok();
    let space = p.space();
    let sizes = Sizes::of(space.as_ref());
    let used = match (target.tid, &thread) {
        (Some(_), Some(t)) => crate::task::acct::of_thread(t),
        _ => p.usage(),
    };
    let children = p.children_usage();
    let signals = caller::signal_sets(&p, thread.as_ref());
    let (tty_nr, tpgid) = match tty::foreground_of(p.sid()) {
        Some(group) => (0x0440, i64::from(group)),
        None => (0, -1),
    };
    let layout = space.as_ref().map(caller::space_layout).unwrap_or_default();
    let nice = p.nice.load(Ordering::Relaxed);
    let start = thread
        .as_ref()
        .filter(|_| target.tid.is_some())
        .map_or(p.start_ns, |t| t.start_ns);
    write!(
        out,
        "{} ({}) {} ",
        target.tid.unwrap_or(p.pid),
        comm_of(&p, thread.as_ref()),
        letter(&p, thread.as_ref())
    )?;
    write!(
        out,
        "{} {} {} {tty_nr} {tpgid} 4194560 ",
        p.ppid(),
        p.pgid(),
        p.sid()
    )?;
    write!(
        out,
        "{} {} {} {} ",
        used.min_flt, children.min_flt, used.maj_flt, children.maj_flt
    )?;
    write!(out, "{} {} ", ticks(used.user_ns), ticks(used.system_ns))?;
    write!(
        out,
        "{} {} ",
        ticks(children.user_ns),
        ticks(children.system_ns)
    )?;
    write!(
        out,
        "{} {nice} {} 0 {} ",
        20 + nice,
        p.thread_count(),
        ticks(start)
    )?;
    write!(
        out,
        "{} {} {} ",
        sizes.total * 4096,
        sizes.rss(),
        p.limit(crate::task::process::RLIMIT_RSS).soft
    )?;
    write!(
        out,
        "{} {} {} 0 0 ",
        layout.start_code, layout.end_code, layout.start_stack
    )?;
    let low = |set: u64| set & 0x7fff_ffff;
    write!(out, "{} {} ", low(signals.shared), low(signals.blocked))?;
    write!(out, "{} {} ", low(signals.ignored), low(signals.caught))?;
    write!(out, "0 0 0 17 0 0 0 0 0 0 ")?;
    write!(
        out,
        "{} {} {} ",
        layout.start_data, layout.end_data, layout.start_brk
    )?;
    write!(
        out,
        "{} {} {} {} ",
        layout.arg_start, layout.arg_end, layout.env_start, layout.env_end
    )?;
    writeln!(out, "0")
}

pub fn statm(target: &Target, out: &mut Text) -> fmt::Result {
    let Ok(p) = target.process() else {
        return Ok(());
    };
    let s = Sizes::of(p.space().as_ref());
    writeln!(
        out,
        "{} {} {} {} 0 {} 0",
        s.total,
        s.rss(),
        s.file + s.shmem,
        s.exec,
        s.data + s.stack
    )
}

pub fn status(target: &Target, out: &mut Text) -> fmt::Result {
    let Ok(p) = target.process() else {
        return Ok(());
    };
    let thread = target.thread().ok();
    let letter = letter(&p, thread.as_ref());
    let word = match letter {
        'R' => "running",
        'S' => "sleeping",
        'D' => "disk sleep",
        'T' => "stopped",
        't' => "tracing stop",
        'Z' => "zombie",
        _ => "dead",
    };
    let creds = p.creds();
    let umask = thread.as_ref().and_then(|t| t.fs_of()).map(|f| f.umask());
    writeln!(out, "Name:\t{}", comm_of(&p, thread.as_ref()))?;
    if let Some(mask) = umask {
        writeln!(out, "Umask:\t{mask:04o}")?;
    }
    writeln!(out, "State:\t{letter} ({word})")?;
    writeln!(
        out,
        "Tgid:\t{}\nNgid:\t0\nPid:\t{}",
        p.pid,
        target.tid.unwrap_or(p.pid)
    )?;
    let tracer = thread
        .as_ref()
        .map_or(0, |t| crate::task::ptrace::tracer_tid(t));
    writeln!(out, "PPid:\t{}\nTracerPid:\t{tracer}", p.ppid())?;
    writeln!(
        out,
        "Uid:\t{}\t{}\t{}\t{}",
        creds.uid, creds.euid, creds.suid, creds.fsuid
    )?;
    writeln!(
        out,
        "Gid:\t{}\t{}\t{}\t{}",
        creds.gid, creds.egid, creds.sgid, creds.fsgid
    )?;
    let fd_size = thread
        .as_ref()
        .and_then(|t| t.files_of())
        .map_or(0, |f| f.size());
    write!(out, "FDSize:\t{fd_size}\nGroups:\t")?;
    for g in &creds.groups[..creds.ngroups] {
        write!(out, "{g} ")?;
    }
    writeln!(
        out,
        "\nNStgid:\t{0}\nNSpid:\t{1}\nNSpgid:\t{2}\nNSsid:\t{3}",
        p.pid,
        target.tid.unwrap_or(p.pid),
        p.pgid(),
        p.sid()
    )?;
    writeln!(out, "Kthread:\t{}", u8::from(p.pid == 0))?;
    if let Some(space) = p.space() {
        memory(&Sizes::of(Some(&space)), out)?;
    }
    writeln!(out, "Threads:\t{}", p.thread_count())?;
    let s = caller::signal_sets(&p, thread.as_ref());
    writeln!(
        out,
        "SigQ:\t{}/{}",
        s.queued,
        p.limit(crate::task::process::RLIMIT_SIGPENDING).soft
    )?;
    writeln!(out, "SigPnd:\t{:016x}\nShdPnd:\t{:016x}", 0, s.shared)?;
    writeln!(
        out,
        "SigBlk:\t{:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{:016x}",
        s.blocked, s.ignored, s.caught
    )?;
    writeln!(
        out,
        "CapInh:\t{:016x}\nCapPrm:\t{:016x}",
        creds.cap_inheritable, creds.cap_permitted
    )?;
    writeln!(
        out,
        "CapEff:\t{:016x}\nCapBnd:\t{:016x}",
        creds.cap_effective, creds.cap_bounding
    )?;
    writeln!(
        out,
        "CapAmb:\t{:016x}\nNoNewPrivs:\t{}",
        creds.cap_ambient,
        u8::from(creds.no_new_privs)
    )?;
    writeln!(out, "Seccomp:\t0\nSeccomp_filters:\t0")?;
    let n = crate::arch::ncpus();
    let all = if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    let cpus = thread
        .as_ref()
        .map_or(all, |t| t.affinity.load(Ordering::Relaxed) & all);
    writeln!(
        out,
        "Cpus_allowed:\t{cpus:x}\nCpus_allowed_list:\t{}",
        CpuList(cpus)
    )?;
    writeln!(out, "Mems_allowed:\t1\nMems_allowed_list:\t0")?;
    let used = thread
        .as_ref()
        .map_or_else(|| p.usage(), |t| crate::task::acct::of_thread(t));
    writeln!(out, "voluntary_ctxt_switches:\t{}", used.nvcsw)?;
    writeln!(out, "nonvoluntary_ctxt_switches:\t{}", used.nivcsw)
}

fn memory(s: &Sizes, out: &mut Text) -> fmt::Result {
    let mut row = |name: &str, kib: u64| writeln!(out, "{name}:\t{kib:8} kB");
    row("VmPeak", s.peak.max(s.total) * 4)?;
    row("VmSize", s.total * 4)?;
    row("VmLck", s.locked * 4)?;
    row("VmPin", s.pinned * 4)?;
    row("VmHWM", s.max_rss_kib.max(s.rss() * 4))?;
    row("VmRSS", s.rss() * 4)?;
    row("RssAnon", s.anon * 4)?;
    row("RssFile", s.file * 4)?;
    row("RssShmem", s.shmem * 4)?;
    row("VmData", s.data * 4)?;
    row("VmStk", s.stack * 4)?;
    row("VmExe", s.exec * 4)?;
    row("VmLib", 0)?;
    row("VmPTE", s.tables * 4)?;
    row("VmSwap", 0)?;
    row("HugetlbPages", 0)
}

/// `0-3,5` for a mask.
struct CpuList(u64);

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut at, mut first) = (0, true);
        while at < 64 {
            if self.0 >> at & 1 == 0 {
                at += 1;
                continue;
            }
            let start = at;
            while at < 64 && self.0 >> at & 1 == 1 {
                at += 1;
            }
            let comma = if first { "" } else { "," };
            first = false;
            match at - 1 - start {
                0 => write!(f, "{comma}{start}")?,
                _ => write!(f, "{comma}{start}-{}", at - 1)?,
            }
        }
        Ok(())
    }
}

/// A range of the process's own memory: what it was started with, as it has changed it since.
fn own_memory(
    target: &Target,
    out: &mut Text,
    range: fn(&caller::Layout) -> (u64, u64),
) -> fmt::Result {
    let Some(space) = target.process().ok().and_then(|p| p.space()) else {
        return Ok(());
    };
    let (start, end) = range(&caller::space_layout(&space));
    let mut at = start;
    let mut chunk = [0u8; 512];
    while at < end {
        let n = (end - at).min(chunk.len() as u64) as usize;
        let got = caller::read_space(&space, at, &mut chunk[..n]);
        out.bytes(&chunk[..got])?;
        if got < n {
            break;
        }
        at += n as u64;
    }
    Ok(())
}

pub fn cmdline(target: &Target, out: &mut Text) -> fmt::Result {
    own_memory(target, out, |l| (l.arg_start, l.arg_end))
}

pub fn environ(target: &Target, out: &mut Text) -> fmt::Result {
    own_memory(target, out, |l| (l.env_start, l.env_end))
}

pub fn comm(target: &Target, out: &mut Text) -> fmt::Result {
    let Ok(p) = target.process() else {
        return Ok(());
    };
    writeln!(out, "{}", comm_of(&p, target.thread().ok().as_ref()))
}

pub fn set_comm(target: &Target, text: &[u8]) -> Result<(), Errno> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    target.thread()?.set_comm(text);
    Ok(())
}

pub fn oom_score(target: &Target, out: &mut Text) -> fmt::Result {
    let Ok(p) = target.process() else {
        return Ok(());
    };
    let rss = Sizes::of(p.space().as_ref()).rss();
    let total = caller::memory().total.max(1);
    let adj = i64::from(p.oom_score_adj.load(Ordering::Relaxed));
    writeln!(
        out,
        "{}",
        ((rss * 1000 / total) as i64 * 2 / 3 + 667 + adj * 2 / 3).max(0)
    )
}

pub fn oom_score_adj(target: &Target, out: &mut Text) -> fmt::Result {
    let Ok(p) = target.process() else {
        return Ok(());
    };
    writeln!(out, "{}", p.oom_score_adj.load(Ordering::Relaxed))
}

pub fn set_oom_score_adj(target: &Target, text: &[u8]) -> Result<(), Errno> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let v: i32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
    if !(-1000..=1000).contains(&v) {
        return Err(Errno::EINVAL);
    }
    target.process()?.oom_score_adj.store(v, Ordering::Relaxed);
    Ok(())
}

pub fn core_filter(target: &Target, out: &mut Text) -> fmt::Result {
    let Ok(p) = target.process() else {
        return Ok(());
    };
    writeln!(out, "{:08x}", p.core_filter.load(Ordering::Relaxed))
}

pub fn set_core_filter(target: &Target, text: &[u8]) -> Result<(), Errno> {
    let text = core::str::from_utf8(text)
        .map_err(|_| Errno::EINVAL)?
        .trim();
    let v = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let v = v.map_err(|_| Errno::EINVAL)? & crate::task::coredump::FILTER_MASK;
    target.process()?.core_filter.store(v, Ordering::Relaxed);
    Ok(())
}

pub fn limits(target: &Target, out: &mut Text) -> fmt::Result {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let Ok(p) = target.process() else {
        return Ok(());
    };
    writeln!(
        out,
        "{:<25} {:<20} {:<20} {:<10}",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    )?;
    let show = |v: u64| {
        if v == u64::MAX {
            String::from("unlimited")
        } else {
            alloc::format!("{v}")
        }
    };
    for ((name, unit), limit) in NAMES.iter().zip(p.limits()) {
        writeln!(
            out,
            "{name:<25} {:<20} {:<20} {unit:<10}",
            show(limit.soft),
            show(limit.hard)
        )?;
    }
    Ok(())
}
