//! io_uring: requests and answers in memory that a program shares with the kernel.
//!
//! `memory` the shared pages · `queues` the two queues in them · `request` what can be asked · `buffers` memory pinned for
//! long (LT-2) · `timeout` · `ring` the file that holds it all. Here are the three calls.
//!
//! A request runs when it is submitted, in the thread that submits it. It never waits for what another program does: one
//! that would (`FileOps::try_read` says EAGAIN) is parked, and is *called* when its file changes. That wakes who waits for
//! the ring, makes it readable to poll for whom the addresses belong to, and sets `IORING_SQ_TASKRUN`; he who enters the kernel
//! for the ring next and has that address space runs it. A request stays called until it is attempted again, so nobody takes
//! the call from him whom it is for: other processes may have the ring, too.
//! What a file can do by itself (`FileOps::begin`: a disk, or a file on one, that was opened with O_DIRECT) is begun at submission,
//! and its completion is posted when the device has done it, by the disk's thread; the file and the queues last until then, the
//! ring and the program need not.
//! There are no worker threads: a disk is waited for otherwise, and a program that only looks at the completion queue, and never at
//! that flag (liburing does), does not see parked requests end.
//!
//! No lock is held while a request runs: who cancels it meanwhile hears EALREADY, and it is not parked again.

mod buffers;
pub mod memory;
mod queues;
mod request;
mod ring;
mod timeout;

pub use timeout::{changed as timeouts_changed, run as run_timeouts};

use linux_raw_sys::general::{__NR_io_uring_enter, __NR_io_uring_register, __NR_io_uring_setup};
use linux_raw_sys::io_uring as sys;

use super::Handler;
use super::args::{any_deadline, file};
use super::poll::with_mask;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{get_user, put_user};
use crate::fs::caller;
use mm::Errno;
use queues::at;
use request::KNOWN;
use ring::Ring;

/// Most submissions that can be queued.
const MOST_ENTRIES: u32 = 32768;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (__NR_io_uring_setup, setup),
    (__NR_io_uring_enter, enter),
    (__NR_io_uring_register, register),
];

/// What there is: requests take what they need when they are submitted, may use the file's own position, and wait for
/// their file; both rings are one mapping; no completion is lost.
const FEATURES: u32 = sys::IORING_FEAT_SINGLE_MMAP
    | sys::IORING_FEAT_NODROP
    | sys::IORING_FEAT_SUBMIT_STABLE
    | sys::IORING_FEAT_RW_CUR_POS
    | sys::IORING_FEAT_FAST_POLL
    | sys::IORING_FEAT_EXT_ARG;

/// `struct io_uring_params` by words.
type Params = [u32; 30];
const SQ_ENTRIES: usize = 0;
const CQ_ENTRIES: usize = 1;
const FLAGS: usize = 2;
const FEATURES_AT: usize = 5;
const RESERVED: core::ops::Range<usize> = 7..10;
const SQ_OFF: usize = 10;
const CQ_OFF: usize = 20;

fn setup(f: &mut TrapFrame) -> SysResult {
    // Requests run in the thread that submits them or in whoever enters the kernel: nobody is interrupted for one.
    const KNOWN_FLAGS: u32 = sys::IORING_SETUP_CQSIZE
        | sys::IORING_SETUP_CLAMP
        | sys::IORING_SETUP_SUBMIT_ALL
        | sys::IORING_SETUP_COOP_TASKRUN
        | sys::IORING_SETUP_TASKRUN_FLAG;
    let (entries, addr) = (f.arg(0) as u32, f.arg(1));
    let mut p: Params = get_user(addr)?;
    let flags = p[FLAGS];
    if p[RESERVED].iter().any(|w| *w != 0) || flags & !KNOWN_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    // The flag says that program and kernel agree on when to look, so one of those ways is needed.
    if flags & sys::IORING_SETUP_TASKRUN_FLAG != 0 && flags & sys::IORING_SETUP_COOP_TASKRUN == 0 {
        return Err(Errno::EINVAL);
    }
    let clamp = |n: u32, most: u32| match n {
        0 => Err(Errno::EINVAL),
        n if n <= most => Ok(n.next_power_of_two()),
        _ if flags & sys::IORING_SETUP_CLAMP != 0 => Ok(most),
        _ => Err(Errno::EINVAL),
    };
    let sq = clamp(entries, MOST_ENTRIES)?;
    let cq = if flags & sys::IORING_SETUP_CQSIZE != 0 {
        clamp(p[CQ_ENTRIES], 2 * MOST_ENTRIES)?
    } else {
        2 * sq
    };
    if cq < sq {
        return Err(Errno::EINVAL);
    }
    let file = Ring::open(sq, cq, flags)?;
    let ring = file.ops_as::<Ring>().ok_or(Errno::EINVAL)?;
    let array = ring.queues().array();
    p[SQ_ENTRIES] = sq;
    p[CQ_ENTRIES] = cq;
    p[FEATURES_AT] = FEATURES;
    let offsets = |list: [usize; 7]| list.map(|at| at as u32);
    p[SQ_OFF..CQ_OFF].fill(0);
    p[SQ_OFF..SQ_OFF + 7].copy_from_slice(&offsets([
        at::SQ_HEAD,
        at::SQ_TAIL,
        at::SQ_MASK,
        at::SQ_ENTRIES,
        at::SQ_FLAGS,
        at::SQ_DROPPED,
        array,
    ]));
    p[CQ_OFF..].fill(0);
    p[CQ_OFF..CQ_OFF + 7].copy_from_slice(&offsets([
        at::CQ_HEAD,
        at::CQ_TAIL,
        at::CQ_MASK,
        at::CQ_ENTRIES,
        at::CQ_OVERFLOW,
        at::CQES,
        at::CQ_FLAGS,
    ]));
    put_user(addr, &p)?;
    Ok(caller::files().install(file, true)? as usize)
}

fn enter(f: &mut TrapFrame) -> SysResult {
    // Two of them are about polling threads, and say nothing to a ring that has none.
    const KNOWN_FLAGS: u32 = sys::IORING_ENTER_GETEVENTS
        | sys::IORING_ENTER_SQ_WAKEUP
        | sys::IORING_ENTER_SQ_WAIT
        | sys::IORING_ENTER_EXT_ARG;
    let (to_submit, least, flags) = (f.arg(1) as u32, f.arg(2) as u32, f.arg(3) as u32);
    if flags & !KNOWN_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let file = file(f.arg(0))?;
    let ring = file.ops_as::<Ring>().ok_or(Errno::EOPNOTSUPP)?;
    let submitted = ring.submit(to_submit)?;
    if submitted != to_submit || flags & sys::IORING_ENTER_GETEVENTS == 0 {
        return Ok(submitted as usize);
    }
    let result = wait(f, ring, least, flags);
    // What was submitted is told; what became of the waiting shows in the ring.
    match submitted {
        0 => result,
        n => Ok(n as usize),
    }
}

fn wait(f: &TrapFrame, ring: &Ring, least: u32, flags: u32) -> SysResult {
    let (mut mask, mut size, mut deadline) = (f.arg(4), f.arg(5), None);
    if flags & sys::IORING_ENTER_EXT_ARG != 0 {
        if size != 24 {
            return Err(Errno::EINVAL);
        }
        // struct io_uring_getevents_arg
        let [sigmask, words, time]: [u64; 3] = get_user(mask)?;
        if words >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        (mask, size) = (sigmask, words & u64::from(u32::MAX));
        deadline = any_deadline(time)?;
    }
    with_mask(mask, size, || ring.wait(least, deadline).map(|()| 0))
}

fn register(f: &mut TrapFrame) -> SysResult {
    const BUFFERS: u32 = sys::io_uring_register_op::IORING_REGISTER_BUFFERS as u32;
    const NO_BUFFERS: u32 = sys::io_uring_register_op::IORING_UNREGISTER_BUFFERS as u32;
    const PROBE: u32 = sys::io_uring_register_op::IORING_REGISTER_PROBE as u32;
    let (what, arg, count) = (f.arg(1) as u32, f.arg(2), f.arg(3) as u32);
    let file = file(f.arg(0))?;
    let ring = file.ops_as::<Ring>().ok_or(Errno::EOPNOTSUPP)?;
    match what {
        BUFFERS if arg == 0 => Err(Errno::EFAULT),
        BUFFERS => ring.register_buffers(arg, count).map(|()| 0),
        NO_BUFFERS if arg != 0 || count != 0 => Err(Errno::EINVAL),
        NO_BUFFERS => ring.unregister_buffers().map(|()| 0),
        PROBE => probe(arg, count).map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}

/// Fills `struct io_uring_probe`: 16 bytes, then 8 for each operation.
fn probe(arg: u64, count: u32) -> Result<(), Errno> {
    const SUPPORTED: u64 = 1 << 16;
    if arg == 0 || count > 256 {
        return Err(Errno::EINVAL);
    }
    let at = |i: u64| arg.checked_add(8 * i).ok_or(Errno::EFAULT);
    let slots = 2 + u64::from(count);
    for i in 0..slots {
        if get_user::<u64>(at(i)?)? != 0 {
            return Err(Errno::EINVAL);
        }
    }
    let last = KNOWN.iter().map(|op| *op as u64).max().unwrap_or(0);
    let told = u64::from(count).min(last + 1);
    put_user(at(0)?, &(last | told << 8))?;
    for op in 0..told {
        let known = KNOWN.iter().any(|known| *known as u64 == op);
        put_user(at(2 + op)?, &(op | if known { SUPPORTED } else { 0 }))?;
    }
    Ok(())
}
