//! Process 1: the kernel's own. It starts the first program, reaps orphans, and ends the machine when
//! the program has ended.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::{clone, current, reap, signal, table};
use crate::arch::{self, EXIT_CLEAN};
use crate::memory::{self, boot_file, cmdline, ramdisk};

/// Called by the boot CPU when its scheduler is ready.
pub(super) fn start() {
    let pid = clone::spawn_process(None, "init", init_main, 0).expect("process 1");
    assert!(pid == 1, "init is process {pid}");
}

fn shell_mode() -> bool {
    !matches!(cmdline("mode"), Some("exec") | Some("test"))
}

/// Body of process 1.
pub fn init_main(_: usize) {
    super::spawn_kernel_thread("signals", signal::send::deferred_sender, 0)
        .expect("a kernel thread");
    crate::dev::init();
    if let Err(e) = crate::fs::mount_root(ramdisk()) {
        panic!("no root file system: {e:?}");
    }
    let me = current();
    me.set_files(Some(Arc::new(crate::fs::FdTable::new())));
    me.set_fs(Some(Arc::new(crate::fs::FsContext::at_root())));
    #[cfg(feature = "test")]
    if cmdline("mode") == Some("test") {
        crate::ktest::run();
    }
    let leakcheck = memory::boot_file("boot/cmdline").is_some_and(|t| {
        t.split(|b| b.is_ascii_whitespace())
            .any(|w| w == b"leakcheck")
    });
    let before = leakcheck.then(settle);
    let status = match run_program() {
        Ok(status) => status,
        Err(e) => {
            crate::error!("the first program could not be started: {e:?}");
            127 << 8
        }
    };
    let code = if status & 0x7f == 0 {
        status >> 8 & 0xff
    } else {
        128 + (status & 0x7f)
    };
    crate::fs::shut_down();
    if let Some(before) = before {
        let after = settle();
        crate::klog!("frames: start {before} end {after}");
    }
    if shell_mode() {
        crate::klog!("the shell has ended with status {code}: power off");
    }
    finish(code)
}

/// Ends the machine with the exit record.
pub fn finish(code: u32) -> ! {
    if !shell_mode() {
        let mut record = *b"\x1epinfold exit 000\n";
        for (i, d) in [code / 100, code / 10 % 10, code % 10]
            .into_iter()
            .enumerate()
        {
            record[14 + i] = b'0' + d as u8;
        }
        let digits = match code {
            0..10 => 1,
            10..100 => 2,
            _ => 3,
        };
        let mut text = Vec::from(&record[..14]);
        text.extend_from_slice(&record[17 - digits..]);
        crate::serial::write_log(&text);
    }
    arch::power_off(EXIT_CLEAN)
}

/// Free frames once all that has ended is gone and every cache is given back.
fn settle() -> u64 {
    drop_caches();
    memory::totals().1
}

/// Gives back what is kept for speed, on every CPU: stacks, small objects, frames. May sleep.
pub fn drop_caches() {
    let me = current();
    let all = me.affinity.load(Ordering::Relaxed);
    for cpu in 0..arch::ncpus() {
        me.affinity.store(1 << cpu, Ordering::SeqCst);
        super::sched::affinity_changed(me);
        super::yield_now();
        memory::trim();
    }
    me.affinity.store(all, Ordering::SeqCst);
    mm::phys::slab::shrink(arch::X86);
}

/// Starts the first program and waits for it; its wait status.
fn run_program() -> Result<u32, Errno> {
    let me = &current().process;
    let pid = clone::spawn_process(Some(me), "program", program_main, 0)?;
    Ok(reap::reap_until(pid))
}

/// Body of the first program's thread until it is replaced.
fn program_main(_: usize) {
    let e = match become_program() {
        Ok(()) => arch::return_to_user(current().user_frame()),
        Err(e) => e,
    };
    report_exec(e);
    let code = match e {
        Errno::ENOENT => 127,
        _ => 126,
    };
    super::exit::exit_group(code << 8);
}

/// Says why the first program does not run. A program that is there and yet not found lacks its interpreter.
fn report_exec(e: Errno) {
    let path = boot_file("boot/argv")
        .and_then(|text| text.split(|b| *b == 0).next())
        .filter(|path| !path.is_empty())
        .unwrap_or(b"/bin/sh");
    let name = path.escape_ascii();
    let what = match e {
        Errno::ENOEXEC => "not an x86-64 Linux program",
        Errno::EACCES => "not executable",
        Errno::ENOENT => match crate::fs::open_exec(crate::exec::CWD, path, true, false) {
            Ok(_) => {
                "the interpreter or dynamic linker that it names is not in the guest (FILES carries it)"
            }
            Err(_) => "no such file",
        },
        _ => "exec fails",
    };
    crate::error!("cannot run {name}: {what} ({e:?})");
}

fn become_program() -> Result<(), Errno> {
    let me = current();
    let shell = shell_mode();
    if shell {
        let mut tasks = table::lock();
        tasks.set_group(&me.process, me.process.pid, me.process.pid);
    }
    me.set_fs(Some(Arc::new(crate::fs::FsContext::at_root())));
    me.set_files(Some(Arc::new(crate::fs::FdTable::new())));
    let files = crate::fs::initial_files(shell, me.process.sid())?;
    drop(me.set_files(Some(Arc::new(files))));
    let split = |bytes: &'static [u8]| -> Vec<&'static [u8]> {
        let mut v: Vec<&[u8]> = bytes.split(|&b| b == 0).collect();
        // The last string is terminated, too.
        if v.last().is_some_and(|s| s.is_empty()) {
            v.pop();
        }
        v
    };
    let mut argv = boot_file("boot/argv").map(split).unwrap_or_default();
    if argv.is_empty() {
        argv.push(b"/bin/sh");
    }
    let mut env = boot_file("boot/env").map(split).unwrap_or_default();
    if env.is_empty() {
        env = [
            &b"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"[..],
            b"HOME=/root",
            b"TERM=vt100",
            b"PS1=\\w # ",
        ]
        .into();
    }
    let frame = me.user_frame();
    // SAFETY: the top of this thread's own stack was left free for it.
    unsafe {
        frame.write(arch::TrapFrame::zero());
        crate::exec::exec_kernel(&mut *frame, argv[0], &argv, &env)
    }
}
