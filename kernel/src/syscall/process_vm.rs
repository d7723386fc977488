//! Copies between two processes: `process_vm_readv`, `process_vm_writev`.
//!
//! The remote side is pinned a few pages at a time, the local side is copied to or from as in any read or write: no
//! lock is held while bytes move.

use alloc::sync::Arc;
use linux_raw_sys::general as sys;

use super::Handler;
use super::args::Spans;
use crate::SysResult;
use crate::arch::{TrapFrame, X86};
use crate::fs::IoBuf;
use crate::task::ptrace::attach::{Mode, may_access};
use crate::task::space::can_wait;
use crate::task::{Space, cond_resched, current, table};
use mm::gup::{self, Access, GupFlags, PageSlot, PinnedPages, Read, Write};
use mm::ops::access;
use mm::{Errno, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;

/// The family's calls.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_process_vm_readv, |f| copy(f, false)),
    (sys::__NR_process_vm_writev, |f| copy(f, true)),
];

fn copy(f: &mut TrapFrame, write: bool) -> SysResult {
    if f.arg(5) != 0 {
        return Err(Errno::EINVAL);
    }
    let (mut local, mut remote) = (Spans::new(), Spans::new());
    let local = local.read_local(f.arg(1), f.arg(2))?;
    let mut buf = IoBuf::user_vec(local);
    let all = buf.left();
    if all == 0 {
        return Ok(0);
    }
    let remote = remote.read(f.arg(3), f.arg(4))?;
    if remote.iter().all(|r| r.len == 0) {
        return Ok(0);
    }
    let space = space_of(f.arg(0) as u32)?;
    for r in remote {
        let len = r.len.min(buf.left());
        let moved = if write {
            each::<Write>(&space, r.addr, len, |page, n| {
                // SAFETY: `each` gives `n` bytes of a page pinned for writing; its process may use them meanwhile.
                unsafe { buf.take_raw(page, n) }
            })
        } else {
            each::<Read>(&space, r.addr, len, |page, n| {
                // SAFETY: `each` gives `n` bytes of a pinned page; its process may write them meanwhile.
                unsafe { buf.put_raw(page, n) }
            })
        };
        if moved < len || buf.left() == 0 {
            break;
        }
    }
    match all - buf.left() {
        0 => Err(Errno::EFAULT),
        n => Ok(n),
    }
}

/// Runs `f` on `len` bytes from `at` of `space`, a page or less at a time; how many bytes it could move.
#[inline(always)]
fn each<A: Access>(
    space: &Space,
    at: u64,
    len: usize,
    mut f: impl FnMut(*mut u8, usize) -> usize,
) -> usize {
    let mut pages = |pins: &PinnedPages<X86, A, &mut [PageSlot]>, from: usize, n: usize| {
        let mut done = 0;
        while done < n {
            let Some((page, run)) = pins.byte(from + done) else {
                break;
            };
            let want = run.min(n - done);
            let got = f(page, want);
            done += got;
            if got < want {
                break;
            }
        }
        done
    };
    let mut wait = can_wait();
    let mut moved = 0;
    // The caller's own memory, as far as it is mapped and needs no lock: NOFAULT. The rest is for `access`, which
    // does not ask for the caller's protection keys.
    let own = current()
        .space()
        .is_some_and(|s| core::ptr::eq(&**s, space));
    while own && moved < len {
        let Some(va) = at.checked_add(moved as u64) else {
            break;
        };
        let off = va as usize % PAGE;
        let mut slots = [PageSlot::EMPTY; 16];
        let want = off
            .saturating_add(len - moved)
            .div_ceil(PAGE)
            .min(slots.len());
        let slots = &mut slots[..want];
        let Ok(pins) =
            gup::pin_user_pages_fast::<A, _, _>(space, &mut wait, va, GupFlags::NOFAULT, slots)
        else {
            break;
        };
        let n = (pins.len() * PAGE - off).min(len - moved);
        let got = pages(&pins, off, n);
        moved += got;
        if got < n {
            return moved;
        }
        cond_resched();
    }
    let Some(va) = at.checked_add(moved as u64).filter(|_| moved < len) else {
        return moved;
    };
    let rest = len - moved;
    // Whatever goes wrong: what was moved counts, and nothing at all is EFAULT.
    let _ = access::each::<A, X86>(
        space,
        &mut wait,
        va,
        rest,
        GupFlags::empty(),
        |pins, off, _, n| {
            let got = pages(pins, off, n);
            moved += got;
            Ok(got)
        },
    );
    moved
}

/// The space of the process that thread `tid` belongs to, if the caller may look into it.
fn space_of(tid: u32) -> Result<Arc<Space>, Errno> {
    let me = current();
    if tid == me.process.pid {
        return me.space().cloned().ok_or(Errno::ESRCH);
    }
    let thread = table::find_thread(tid).ok_or(Errno::ESRCH)?;
    let space = thread.process.space().ok_or(Errno::ESRCH)?;
    may_access(&thread.process, Mode::Real)?;
    Ok(space)
}
