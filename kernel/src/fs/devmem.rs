//! /dev/mem: physical memory by its addresses, for whoever has CAP_SYS_RAWIO.
//!
//! | page | `read` | `write` | `mmap` |
//! |---|---|---|---|
//! | no RAM: a device's, the firmware's | its bytes | as it takes them | uncached |
//! | RAM | `EPERM` | `EPERM` | `EPERM` |
//! | RAM below 1 MiB | zeroes | nothing happens | `EPERM` |
//! | RAM, where the command line has `devmem=ram` | its bytes | as RAM takes them | cached |
//!
//! `read` and `write` know addresses up to the end of RAM, and say `EFAULT` beyond; `mmap` those that the processor has, and says
//! `EINVAL`, as it does of what is RAM only in part. That is Linux with STRICT_DEVMEM; but Linux maps RAM below 1 MiB, which it never
//! uses, and here it is like any other. A mapping of RAM holds nothing: what a frame is next is seen, too.

use alloc::sync::Arc;
use alloc::vec::Vec;
use mm::addr::{USER_END, page_up};
use mm::table::Caching;
use mm::{Errno, PAGE_SIZE};

use super::caller::{CAP_SYS_RAWIO, capable};
use super::file::File;
use super::inode::{FileOps, Mappable};
use super::iobuf::IoBuf;
use crate::SysResult;
use crate::arch::physical_bits;
use crate::arch::uaccess::copy_kernel_nofault;
use crate::memory::{cmdline, direct, frames_end, ram_between};
use crate::task::{cond_resched, signal_pending};

const LOW_END: u64 = 1 << 20;

pub fn open() -> Result<Arc<dyn FileOps>, Errno> {
    if !capable(CAP_SYS_RAWIO) {
        return Err(Errno::EPERM);
    }
    Ok(Arc::new(Memory {
        ram: cmdline("devmem") == Some("ram"),
    }))
}

struct Memory {
    /// RAM is shown like the rest.
    ram: bool,
}

/// What may be done with the bytes of a page.
#[derive(PartialEq)]
enum Right {
    All,
    /// They look like zeroes.
    Pretend,
}

impl Memory {
    fn right(&self, page: u64) -> Result<Right, Errno> {
        if self.ram || ram_between(page, page + PAGE_SIZE) == 0 {
            Ok(Right::All)
        } else if page < LOW_END {
            Ok(Right::Pretend)
        } else {
            Err(Errno::EPERM)
        }
    }

    /// Calls `step` for each page of what `buf` is for, until one moves less than it should or a signal comes. `step` gets
    /// an address, a number of bytes in its page, and room for them.
    fn each(
        &self,
        buf: &mut IoBuf<'_>,
        pos: &mut u64,
        step: impl Fn(&mut IoBuf<'_>, u64, &mut [u8]) -> SysResult,
    ) -> SysResult {
        let end = pos.checked_add(buf.left() as u64);
        // As Linux counts, where there is no last byte at 0.
        end.filter(|end| end.wrapping_sub(1) < frames_end() * PAGE_SIZE)
            .ok_or(Errno::EFAULT)?;
        let mut room = Vec::new();
        room.try_reserve_exact(PAGE_SIZE as usize)
            .map_err(|_| Errno::ENOMEM)?;
        room.resize(PAGE_SIZE as usize, 0);
        let mut done = 0;
        while buf.left() > 0 {
            let at = *pos + done as u64;
            let n = buf.left().min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            let moved = step(buf, at, &mut room[..n])?;
            done += moved;
            if moved < n || signal_pending() {
                break;
            }
            cond_resched();
        }
        *pos += done as u64;
        Ok(done)
    }
}

impl FileOps for Memory {
    /// An error counts, whatever was read before.
    fn read(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.each(buf, pos, |buf, at, room| {
            let moved = match self.right(at & !(PAGE_SIZE - 1))? {
                Right::Pretend => buf.put_zeros(room.len()),
                Right::All => {
                    let to = room.as_mut_ptr() as u64;
                    // SAFETY: `room` is ours; whoever has CAP_SYS_RAWIO may read what is in the direct map below the end of RAM.
                    if unsafe { copy_kernel_nofault(to, direct(at), room.len()) } != 0 {
                        return Err(Errno::EFAULT);
                    }
                    buf.put(room)?
                }
            };
            if moved < room.len() {
                return Err(Errno::EFAULT);
            }
            Ok(moved)
        })
    }

    /// Likewise an address that may not be written; one that cannot be read from ends it.
    fn write(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let first = *pos;
        self.each(buf, pos, |buf, at, room| {
            let right = self.right(at & !(PAGE_SIZE - 1))?;
            if right == Right::Pretend {
                buf.skip(room.len());
                return Ok(room.len());
            }
            let got = match buf.take(room) {
                Err(_) if at > first => 0,
                got => got?,
            };
            let from = room.as_ptr() as u64;
            // SAFETY: `room` is ours; whoever has CAP_SYS_RAWIO may write what is in the direct map below the end of RAM: of
            // RAM only if the machine's owner said so (`right`), and what comes of it is his.
            match unsafe { copy_kernel_nofault(direct(at), from, got) } {
                left if left == got && got > 0 && at == first => Err(Errno::EFAULT),
                left => Ok(got - left),
            }
        })
    }

    fn unsigned_offset(&self) -> bool {
        true
    }

    fn mmap_at(&self, _file: &File, offset: u64, len: u64) -> Result<Mappable, Errno> {
        let len = page_up(len)
            .filter(|len| *len <= USER_END)
            .ok_or(Errno::ENOMEM)?;
        let end = offset.checked_add(len).filter(|_| len > 0);
        let end = end
            .filter(|end| *end <= 1 << physical_bits())
            .ok_or(Errno::EINVAL)?;
        let ram = ram_between(offset, end);
        if ram > 0 && !self.ram {
            return Err(Errno::EPERM);
        }
        if ram > 0 && ram < len {
            return Err(Errno::EINVAL);
        }
        Ok(Mappable::Raw {
            first: offset,
            len,
            caching: match ram {
                0 => Caching::Off,
                _ => Caching::Back,
            },
        })
    }
}
