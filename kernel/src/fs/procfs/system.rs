//! Files of /proc about the whole machine.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use super::super::caller;
use super::super::inode::Inode;
use super::super::pseudo::{FixedDir, Source, Text, TextInode, lasting_ino};
use super::{cpu, kin, kpage};
use crate::arch;
use crate::dev::block::Family;
use crate::task::{acct, coredump};
use core::sync::atomic::Ordering::Relaxed;
use mm::Errno;

type Maker = fn(&mut Text) -> fmt::Result;
type Entries = Vec<(&'static str, Arc<dyn Inode>)>;

fn file(make: Maker) -> Arc<dyn Inode> {
    TextInode::inode(kin(), lasting_ino(), 0o444, make)
}

/// The fixed files of /proc's root, whose inode is `root`.
pub fn entries(root: u64) -> Entries {
    let sys = lasting_ino();
    Vec::from([
        ("meminfo", file(meminfo)),
        ("vmstat", file(vmstat)),
        ("cpuinfo", file(cpuinfo)),
        ("stat", file(stat)),
        ("loadavg", file(loadavg)),
        ("uptime", file(uptime)),
        ("filesystems", file(filesystems)),
        ("version", file(version)),
        ("cmdline", file(cmdline)),
        ("devices", file(devices)),
        ("interrupts", file(|out| crate::dev::interrupts(out))),
        ("sys", FixedDir::inode(kin(), root, sys, sysctls(sys))),
    ])
}

fn sysctls(sys: u64) -> Entries {
    let [kernel, vm, fs] = [(); 3].map(|()| lasting_ino());
    let dir = |ino, entries| FixedDir::inode(kin(), sys, ino, entries);
    let number = |v: u64| TextInode::inode(kin(), lasting_ino(), 0o444, Box::new(Fixed(v)));
    Vec::from([
        (
            "kernel",
            dir(
                kernel,
                Vec::from([
                    ("ostype", file(|o| writeln!(o, "Linux"))),
                    ("osrelease", file(|o| writeln!(o, "{}", caller::RELEASE))),
                    ("version", file(|o| writeln!(o, "{}", caller::VERSION))),
                    ("hostname", file(|o| writeln!(o, "{}", caller::hostname()))),
                    ("core_pattern", settable(CorePattern)),
                    ("core_uses_pid", settable(CoreUsesPid)),
                    ("pid_max", number(caller::PID_MAX)),
                    ("threads-max", number(caller::threads_max())),
                    ("cap_last_cap", number(40)),
                    ("ngroups_max", number(65536)),
                    ("randomize_va_space", number(0)),
                ]),
            ),
        ),
        (
            "vm",
            dir(
                vm,
                Vec::from([
                    ("drop_caches", settable(DropCaches)),
                    ("overcommit_memory", number(0)),
                    ("max_map_count", number(65530)),
                    ("mmap_min_addr", number(65536)),
                ]),
            ),
        ),
        (
            "fs",
            dir(
                fs,
                Vec::from([
                    ("nr_open", number(super::super::fdtable::NR_OPEN as u64)),
                    ("file-max", number(i64::MAX as u64)),
                    ("pipe-max-size", number(1 << 20)),
                ]),
            ),
        ),
    ])
}

fn settable(source: impl Source) -> Arc<dyn Inode> {
    TextInode::inode(kin(), lasting_ino(), 0o644, source)
}

struct CorePattern;

impl Source for CorePattern {
    fn make(&self, out: &mut Text) -> fmt::Result {
        out.bytes(coredump::PATTERN.lock().text())?;
        out.bytes(b"\n")
    }

    fn write(&self, text: &[u8]) -> Result<(), Errno> {
        let line = text.split(|&b| b == b'\n' || b == 0).next();
        coredump::PATTERN.lock().set(line.unwrap_or_default());
        Ok(())
    }
}

struct CoreUsesPid;

impl Source for CoreUsesPid {
    fn make(&self, out: &mut Text) -> fmt::Result {
        writeln!(out, "{}", u32::from(coredump::USES_PID.load(Relaxed)))
    }

    fn write(&self, text: &[u8]) -> Result<(), Errno> {
        let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let v: i32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
        coredump::USES_PID.store(v != 0, Relaxed);
        Ok(())
    }
}

/// 1 or 3: cached blocks of disks that nobody uses. Whatever is written, what the kernel keeps for itself goes, too.
struct DropCaches;

impl Source for DropCaches {
    fn make(&self, out: &mut Text) -> fmt::Result {
        writeln!(out, "0")
    }

    fn write(&self, text: &[u8]) -> Result<(), Errno> {
        let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let what = text.trim().parse();
        if !matches!(what, Ok(1..=4)) {
            return Err(Errno::EINVAL);
        }
        if what.is_ok_and(|n| n & 1 != 0) {
            crate::fs::writeback::shrink(&mut crate::task::space::can_wait(), false);
        }
        crate::task::drop_caches();
        Ok(())
    }
}

/// A number that does not change.
struct Fixed(u64);

impl Source for Box<Fixed> {
    fn make(&self, out: &mut Text) -> fmt::Result {
        writeln!(out, "{}", self.0)
    }
}

fn meminfo(out: &mut Text) -> fmt::Result {
    let m = caller::memory();
    let c = kpage::census();
    let paged = mm::object::cache::paged_pages();
    let mut row = |name: &str, pages: u64| {
        writeln!(out, "{:<16}{:>8} kB", alloc::format!("{name}:"), pages * 4)
    };
    row("MemTotal", m.total)?;
    row("MemFree", m.free)?;
    row("MemAvailable", m.free + paged)?;
    row("Buffers", paged)?;
    row("Cached", m.file)?;
    row("SwapCached", 0)?;
    row("Active", m.active_anon + m.active_file)?;
    row("Inactive", m.inactive_anon + m.inactive_file)?;
    row("Active(anon)", m.active_anon)?;
    row("Inactive(anon)", m.inactive_anon)?;
    row("Active(file)", m.active_file)?;
    row("Inactive(file)", m.inactive_file)?;
    row("Unevictable", m.unevictable)?;
    row("Mlocked", m.unevictable)?;
    row("SwapTotal", 0)?;
    row("SwapFree", 0)?;
    row("Dirty", mm::phys::dirty_pages())?;
    row("Writeback", 0)?;
    row("AnonPages", c.anon)?;
    row("Mapped", c.mapped)?;
    row("Shmem", m.file)?;
    row("KReclaimable", 0)?;
    row("Slab", m.slab)?;
    row("SReclaimable", 0)?;
    row("SUnreclaim", m.slab)?;
    row("KernelStack", m.stacks)?;
    row("PageTables", c.tables)?;
    row("CommitLimit", m.total / 2)?;
    row("Committed_AS", c.anon + m.file)?;
    row("VmallocTotal", 1 << 33)?;
    row("VmallocUsed", m.stacks)?;
    row("VmallocChunk", 0)?;
    row("HugePages_Total", 0)?;
    Ok(())
}

fn vmstat(out: &mut Text) -> fmt::Result {
    let m = caller::memory();
    let c = kpage::census();
    let (faults, major) = caller::faults();
    for (name, value) in [
        ("nr_free_pages", m.free),
        ("nr_inactive_anon", m.inactive_anon),
        ("nr_active_anon", m.active_anon),
        ("nr_inactive_file", m.inactive_file),
        ("nr_active_file", m.active_file),
        ("nr_unevictable", m.unevictable),
        ("nr_slab_unreclaimable", m.slab),
        ("nr_mlock", m.unevictable),
        ("nr_anon_pages", c.anon),
        ("nr_mapped", c.mapped),
        ("nr_file_pages", m.file),
        ("nr_dirty", 0),
        ("nr_writeback", 0),
        ("nr_shmem", m.file),
        ("nr_kernel_stack", m.stacks * 4),
        ("nr_foll_pin_acquired", m.pins.0),
        ("nr_foll_pin_released", m.pins.1),
        ("nr_page_table_pages", c.tables),
        ("pgfault", faults),
        ("pgmajfault", major),
    ] {
        writeln!(out, "{name} {value}")?;
    }
    Ok(())
}

fn cpuinfo(out: &mut Text) -> fmt::Result {
    let n = arch::ncpus();
    let mhz = arch::time::tsc_hz() / 1000;
    let cpu = cpu::identity();
    for i in 0..n {
        writeln!(out, "processor\t: {i}")?;
        writeln!(out, "vendor_id\t: {}", cpu.vendor)?;
        writeln!(out, "cpu family\t: {}", cpu.family)?;
        writeln!(out, "model\t\t: {}", cpu.model)?;
        writeln!(out, "model name\t: {}", cpu.name)?;
        writeln!(out, "stepping\t: {}", cpu.stepping)?;
        writeln!(out, "cpu MHz\t\t: {}.{:03}", mhz / 1000, mhz % 1000)?;
        writeln!(out, "physical id\t: 0")?;
        writeln!(out, "siblings\t: {n}")?;
        writeln!(out, "core id\t\t: {i}")?;
        writeln!(out, "cpu cores\t: {n}")?;
        writeln!(out, "apicid\t\t: {i}")?;
        writeln!(out, "fpu\t\t: yes")?;
        writeln!(out, "wp\t\t: yes")?;
        writeln!(out, "flags\t\t:{}", cpu.flags)?;
        writeln!(out, "bogomips\t: {}.{:02}", mhz / 500, mhz / 5 % 100)?;
        writeln!(out, "clflush size\t: 64")?;
        writeln!(out, "cache_alignment\t: 64")?;
        writeln!(
            out,
            "address sizes\t: {} bits physical, 48 bits virtual\n",
            cpu.physical_bits
        )?;
    }
    Ok(())
}

/// Hundredths of a second.
fn ticks(ns: u64) -> u64 {
    ns / 10_000_000
}

fn stat(out: &mut Text) -> fmt::Result {
    let times: Vec<_> = (0..arch::ncpus()).map(acct::cpu_times).collect();
    let sum = times
        .iter()
        .fold((0, 0, 0), |a, t| (a.0 + t.0, a.1 + t.1, a.2 + t.2));
    let mut row = |name: &str, t: (u64, u64, u64)| {
        writeln!(
            out,
            "{name} {} 0 {} {} 0 0 0 0 0 0",
            ticks(t.0),
            ticks(t.1),
            ticks(t.2)
        )
    };
    row("cpu ", sum)?;
    for (i, t) in times.iter().enumerate() {
        row(&alloc::format!("cpu{i}"), *t)?;
    }
    let (running, _, _) = caller::task_counts();
    let boot = arch::time::realtime_offset_ns() / 1_000_000_000;
    writeln!(out, "intr 0")?;
    writeln!(out, "ctxt {}", acct::totals().0)?;
    writeln!(out, "btime {boot}")?;
    writeln!(out, "processes {}", acct::totals().1)?;
    writeln!(out, "procs_running {running}")?;
    writeln!(out, "procs_blocked 0")?;
    writeln!(out, "softirq 0 0 0 0 0 0 0 0 0 0 0")
}

fn loadavg(out: &mut Text) -> fmt::Result {
    let (running, all, last) = caller::task_counts();
    let load = caller::load_averages();
    for l in load {
        write!(out, "{}.{:02} ", l / 100, l % 100)?;
    }
    writeln!(out, "{running}/{all} {last}")
}

fn uptime(out: &mut Text) -> fmt::Result {
    let up = ticks(arch::time::now_ns());
    let idle: u64 = (0..arch::ncpus())
        .map(|c| ticks(acct::cpu_times(c).2))
        .sum();
    writeln!(
        out,
        "{}.{:02} {}.{:02}",
        up / 100,
        up % 100,
        idle / 100,
        idle % 100
    )
}

fn filesystems(out: &mut Text) -> fmt::Result {
    for name in ["sysfs", "tmpfs", "proc", "devtmpfs", "debugfs"] {
        writeln!(out, "nodev\t{name}")?;
    }
    writeln!(out, "\text4")
}

fn version(out: &mut Text) -> fmt::Result {
    writeln!(
        out,
        "Linux version {} (pinfold) {}",
        caller::RELEASE,
        caller::VERSION
    )
}

fn cmdline(out: &mut Text) -> fmt::Result {
    writeln!(out, "{}", caller::kernel_cmdline())
}

fn devices(out: &mut Text) -> fmt::Result {
    write!(
        out,
        "Character devices:\n  1 mem\n  4 ttyS\n  5 /dev/tty\n  5 /dev/console\n\nBlock devices:\n"
    )?;
    for (family, name) in [(Family::Extended, "blkext"), (Family::Virtio, "virtblk")] {
        writeln!(out, "{:3} {name}", family.major())?;
    }
    Ok(())
}
