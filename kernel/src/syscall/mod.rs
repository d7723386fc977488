//! The system call table. A family is a file with its own `CALLS`; adding one is a line here.

pub mod aio;
mod args;
mod attr;

mod dir;
mod fd;
mod file;
mod futex;
mod ids;
mod mem;
pub mod misc;
mod mount;
mod pipe;
mod poll;
mod process;
mod process_vm;
mod ptrace;
mod sched;
mod signal;
mod splice;
mod stat;
mod time;
pub mod uring;
mod xattr;

use core::sync::atomic::{AtomicU64, Ordering};

use mm::Errno;

use crate::SysResult;
use crate::arch::TrapFrame;
use crate::task::{self, WORK_SIGNAL, current};

/// A system call: arguments in the frame, its result for `rax`.
pub type Handler = fn(&mut TrapFrame) -> SysResult;

/// One family's calls by number.
pub type Calls = &'static [(u32, Handler)];

const FAMILIES: &[Calls] = &[
    process::CALLS,
    signal::CALLS,
    time::CALLS,
    futex::CALLS,
    sched::CALLS,
    ids::CALLS,
    misc::CALLS,
    mem::CALLS,
    dir::CALLS,
    fd::CALLS,
    file::CALLS,
    mount::CALLS,
    pipe::CALLS,
    poll::CALLS,
    stat::CALLS,
    attr::CALLS,
    splice::CALLS,
    process_vm::CALLS,
    xattr::CALLS,
    ptrace::CALLS,
    uring::CALLS,
    aio::CALLS,
];

const SIZE: usize = 512;

static TABLE: [Handler; SIZE] = {
    let mut table: [Handler; SIZE] = [unknown; SIZE];
    let mut f = 0;
    while f < FAMILIES.len() {
        let calls = FAMILIES[f];
        let mut i = 0;
        while i < calls.len() {
            table[calls[i].0 as usize] = calls[i].1;
            i += 1;
        }
        f += 1;
    }
    table
};

/// Runs the system call of `frame`.
#[inline]
pub fn dispatch(frame: &mut TrapFrame) {
    // The number is eax: the upper half counts for nothing.
    let nr = frame.orig_rax as u32 as usize;
    let handler = if nr < SIZE { TABLE[nr] } else { unknown };
    match handler(frame) {
        Ok(v) => frame.set_ret(v as u64),
        Err(e) => failed(frame, e),
    }
}

/// An errno for user code, or a note for signal delivery to restart the call.
fn failed(frame: &mut TrapFrame, e: Errno) {
    let raw = e.raw();
    if raw >= Errno::ERESTARTSYS.raw() {
        // Even when no signal is left to deliver, the call must be restarted.
        current().set_work(WORK_SIGNAL);
    }
    frame.set_ret(-(raw as i64) as u64);
}

static REPORTED: [AtomicU64; SIZE / 64] = [const { AtomicU64::new(0) }; SIZE / 64];

/// ENOSYS, and one line for each number.
#[cold]
fn unknown(frame: &mut TrapFrame) -> SysResult {
    let nr = frame.orig_rax as u32 as usize;
    if nr < SIZE {
        let bit = 1 << (nr % 64);
        if REPORTED[nr / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            let me = current();
            crate::klog!(
                "{}({}): system call {} is not implemented",
                task::name_of(me),
                me.process.pid,
                nr
            );
        }
    }
    Err(Errno::ENOSYS)
}
