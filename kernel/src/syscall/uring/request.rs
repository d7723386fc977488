//! One submission, checked, and what is done for it.
#![forbid(unsafe_code)]

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use linux_raw_sys::io_uring as sys;
use linux_raw_sys::io_uring::io_uring_op as op;

use super::buffers::{Buffer, Registered};
use super::queues::Sqe;
use super::ring::{Ring, Waker};
use crate::SysResult;
use crate::arch::uaccess::get_user;
use crate::fs::poll::{Notify, Ready};
use crate::fs::{File, IoBuf, UserSpan};
use crate::syscall::args;
use crate::syscall::file::vector_flags;
use crate::task::time;
use crate::task::{Space, current};
use mm::Errno;

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
    Fixed(Arc<Buffer>, usize, usize),
}

/// A transfer: the only kind of request that may have to wait for its file.
pub struct Transfer {
    pub user_data: u64,
    file: Arc<File>,
    /// `None`: the file's own position.
    pos: Option<u64>,
    write: bool,
    memory: Memory,
    /// Whose addresses `memory` has. Weak: the number of a space that is gone is not used again while this lasts.
    space: Weak<Space>,
    waker: Arc<dyn Notify>,
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
    Ok(Transfer {
        user_data: f.user_data,
        file,
        pos,
        write,
        memory,
        space: Arc::downgrade(space),
        waker: Arc::new(Waker(ring.queues().clone())),
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

    /// Whether the file would not make its reader or writer wait; if it would, the ring hears of the change.
    pub fn ready(&self) -> bool {
        let file = &self.file;
        let want = match self.write {
            true => Ready::WRITE,
            false => Ready::READ,
        };
        !file.ops().pollable()
            || file
                .poll(Some(&self.waker))
                .intersects(want | Ready::ALWAYS)
    }

    /// Does it; `None`: the file is not ready, and the ring hears when that changes. That a file is O_NONBLOCK makes no
    /// difference, or nobody could wait for such files here.
    pub fn attempt(&self) -> Option<SysResult> {
        if !self.ready() {
            return None;
        }
        match self.move_bytes() {
            // Somebody else was quicker: later, as if nothing had been.
            Err(Errno::ERESTARTSYS | Errno::EAGAIN) if self.file.ops().pollable() => None,
            done => Some(done),
        }
    }

    fn move_bytes(&self) -> SysResult {
        match &self.memory {
            Memory::User(spans) => self.move_some(&mut IoBuf::user_vec(spans), 0),
            Memory::Fixed(buffer, at, len) => {
                let mut done = 0;
                buffer.each(*at, *len, |buf| {
                    // Further pages only if that does not wait: what was moved is an answer.
                    if done != 0 && !self.ready() {
                        return Ok(0);
                    }
                    let n = self.move_some(buf, done)?;
                    done += n as u64;
                    Ok(n)
                })
            }
        }
    }

    /// Moves bytes of `buf`, which lie `skip` from the request's first.
    fn move_some(&self, buf: &mut IoBuf<'_>, skip: u64) -> SysResult {
        match (self.pos, self.write) {
            (None, false) => self.file.read(buf),
            (None, true) => self.file.write(buf),
            (Some(pos), false) => self.file.read_at(buf, pos.saturating_add(skip)),
            (Some(pos), true) => self.file.write_at(buf, pos.saturating_add(skip)),
        }
    }
}
