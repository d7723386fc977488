//! Another process's memory, or one's own, copied by the kernel: what `/proc/PID/mem`, `ptrace`, core dumps and
//! `process_vm_readv` are made of.
//!
//! Pages are pinned a few at a time, copied, and let go: no lock is held while bytes move, and the process may
//! unmap them meanwhile. What was copied before something went wrong counts; nothing at all is an error.

use crate::addr::{PAGE_SHIFT, PAGE_SIZE};
use crate::errno::Errno;
use crate::gup::{
    Access, GupFlags, PageSlot, PinnedPages, Read, Write, pin_user_pages_remote, to_program,
};
use crate::phys::Hw;
use crate::space::AddressSpace;
use crate::wait::CanWait;

/// Pages pinned at a time.
const BATCH: usize = 16;

/// Copies from `at` on. `EFAULT` if not even the first byte can be read; else how many could.
pub fn read<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    at: u64,
    to: &mut [u8],
    flags: GupFlags,
) -> Result<usize, Errno> {
    each::<Read, H>(space, wait, at, to.len(), flags, |pins, off, done, n| {
        Ok(pins.copy_out(off, &mut to[done..done + n]))
    })
}

/// Copies to `at` and on, likewise. With `FORCE` private memory is written whatever its present permissions, into
/// a copy of its process's own; nobody else's page and no file ever changes.
pub fn write<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    at: u64,
    from: &[u8],
    flags: GupFlags,
) -> Result<usize, Errno> {
    each::<Write, H>(space, wait, at, from.len(), flags, |pins, off, done, n| {
        Ok(pins.copy_in(off, &from[done..done + n]))
    })
}

/// The pinned pages of `at..at + len`, a few at a time: `f(pins, offset of the first byte in them, bytes done before,
/// bytes)` returns how many it moved; fewer, or an error, ends it. For those whose other side is not a slice.
pub fn each<A: Access, H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    at: u64,
    len: usize,
    flags: GupFlags,
    mut f: impl FnMut(&PinnedPages<H, A, &mut [PageSlot]>, usize, usize, usize) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut slots = [PageSlot::EMPTY; BATCH];
    let mut done = 0;
    let mut why = Ok(());
    while done < len {
        let Some(va) = at.checked_add(done as u64) else {
            why = Err(Errno::EFAULT);
            break;
        };
        let off = (va & (PAGE_SIZE - 1)) as usize;
        let pages = (off as u64)
            .saturating_add((len - done) as u64)
            .div_ceil(PAGE_SIZE)
            .min(BATCH as u64) as usize;
        let pins =
            match pin_user_pages_remote::<A, H, _>(space, wait, va, flags, &mut slots[..pages]) {
                Ok(pins) => pins,
                Err(errno) => {
                    why = Err(errno);
                    break;
                }
            };
        if pins.is_empty() {
            break; // NOWAIT, and the next page has to be waited for
        }
        let n = ((pins.len() << PAGE_SHIFT) - off).min(len - done);
        let moved = f(&pins, off, done, n);
        drop(pins);
        match moved {
            Ok(m) => {
                done += m;
                if m < n {
                    break;
                }
            }
            Err(errno) => {
                why = Err(errno);
                break;
            }
        }
        wait.hw().cond_resched();
    }
    match why {
        Err(errno) if done == 0 => Err(to_program(errno)),
        _ => Ok(done),
    }
}
