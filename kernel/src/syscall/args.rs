//! Arguments as calls about files take them: paths, vectors, offsets, times.

use alloc::sync::Arc;
use alloc::vec::Vec;
use linux_raw_sys::general as sys;

use crate::arch::uaccess::{Pod, get_user, read_cstr};
use crate::fs::{File, UserSpan, caller};
use mm::{Errno, USER_END};

/// Most bytes one read or write moves (Linux's MAX_RW_COUNT).
pub const MAX_RW: usize = 0x7fff_f000;
const IOV_MAX: u64 = 1024;

/// The open file behind a descriptor argument.
#[inline]
pub fn file(fd: u64) -> Result<Arc<File>, Errno> {
    caller::files().get(fd as i32)
}

/// The open file, unless it was opened with O_PATH.
pub fn real_file(fd: u64) -> Result<Arc<File>, Errno> {
    let f = file(fd)?;
    if f.is_path_only() {
        Err(Errno::EBADF)
    } else {
        Ok(f)
    }
}

/// A path; ENAMETOOLONG past PATH_MAX.
pub fn path(addr: u64) -> Result<Vec<u8>, Errno> {
    read_cstr(addr, crate::fs::path::PATH_MAX)
}

/// EFAULT for a range that no user address space can hold.
#[inline]
pub fn check_range(addr: u64, len: u64) -> Result<(), Errno> {
    match addr.checked_add(len) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// An iovec array, its total cut to what one call moves.
pub fn vector(addr: u64, count: u64) -> Result<Vec<UserSpan>, Errno> {
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    let mut spans = Vec::new();
    spans
        .try_reserve_exact(count as usize)
        .map_err(|_| Errno::ENOMEM)?;
    let mut total = 0usize;
    for i in 0..count {
        let at = addr.checked_add(i * 16).ok_or(Errno::EFAULT)?;
        let [base, len]: [u64; 2] = get_user(at)?;
        if len > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        check_range(base, len)?;
        let len = (len as usize).min(MAX_RW - total);
        total += len;
        spans.push(UserSpan { addr: base, len });
    }
    Ok(spans)
}

/// An iovec array in the kernel: a short one takes no memory from the heap.
pub struct Spans {
    few: [UserSpan; 4],
    many: Vec<UserSpan>,
}

impl Spans {
    pub fn new() -> Self {
        Spans {
            few: [UserSpan { addr: 0, len: 0 }; 4],
            many: Vec::new(),
        }
    }

    /// Reads an array of whatever addresses; EINVAL for too many elements or a negative length.
    #[inline(always)]
    pub fn read(&mut self, addr: u64, count: u64) -> Result<&mut [UserSpan], Errno> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        let count = count as usize;
        let spans = match self.few.get_mut(..count) {
            Some(few) => few,
            None => many(&mut self.many, count)?,
        };
        for (i, span) in spans.iter_mut().enumerate() {
            let at = addr.checked_add(i as u64 * 16).ok_or(Errno::EFAULT)?;
            let (addr, len): (u64, u64) = (get_user(at)?, get_user(at.wrapping_add(8))?);
            if len > i64::MAX as u64 {
                return Err(Errno::EINVAL);
            }
            let len = len as usize;
            *span = UserSpan { addr, len };
        }
        Ok(spans)
    }

    /// The same of the caller's own memory: in the user half, the total cut to what one call moves.
    pub fn read_local(&mut self, addr: u64, count: u64) -> Result<&[UserSpan], Errno> {
        let spans = self.read(addr, count)?;
        let mut total = 0;
        for span in spans.iter_mut() {
            check_range(span.addr, span.len as u64)?;
            span.len = span.len.min(MAX_RW - total);
            total += span.len;
        }
        Ok(spans)
    }
}

#[cold]
#[inline(never)]
fn many(spans: &mut Vec<UserSpan>, count: usize) -> Result<&mut [UserSpan], Errno> {
    spans.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    spans.resize(count, UserSpan { addr: 0, len: 0 });
    Ok(spans)
}

/// A file offset argument: EINVAL when negative.
pub fn offset(v: u64) -> Result<u64, Errno> {
    if (v as i64) < 0 {
        Err(Errno::EINVAL)
    } else {
        Ok(v)
    }
}

/// `struct timespec` in user memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UserTime {
    pub sec: i64,
    pub nsec: i64,
}

// SAFETY: two i64.
unsafe impl Pod for UserTime {}

/// When a call with this relative timeout gives up; `None` (a null pointer) is never.
pub fn deadline(addr: u64) -> Result<Option<u64>, Errno> {
    if addr == 0 {
        return Ok(None);
    }
    let t: UserTime = get_user(addr)?;
    if t.sec < 0 || !(0..1_000_000_000).contains(&t.nsec) {
        return Err(Errno::EINVAL);
    }
    Ok(Some(deadline_in(
        (t.sec as u64)
            .saturating_mul(1_000_000_000)
            .saturating_add(t.nsec as u64),
    )))
}

/// The same of calls that take any numbers; less than no time is over at once.
pub fn any_deadline(addr: u64) -> Result<Option<u64>, Errno> {
    if addr == 0 {
        return Ok(None);
    }
    let t: UserTime = get_user(addr)?;
    let ns = t.sec.saturating_mul(1_000_000_000).saturating_add(t.nsec);
    Ok(Some(deadline_in(ns.max(0) as u64)))
}

/// `ns` from now.
pub fn deadline_in(ns: u64) -> u64 {
    crate::arch::time::now_ns().saturating_add(ns)
}

/// The flags `mask` allows, or EINVAL.
pub fn only(flags: u64, mask: u32) -> Result<u32, Errno> {
    if flags as u32 & !mask != 0 {
        Err(Errno::EINVAL)
    } else {
        Ok(flags as u32)
    }
}

/// AT_EMPTY_PATH and whether links are followed, from the flags of an `*at` call that follows unless told not to.
pub fn at_flags(flags: u32) -> (bool, bool) {
    (
        flags & sys::AT_EMPTY_PATH != 0,
        flags & sys::AT_SYMLINK_NOFOLLOW == 0,
    )
}
