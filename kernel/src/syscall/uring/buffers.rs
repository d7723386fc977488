//! Registered buffers: user memory pinned for as long as the ring, or the program, likes.
//!
//! Requests reach the pages that were pinned, whatever the program maps at those addresses by then. A request keeps
//! its buffer by a reference, so unregistering does not take pages from under it, nor from under a disk (`fs::Kept`).
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::arch::uaccess::get_user;
use crate::fs::{Kept, LongPin};
use crate::task::locked::Account;
use crate::task::space::can_wait;
use crate::task::{Space, current};
use mm::gup::{GupFlags, PageSlot, pin_longterm, to_program};
use mm::{Errno, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;
/// Most buffers of a ring, and most bytes of one.
const MOST: u32 = 1 << 14;
const LARGEST: u64 = 1 << 30;

/// One of them.
pub struct Buffer {
    addr: u64,
    len: u64,
    pins: Vec<LongPin>,
    _account: Account,
}

/// Slots of one pin: a list of them needs no large block of memory.
const RUN: usize = 512;

impl Buffer {
    fn pin(space: &Arc<Space>, addr: u64, len: u64) -> Result<Buffer, Errno> {
        let end = addr.checked_add(len).ok_or(Errno::EOVERFLOW)?;
        let (first, last) = (addr / PAGE_SIZE, (end - 1) / PAGE_SIZE);
        let pages = (last - first + 1) as usize;
        let account = Account::charge(space, pages as u64)?;
        let mut pins = Vec::new();
        pins.try_reserve_exact(pages.div_ceil(RUN))
            .map_err(|_| Errno::ENOMEM)?;
        let mut done = 0;
        while done < pages {
            crate::memory::headroom()?;
            let n = (pages - done).min(RUN);
            let mut slots = Vec::new();
            slots.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
            slots.resize(n, PageSlot::EMPTY);
            let at = (first + done as u64) * PAGE_SIZE;
            let pin = pin_longterm(space, &mut can_wait(), at, GupFlags::empty(), slots)
                .map_err(to_program)?;
            if pin.len() != n {
                return Err(Errno::EFAULT);
            }
            pins.push(pin);
            done += n;
        }
        Ok(Buffer {
            addr,
            len,
            pins,
            _account: account,
        })
    }

    /// Where `addr..addr + len` begins in the pages; EFAULT if it is not all in the buffer.
    pub fn offset(&self, addr: u64, len: u64) -> Result<usize, Errno> {
        let from = addr.checked_sub(self.addr).ok_or(Errno::EFAULT)?;
        let to = from.checked_add(len).ok_or(Errno::EFAULT)?;
        if to > self.len {
            return Err(Errno::EFAULT);
        }
        Ok((self.addr % PAGE_SIZE + from) as usize)
    }
}

impl Kept for Buffer {
    fn pages(&self, at: usize) -> Option<(&LongPin, usize)> {
        let pin = self.pins.get(at / PAGE / RUN)?;
        Some((pin, at % (RUN * PAGE)))
    }
}

/// A ring's buffers by number; an empty place is one that no request can use.
pub type Registered = Vec<Option<Arc<Buffer>>>;

/// Pins `count` buffers described by an iovec array at `array`.
pub fn register(array: u64, count: u32) -> Result<Registered, Errno> {
    if count == 0 || count > MOST {
        return Err(Errno::EINVAL);
    }
    let space = current().space().ok_or(Errno::EFAULT)?;
    let mut all = Vec::new();
    all.try_reserve_exact(count as usize)
        .map_err(|_| Errno::ENOMEM)?;
    for i in 0..u64::from(count) {
        let at = array.checked_add(16 * i).ok_or(Errno::EFAULT)?;
        let [addr, len]: [u64; 2] = get_user(at)?;
        all.push(match (addr, len) {
            _ if len > i64::MAX as u64 => return Err(Errno::EINVAL),
            (0, 0) => None,
            (0, _) | (_, 0) => return Err(Errno::EFAULT),
            _ if len > LARGEST => return Err(Errno::EFAULT),
            _ => Some(Arc::new(Buffer::pin(space, addr, len)?)),
        });
        if crate::task::fatal_signal_pending() {
            return Err(Errno::EINTR);
        }
    }
    Ok(all)
}
