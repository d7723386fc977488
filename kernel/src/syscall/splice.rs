//! Moving bytes between files and pipes by reference.

use linux_raw_sys::general as sys;

use super::Handler;
use super::args::{MAX_RW, Spans, offset, real_file};
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::uaccess::{get_user, put_user};
use crate::fs::attr::Kind;
use crate::fs::pipe::splice::{self, pipe_of};
use crate::fs::{File, IoBuf};
use mm::Errno;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_splice, splice_call),
    (sys::__NR_tee, tee),
    (sys::__NR_vmsplice, vmsplice),
    (sys::__NR_sendfile, sendfile),
    (sys::__NR_copy_file_range, copy_file_range),
];

const NONBLOCK: u32 = 2;
/// MOVE, NONBLOCK, MORE, GIFT. Pages are never taken away from who has them: MOVE and GIFT, which offer it, change
/// nothing.
const FLAGS: u64 = 15;

/// Where a file is read or written: an offset in user memory, or the file's own position.
struct Place {
    user: u64,
    pos: u64,
}

impl Place {
    fn of(file: &File, user: u64) -> Result<Self, Errno> {
        let pos = match user {
            0 => file.pos(),
            at => get_user(at)?,
        };
        Ok(Place { user, pos })
    }

    /// EINVAL unless `len` bytes can be there; ESPIPE for an offset where there is no position.
    fn check(&self, file: &File, len: usize, otherwise: Errno) -> Result<(), Errno> {
        if self.user != 0 && !file.ops().seekable() {
            return Err(otherwise);
        }
        match offset(self.pos)?.checked_add(len as u64) {
            Some(end) if end <= i64::MAX as u64 => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The file's own position is moved by what was done; an offset of the caller's is stored in any case.
    fn store(&self, file: &File, result: &SysResult) -> Result<(), Errno> {
        if self.user != 0 {
            return put_user(self.user, &self.pos);
        }
        if file.ops().seekable() && result.as_ref().is_ok_and(|&n| n > 0) {
            file.with_pos(|p| *p = self.pos);
        }
        Ok(())
    }
}

fn splice_call(f: &mut TrapFrame) -> SysResult {
    let (in_off, out_off, len) = (f.arg(1), f.arg(3), f.arg(4) as usize);
    if len == 0 {
        return Ok(0);
    }
    if u64::from(f.arg(5) as u32) & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let (from, to) = (real_file(f.arg(0))?, real_file(f.arg(2))?);
    let (from_pipe, to_pipe) = (pipe_of(&from), pipe_of(&to));
    if from_pipe.is_some() && in_off != 0 || to_pipe.is_some() && out_off != 0 {
        return Err(Errno::ESPIPE);
    }
    let mut to_place = Place::of(&to, out_off)?;
    let mut from_place = Place::of(&from, in_off)?;
    if !from.readable() || !to.writable() {
        return Err(Errno::EBADF);
    }
    let mut nonblock = f.arg(5) as u32 & NONBLOCK != 0;
    nonblock |= from_pipe.is_some() && from.nonblocking();
    nonblock |= to_pipe.is_some() && to.nonblocking();
    match (from_pipe, to_pipe) {
        (Some(a), Some(b)) if core::ptr::eq(a, b) => Err(Errno::EINVAL),
        (Some(a), Some(b)) => splice::pipe_to_pipe(a, b, len, nonblock, false),
        (Some(pipe), None) => {
            to_place.check(&to, len, Errno::EINVAL)?;
            if to.append() {
                return Err(Errno::EINVAL);
            }
            let len = len.min(MAX_RW);
            let result = splice::pipe_to_file(pipe, &to, &mut to_place.pos, len, nonblock);
            moved(&to_place, &to, result)
        }
        (None, Some(pipe)) => {
            from_place.check(&from, len, Errno::EINVAL)?;
            let len = len.min(MAX_RW);
            let result = splice::file_to_pipe(&from, &mut from_place.pos, pipe, len, nonblock);
            moved(&from_place, &from, result)
        }
        (None, None) => Err(Errno::EINVAL),
    }
}

/// An offset is stored unless the call failed.
fn moved(place: &Place, file: &File, result: SysResult) -> SysResult {
    if result.is_ok() {
        place.store(file, &result)?;
    }
    result
}

fn tee(f: &mut TrapFrame) -> SysResult {
    let len = f.arg(2) as usize;
    if u64::from(f.arg(3) as u32) & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let (from, to) = (real_file(f.arg(0))?, real_file(f.arg(1))?);
    if !from.readable() || !to.writable() {
        return Err(Errno::EBADF);
    }
    match (pipe_of(&from), pipe_of(&to)) {
        (Some(a), Some(b)) if !core::ptr::eq(a, b) => {
            let nonblock =
                f.arg(3) as u32 & NONBLOCK != 0 || from.nonblocking() || to.nonblocking();
            splice::pipe_to_pipe(a, b, len, nonblock, true)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Into a pipe by reference; out of one by copying.
fn vmsplice(f: &mut TrapFrame) -> SysResult {
    if u64::from(f.arg(3) as u32) & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let file = real_file(f.arg(0))?;
    let mut spans = Spans::new();
    let spans = spans.read_local(f.arg(1), f.arg(2))?;
    if spans.iter().all(|s| s.len == 0) {
        return Ok(0);
    }
    let pipe = pipe_of(&file).ok_or(Errno::EBADF)?;
    let nonblock = f.arg(3) as u32 & NONBLOCK != 0;
    if file.writable() {
        splice::memory_to_pipe(spans, pipe, nonblock)
    } else {
        pipe.read(&mut IoBuf::user_vec(spans), nonblock)
    }
}

fn sendfile(f: &mut TrapFrame) -> SysResult {
    let at = match f.arg(2) {
        0 => None,
        user => Some(get_user::<u64>(user)?),
    };
    let from = real_file(f.arg(1))?;
    if !from.readable() {
        return Err(Errno::EBADF);
    }
    let mut place = Place {
        user: f.arg(2),
        pos: at.unwrap_or_else(|| from.pos()),
    };
    let result = send(f, &from, &mut place);
    place.store(&from, &result)?;
    result
}

fn send(f: &TrapFrame, from: &File, place: &mut Place) -> SysResult {
    let len = f.arg(3) as usize;
    if len > i64::MAX as usize {
        return Err(Errno::EINVAL);
    }
    place.check(from, len, Errno::ESPIPE)?;
    let len = len.min(MAX_RW);
    let to = real_file(f.arg(0))?;
    if !to.writable() {
        return Err(Errno::EBADF);
    }
    if let Some(pipe) = pipe_of(&to) {
        return splice::file_to_pipe(from, &mut place.pos, pipe, len, to.nonblocking());
    }
    // It takes only sources that can be read again from where it stopped.
    if to.append() || !from.ops().seekable() {
        return Err(Errno::EINVAL);
    }
    let mut to_place = Place::of(&to, 0)?;
    to_place.check(&to, len, Errno::EINVAL)?;
    let result = splice::direct(from, &mut place.pos, &to, &mut to_place.pos, len);
    to_place.store(&to, &result)?;
    result
}

fn copy_file_range(f: &mut TrapFrame) -> SysResult {
    let (from, to) = (real_file(f.arg(0))?, real_file(f.arg(2))?);
    let mut from_place = Place::of(&from, f.arg(1))?;
    let mut to_place = Place::of(&to, f.arg(3))?;
    if f.arg(5) != 0 {
        return Err(Errno::EINVAL);
    }
    if from.dentry().is_dir() || to.dentry().is_dir() {
        return Err(Errno::EISDIR);
    }
    if from.dentry().kind() != Kind::Regular || to.dentry().kind() != Kind::Regular {
        return Err(Errno::EINVAL);
    }
    if !from.readable() || !to.writable() || to.append() {
        return Err(Errno::EBADF);
    }
    if from.inode().attr().dev != to.inode().attr().dev {
        return Err(Errno::EXDEV);
    }
    let (start, end, len) = (from_place.pos, to_place.pos, f.arg(4));
    if start.checked_add(len).is_none() || end.checked_add(len).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    // What there is to be copied may not lie where it goes to.
    let len = len.min(from.ops().size().saturating_sub(offset(start)?));
    let past = offset(end)?.saturating_add(len);
    let same = alloc::sync::Arc::ptr_eq(from.inode(), to.inode());
    if same && start < past && end < start + len {
        return Err(Errno::EINVAL);
    }
    let len = (len as usize).min(MAX_RW);
    let result = splice::direct(&from, &mut from_place.pos, &to, &mut to_place.pos, len);
    from_place.store(&from, &result)?;
    to_place.store(&to, &result)?;
    result
}
