//! One submission, checked, and what is done for it.
#![forbid(unsafe_code)]

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use linux_raw_sys::general::O_DIRECT;
use linux_raw_sys::io_uring as sys;
use linux_raw_sys::io_uring::io_uring_op as op;

use super::buffers::{Buffer, Registered};
use super::queues::{Queues, Sqe};
use super::ring::{Ring, Waker, told};
use crate::SysResult;
use crate::arch::uaccess::get_user;
use crate::dev::flight::{Finish, Job};
use crate::fs::attr::Kind;
use crate::fs::poll::{Notify, Ready};
use crate::fs::{File, IoBuf, Kept, KeptSpan, UserSpan};
use crate::syscall::args;
use crate::syscall::file::{RWF_SYNCED, vector_flags};
use crate::task::time;
use crate::task::{Space, current};
use mm::Errno;
use spin::Mutex as Spin;

/// The operations that there are.
pub const KNOWN: [op; 11] = [
    op::IORING_OP_NOP,
    op::IORING_OP_READV,
    op::IORING_OP_WRITEV,
    op::IORING_OP_FSYNC,
    op::IORING_OP_READ_FIXED,
    op::IORING_OP_WRITE_FIXED,
    op::IORING_OP_TIMEOUT,
    op::IORING_OP_TIMEOUT_REMOVE,
    op::IORING_OP_ASYNC_CANCEL,
    op::IORING_OP_READ,
    op::IORING_OP_WRITE,
];

/// Where the bytes of a transfer are.
enum Memory {
    User(Vec<UserSpan>),
    /// A part of a registered buffer: offset and length.
    Fixed(Arc<dyn Kept>, usize, usize),
}

/// A transfer: the only kind of request that may have to wait for its file.
pub struct Transfer {
    pub user_data: u64,
    file: Arc<File>,
    /// `None`: the file's own position.
    pos: Option<u64>,
    write: bool,
    /// What is written shall be on its disk when this is done.
    sync: bool,
    memory: Memory,
    /// Whose addresses `memory` has. Weak: the number of a space that is gone is not used again while this lasts.
    space: Weak<Space>,
    waker: Arc<Waker>,
}

/// What can be asked.
pub enum Request {
    Nop,
    Fsync(Arc<File>),
    Timeout { deadline: u64, count: u32 },
    CancelTimeout(u64),
    Cancel(u64),
    Transfer(Transfer),
}

/// The fields of a submission.
struct Fields {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: u32,
    off: u64,
    addr: u64,
    len: u32,
    op_flags: u32,
    user_data: u64,
    buf_index: u16,
    personality: u16,
    file_index: u32,
}

impl Fields {
    fn of(sqe: &Sqe) -> Fields {
        Fields {
            opcode: sqe[0] as u8,
            flags: (sqe[0] >> 8) as u8,
            ioprio: (sqe[0] >> 16) as u16,
            fd: (sqe[0] >> 32) as u32,
            off: sqe[1],
            addr: sqe[2],
            len: sqe[3] as u32,
            op_flags: (sqe[3] >> 32) as u32,
            user_data: sqe[4],
            buf_index: sqe[5] as u16,
            personality: (sqe[5] >> 16) as u16,
            file_index: (sqe[5] >> 32) as u32,
        }
    }

    /// EINVAL unless the fields that the operation does not have are 0.
    fn zero(&self, fields: &[u64]) -> Result<(), Errno> {
        match fields.iter().all(|f| *f == 0) {
            true => Ok(()),
            false => Err(Errno::EINVAL),
        }
    }
}

/// `user_data` of any submission.
pub fn user_data(sqe: &Sqe) -> u64 {
    sqe[4]
}

/// Checks a submission. EINVAL for what is not there, EBADF, EFAULT.
pub fn parse(ring: &Ring, sqe: &Sqe) -> Result<Request, Errno> {
    // Everything runs at once where it can: asking for a thread of its own changes nothing.
    const FLAGS: u8 = 1 << 4; // IOSQE_ASYNC
    let f = Fields::of(sqe);
    let known = KNOWN.iter().find(|known| **known as u8 == f.opcode);
    let known = known.ok_or(Errno::EINVAL)?;
    if f.flags & !FLAGS != 0 || f.personality != 0 {
        return Err(Errno::EINVAL);
    }
    match known {
        op::IORING_OP_NOP => f.zero(&[f.op_flags.into()]).map(|()| Request::Nop),
        op::IORING_OP_FSYNC => {
            f.zero(&[f.addr, f.buf_index.into(), f.file_index.into()])?;
            if f.op_flags & !sys::IORING_FSYNC_DATASYNC != 0 {
                return Err(Errno::EINVAL);
            }
            args::real_file(f.fd.into()).map(Request::Fsync)
        }
        op::IORING_OP_TIMEOUT => timeout(&f),
        op::IORING_OP_TIMEOUT_REMOVE => {
            f.zero(&[
                f.ioprio.into(),
                f.buf_index.into(),
                f.len.into(),
                f.file_index.into(),
                f.op_flags.into(),
            ])?;
            Ok(Request::CancelTimeout(f.addr))
        }
        op::IORING_OP_ASYNC_CANCEL => {
            f.zero(&[f.off, f.file_index.into(), f.op_flags.into()])?;
            Ok(Request::Cancel(f.addr))
        }
        _ => transfer(ring, &f, *known).map(Request::Transfer),
    }
}

fn timeout(f: &Fields) -> Result<Request, Errno> {
    const CLOCKS: u32 = sys::IORING_TIMEOUT_BOOTTIME | sys::IORING_TIMEOUT_REALTIME;
    f.zero(&[f.ioprio.into(), f.buf_index.into(), f.file_index.into()])?;
    // Success or not is told apart by what links have of it, and there are none.
    let known = CLOCKS | sys::IORING_TIMEOUT_ABS | sys::IORING_TIMEOUT_ETIME_SUCCESS;
    if f.len != 1 || f.op_flags & !known != 0 || f.op_flags & CLOCKS == CLOCKS {
        return Err(Errno::EINVAL);
    }
    let [sec, nsec]: [i64; 2] = get_user(f.addr)?;
    // Linux looks at the signs only.
    if sec < 0 || nsec < 0 {
        return Err(Errno::EINVAL);
    }
    let ns = (sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(nsec as u64);
    let date = f.op_flags & sys::IORING_TIMEOUT_REALTIME != 0;
    let deadline = match (f.op_flags & sys::IORING_TIMEOUT_ABS != 0, date) {
        (false, _) => time::monotonic_ns().saturating_add(ns),
        (true, false) => ns,
        (true, true) => time::monotonic_of(ns),
    };
    Ok(Request::Timeout {
        deadline,
        count: f.off as u32,
    })
}

fn transfer(ring: &Ring, f: &Fields, what: op) -> Result<Transfer, Errno> {
    let (write, fixed, vector) = match what {
        op::IORING_OP_READ => (false, false, false),
        op::IORING_OP_WRITE => (true, false, false),
        op::IORING_OP_READV => (false, false, true),
        op::IORING_OP_WRITEV => (true, false, true),
        op::IORING_OP_READ_FIXED => (false, true, false),
        _ => (true, true, false),
    };
    f.zero(&[f.ioprio.into(), f.file_index.into()])?;
    if !fixed {
        f.zero(&[f.buf_index.into()])?;
    }
    vector_flags(f.op_flags.into())?;
    let file = args::file(f.fd.into())?;
    if !(if write {
        file.writable()
    } else {
        file.readable()
    }) {
        return Err(Errno::EBADF);
    }
    // A ring that waited for itself would never go.
    if file.ops_as::<Ring>().is_some() {
        return Err(Errno::EINVAL);
    }
    let memory = if fixed {
        let (buffer, at) = fixed_part(&ring.registered(), f)?;
        Memory::Fixed(buffer, at, f.len as usize)
    } else if vector {
        Memory::User(args::vector(f.addr, f.len.into())?)
    } else {
        args::check_range(f.addr, f.len.into())?;
        let len = (f.len as usize).min(args::MAX_RW);
        let mut one = Vec::new();
        one.try_reserve_exact(1).map_err(|_| Errno::EAGAIN)?;
        one.push(UserSpan { addr: f.addr, len });
        Memory::User(one)
    };
    let pos = match f.off {
        u64::MAX => None,
        _ if !file.ops().seekable() => None,
        off => Some(args::offset(off)?),
    };
    let space = current().space().ok_or(Errno::EFAULT)?;
    let sync = write
        && f.op_flags & RWF_SYNCED != 0
        && matches!(file.dentry().kind(), Kind::Regular | Kind::Block);
    Ok(Transfer {
        user_data: f.user_data,
        file,
        pos,
        write,
        sync,
        memory,
        space: Arc::downgrade(space),
        waker: Waker::new(ring.queues()),
    })
}

fn fixed_part(registered: &Registered, f: &Fields) -> Result<(Arc<Buffer>, usize), Errno> {
    let buffer = registered.get(usize::from(f.buf_index));
    let buffer = buffer.and_then(Option::as_ref).ok_or(Errno::EFAULT)?;
    let at = buffer.offset(f.addr, f.len.into())?;
    Ok((buffer.clone(), at))
}

impl Transfer {
    /// Whether the caller's memory is what the addresses mean.
    pub fn is_here(&self) -> bool {
        matches!(self.memory, Memory::Fixed(..))
            || current()
                .space()
                .is_some_and(|s| Arc::as_ptr(s) == self.space.as_ptr())
    }

    /// Whether nobody's memory is what they mean any more.
    pub fn is_lost(&self) -> bool {
        matches!(self.memory, Memory::User(_)) && self.space.strong_count() == 0
    }

    pub fn named(&self) -> (u64, Arc<Waker>) {
        (self.user_data, self.waker.clone())
    }

    /// Whether the caller should attempt it: its file has changed, and the addresses are his or nobody's.
    pub fn is_due(&self) -> bool {
        self.waker.is_called() && (self.is_here() || self.is_lost())
    }

    /// Whether the file says that it would not make its reader or writer wait; the transfer is called when that changes.
    fn ready(&self) -> bool {
        let want = match self.write {
            true => Ready::WRITE,
            false => Ready::READ,
        };
        let waker: Arc<dyn Notify> = self.waker.clone();
        let ready = self.file.poll(Some(&waker));
        ready.intersects(want | Ready::ALWAYS)
    }

    /// Does it; `None`: it would have to wait, and is called when that may have changed. That a file is O_NONBLOCK makes no
    /// difference, or nobody could wait for such files here.
    pub fn attempt(&self) -> Option<SysResult> {
        self.waker.rest();
        let waits = |done: &SysResult| *done == Err(Errno::EAGAIN) && self.file.ops().pollable();
        let done = self.move_bytes();
        if !waits(&done) {
            return Some(done);
        }
        // It may have become ready before we watched it. If it is ready and yet not for this, what changes that calls us.
        if !self.ready() {
            return None;
        }
        let done = self.move_bytes();
        (!waits(&done)).then_some(done)
    }

    fn buf(&self) -> IoBuf<'_> {
        match &self.memory {
            Memory::User(spans) => IoBuf::user_vec(spans),
            Memory::Fixed(owner, at, len) => IoBuf::kept(KeptSpan {
                owner,
                at: *at,
                len: *len,
            }),
        }
    }

    fn move_bytes(&self) -> SysResult {
        let (file, buf) = (&self.file, &mut self.buf());
        let stream = !file.ops().seekable();
        let done = match (self.pos, self.write) {
            (None, false) if stream => file.ops().try_read(file, buf, &mut 0),
            (None, true) if stream => file.ops().try_write(file, buf, &mut 0),
            (None, false) => file.read(buf),
            (None, true) => file.write(buf),
            (Some(pos), false) => file.read_at(buf, pos),
            (Some(pos), true) => file.write_at(buf, pos),
        }?;
        if self.sync {
            file.fsync()?;
        }
        Ok(done)
    }

    /// Begins it, where the file can end it by itself (a disk, or a file on one, that was opened with O_DIRECT): then its completion
    /// comes when it does. `None`: nothing was begun.
    pub fn begin(&self, queues: &Arc<Queues>) -> Option<Result<(), Errno>> {
        let pos = self.pos?;
        if self.sync || self.file.flags() & O_DIRECT == 0 {
            return None;
        }
        if let Err(errno) = crate::memory::headroom() {
            return Some(Err(errno));
        }
        let job: Arc<Job> = Arc::new(Job::new(Flight {
            queues: queues.clone(),
            user_data: self.user_data,
            file: Spin::new(Some(self.file.clone())),
        }));
        let (file, buf) = (&self.file, &mut self.buf());
        let begun = file.ops().begin(file, buf, pos, self.write, &job)?;
        Some(begun.map(|_| job.begun()))
    }
}

/// What is left of a transfer that has been begun.
struct Flight {
    queues: Arc<Queues>,
    user_data: u64,
    /// Stays open until it is over, and no longer.
    file: Spin<Option<Arc<File>>>,
}

impl Finish for Flight {
    fn finish(&self, result: SysResult) {
        let file = self.file.lock().take();
        drop(file);
        self.queues.post(self.user_data, told(result));
    }
}
