//! Linux's own asynchronous I/O: `io_setup` and its kin.
//!
//! What a file can do by itself (`FileOps::begin`: a disk, or a file on one, that was opened with O_DIRECT) is begun at submission and ends
//! when the device does; anything else is done at submission. Nothing can be cancelled, as in Linux.
#![forbid(unsafe_code)]

mod context;

pub use context::Contexts;

use alloc::sync::Arc;
use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{self, MAX_RW, any_deadline, check_range, offset};
use super::file::{RWF_SYNCED, vector_flags};
use super::poll::with_mask;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{get_user, put_user};
use crate::dev::flight::{Finish, Job};
use crate::fs::eventfd::EventFd;
use crate::fs::{File, IoBuf};
use crate::task::space::can_wait;
use crate::task::{Space, current};
use context::{Context, Event};
use mm::Errno;
use mm::ops::{self, FileMap, MmapArgs};
use spin::Mutex as Spin;

/// What an iocb asks, and that its end is counted by an eventfd (`linux/aio_abi.h`).
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;
const IOCB_CMD_FSYNC: u16 = 2;
const IOCB_CMD_FDSYNC: u16 = 3;
const IOCB_CMD_PREADV: u16 = 7;
const IOCB_CMD_PWRITEV: u16 = 8;
const IOCB_FLAG_RESFD: u32 = 1;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_io_setup, setup),
    (sys::__NR_io_destroy, destroy),
    (sys::__NR_io_submit, submit),
    (sys::__NR_io_cancel, cancel),
    (sys::__NR_io_getevents, getevents),
    (sys::__NR_io_pgetevents, pgetevents),
];

fn space() -> Result<&'static Arc<Space>, Errno> {
    current().space().ok_or(Errno::EFAULT)
}

/// The context whose ring is there, and can be read.
fn lookup(id: u64) -> Result<Arc<Context>, Errno> {
    get_user::<u32>(id).map_err(|_| Errno::EINVAL)?;
    space()?.aio.get(id).ok_or(Errno::EINVAL)
}

fn setup(f: &mut TrapFrame) -> SysResult {
    let (asked, to) = (f.arg(0) as u32, f.arg(1));
    let old: u64 = get_user(to)?;
    if old != 0 || asked == 0 {
        return Err(Errno::EINVAL);
    }
    crate::memory::headroom()?;
    let (context, space) = (Arc::new(Context::new(asked)?), space()?);
    let map = MmapArgs {
        addr: 0,
        len: context.region().bytes() as u64,
        prot: sys::PROT_READ | sys::PROT_WRITE,
        flags: sys::MAP_SHARED,
        file: Some(FileMap {
            object: context.region().object().clone(),
            pgoff: 0,
            readable: true,
            writable: true,
            append: false,
            executable: true,
        }),
    };
    let id = ops::mmap(space, &mut can_wait(), map)?;
    let bytes = context.region().bytes() as u64;
    space.aio.add(id, context).inspect_err(|_| {
        let _ = ops::munmap(space, &mut can_wait(), id, bytes);
    })?;
    put_user(to, &id).inspect_err(|_| {
        let _ = end(space, id);
    })?;
    Ok(0)
}

/// Waits for what is in flight.
fn end(space: &Space, id: u64) -> Result<(), Errno> {
    let context = space.aio.remove(id).ok_or(Errno::EINVAL)?;
    context.end();
    let _ = ops::munmap(space, &mut can_wait(), id, context.region().bytes() as u64);
    Ok(())
}

fn destroy(f: &mut TrapFrame) -> SysResult {
    lookup(f.arg(0))?;
    end(space()?, f.arg(0)).map(|()| 0)
}

fn submit(f: &mut TrapFrame) -> SysResult {
    let (id, count, list) = (f.arg(0), f.arg(1) as i64, f.arg(2));
    if count < 0 {
        return Err(Errno::EINVAL);
    }
    let context = lookup(id)?;
    let mut done = 0;
    for i in 0..(count as u64).min(context.nr().into()) {
        let at = list.checked_add(8 * i).ok_or(Errno::EFAULT);
        match at
            .and_then(get_user)
            .and_then(|at| submit_one(&context, at))
        {
            Ok(()) => done += 1,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
        crate::task::cond_resched();
    }
    Ok(done)
}

/// A request, for whom its end is an event.
struct Iocb {
    context: Arc<Context>,
    data: u64,
    at: u64,
    eventfd: Option<Arc<File>>,
    /// Stays open until it is over, and no longer.
    file: Spin<Option<Arc<File>>>,
}

impl Finish for Iocb {
    fn finish(&self, result: SysResult) {
        let result = match result {
            Ok(n) => n as i64,
            // No call that could be restarted.
            Err(e) if e.raw() >= Errno::ERESTARTSYS.raw() => -i64::from(Errno::EINTR.raw()),
            Err(e) => -i64::from(e.raw()),
        };
        let file = self.file.lock().take();
        drop(file);
        self.context.post(&Event(self.data, self.at, result));
        if let Some(event) = self.eventfd.as_ref().and_then(|f| f.ops_as::<EventFd>()) {
            event.count_one();
        }
    }
}

/// `struct iocb`.
struct Fields {
    data: u64,
    rw_flags: u32,
    opcode: u16,
    fd: u32,
    buf: u64,
    bytes: u64,
    offset: u64,
    flags: u32,
    resfd: u32,
}

fn submit_one(context: &Arc<Context>, at: u64) -> Result<(), Errno> {
    let w: [u64; 8] = get_user(at)?;
    let f = Fields {
        data: w[0],
        rw_flags: (w[1] >> 32) as u32,
        opcode: w[2] as u16,
        fd: (w[2] >> 32) as u32,
        buf: w[3],
        bytes: w[4],
        offset: w[5],
        flags: w[7] as u32,
        resfd: (w[7] >> 32) as u32,
    };
    if w[6] != 0 || (f.bytes as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    crate::memory::headroom().map_err(|_| Errno::EAGAIN)?;
    context.reserve()?;
    run(context, at, &f).inspect_err(|_| context.withdraw())
}

/// An error is the call's, and there is no event then.
fn run(context: &Arc<Context>, at: u64, f: &Fields) -> Result<(), Errno> {
    let file = args::real_file(f.fd.into())?;
    let mut eventfd = None;
    if f.flags & IOCB_FLAG_RESFD != 0 {
        let event = args::file(f.resfd.into())?;
        event.ops_as::<EventFd>().ok_or(Errno::EINVAL)?;
        eventfd = Some(event);
    }
    // Its key, which is 0 for all.
    put_user(at.checked_add(8).ok_or(Errno::EFAULT)?, &0u32)?;
    let job: Arc<Job> = Arc::new(Job::new(Iocb {
        context: context.clone(),
        data: f.data,
        at,
        eventfd,
        file: Spin::new(Some(file.clone())),
    }));
    match f.opcode {
        IOCB_CMD_PREAD | IOCB_CMD_PREADV => transfer(&file, f, false, &job),
        IOCB_CMD_PWRITE | IOCB_CMD_PWRITEV => transfer(&file, f, true, &job),
        IOCB_CMD_FSYNC | IOCB_CMD_FDSYNC => {
            if f.buf != 0 || f.offset != 0 || f.bytes != 0 || f.rw_flags != 0 {
                return Err(Errno::EINVAL);
            }
            match file.fsync() {
                Err(Errno::EINVAL) => return Err(Errno::EINVAL),
                result => job.over(result.map(|()| 0)),
            }
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}

fn transfer(file: &File, f: &Fields, write: bool, job: &Arc<Job>) -> Result<(), Errno> {
    vector_flags(f.rw_flags.into())?;
    let allowed = if write {
        file.writable()
    } else {
        file.readable()
    };
    if !allowed {
        return Err(Errno::EBADF);
    }
    let ops = &**file.ops();
    if ops.is_dir() {
        return Err(Errno::EINVAL);
    }
    let mut spans;
    let vector = matches!(f.opcode, IOCB_CMD_PREADV | IOCB_CMD_PWRITEV);
    let mut buf = if vector {
        spans = args::Spans::new();
        IoBuf::user_vec(spans.read_local(f.buf, f.bytes)?)
    } else {
        check_range(f.buf, f.bytes)?;
        IoBuf::user(f.buf, (f.bytes as usize).min(MAX_RW))
    };
    let pos = offset(f.offset)?;
    let sync = write && f.rw_flags & RWF_SYNCED != 0;
    let begun = match sync {
        true => None,
        false => ops.begin(file, &mut buf, pos, write, job),
    };
    match begun {
        Some(Ok(_)) => job.begun(),
        Some(Err(e)) => job.over(Err(e)),
        None => {
            let done = match (ops.seekable(), write) {
                (true, false) => file.read_at(&mut buf, pos),
                (true, true) => file.write_at(&mut buf, pos),
                (false, false) => file.read(&mut buf),
                (false, true) => file.write(&mut buf),
            };
            job.over(done.and_then(|n| match sync {
                true => file.fsync().map(|()| n),
                false => Ok(n),
            }));
        }
    }
    Ok(())
}

/// Nothing that is in flight can be called back.
fn cancel(f: &mut TrapFrame) -> SysResult {
    let _key: u32 = get_user(f.arg(1).checked_add(8).ok_or(Errno::EFAULT)?)?;
    Err(Errno::EINVAL)
}

fn getevents(f: &mut TrapFrame) -> SysResult {
    let deadline = any_deadline(f.arg(4))?;
    events(f, deadline)
}

fn pgetevents(f: &mut TrapFrame) -> SysResult {
    let deadline = any_deadline(f.arg(4))?;
    let [mask, size]: [u64; 2] = match f.arg(5) {
        0 => [0; 2],
        at => get_user(at)?,
    };
    with_mask(mask, size, || events(f, deadline))
}

fn events(f: &TrapFrame, deadline: Option<u64>) -> SysResult {
    let (least, most) = (f.arg(1) as i64, f.arg(2) as i64);
    let context = lookup(f.arg(0))?;
    if least < 0 || least > most {
        return Err(Errno::EINVAL);
    }
    context.read(least as usize, most as usize, f.arg(3), deadline)
}
