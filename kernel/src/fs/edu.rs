//! /dev/edu: QEMU's teaching device for programs. Its DMA engine works on the caller's own pages, pinned for one transfer or, as a
//! registered buffer, for as long as the file is open.
//!
//! | request | argument | what it does |
//! |---|---|---|
//! | `_IOWR('e', 1, u32)` | a number | its factorial, in 32 bits |
//! | `_IOW('e', 2, struct dma)` | address, length, device offset, direction | one transfer |
//! | `_IOW('e', 3, struct buffer)` | address, length | registers a buffer: pins that last |
//! | `_IO('e', 4)` | | lets go of it |
//! | `_IOW('e', 5, struct dma)` | as 2, the address counted from the buffer's first byte | one transfer |
//!
//! `mmap` shows its registers: a shared mapping is the device itself (and can tell it to reach any memory, or,
//! with a number that it has not, to end QEMU), a private one copies a page at the first write. They take words of 4 bytes.
//!
//! `EFAULT` memory that cannot be pinned, `EINVAL` more than the device or the buffer has, `ENXIO` no buffer, `EBUSY` one already, `ENOMEM`
//! a buffer beyond RLIMIT_MEMLOCK; `ETIMEDOUT` the device has not answered, and keeps the pages pinned for ever; `EIO` it is not used any more.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::file::File;
use super::inode::{FileOps, Mappable};
use crate::SysResult;
use crate::arch::X86;
use crate::arch::uaccess::{get_user, put_user};
use crate::dev::block::{Lent, Memory, PIECES};
use crate::dev::edu::{BUFFER_LEN, Edu};
use crate::sync::Mutex;
use crate::task::current;
use crate::task::locked::Account;
use crate::task::space::can_wait;
use mm::addr::USER_END;
use mm::gup::{GupFlags, LongtermPin, PageSlot, PinnedPages, Read, Write};
use mm::gup::{pin_longterm, pin_user_pages_fast, to_program};
use mm::table::Caching;
use mm::{Errno, PAGE_SIZE};

const FACTORIAL: u32 = 0xc004_6501;
const DMA: u32 = 0x4018_6502;
const REGISTER: u32 = 0x4010_6503;
const UNREGISTER: u32 = 0x0000_6504;
const DMA_REGISTERED: u32 = 0x4018_6505;

type Pins = LongtermPin<X86, Write, Vec<PageSlot>>;

/// A registered buffer: where it begins in its first page, its length, its pages.
struct Buffer {
    skip: u64,
    len: u64,
    pins: Lent<Pins>,
    _account: Account,
}

struct Device {
    edu: &'static Edu,
    buffer: Mutex<Option<Buffer>>,
}

/// A transfer that a program asks for.
struct Dma {
    addr: u64,
    len: u64,
    offset: u64,
    to_device: bool,
}

impl Dma {
    fn of(arg: u64) -> Result<Self, Errno> {
        let [addr, sizes, direction]: [u64; 3] = get_user(arg)?;
        let dma = Dma {
            addr,
            len: sizes & 0xffff_ffff,
            offset: sizes >> 32,
            to_device: direction & 0xffff_ffff != 0,
        };
        if dma.len == 0 || dma.len > BUFFER_LEN {
            return Err(Errno::EINVAL);
        }
        Ok(dma)
    }
}

pub fn open() -> Result<Arc<dyn FileOps>, Errno> {
    let edu = crate::dev::edu::edu().ok_or(Errno::ENXIO)?;
    Ok(Arc::new(Device {
        edu,
        buffer: Mutex::new(None),
    }))
}

/// How many pages `len` bytes at a user's `addr` lie in.
fn pages(addr: u64, len: u64) -> Result<usize, Errno> {
    let end = addr.checked_add(len).filter(|end| *end <= USER_END);
    end.ok_or(Errno::EFAULT)?;
    Ok(((addr & (PAGE_SIZE - 1)) + len).div_ceil(PAGE_SIZE) as usize)
}

impl Device {
    fn dma(&self, dma: &Dma) -> SysResult {
        let skip = dma.addr & (PAGE_SIZE - 1);
        let mut slots = [PageSlot::EMPTY; 2];
        let slots = &mut slots[..pages(dma.addr, dma.len)?];
        let space = current().space().ok_or(Errno::EFAULT)?;
        let (wait, none) = (&mut can_wait(), GupFlags::empty());
        if dma.to_device {
            let pins: PinnedPages<_, Read, _> =
                pin_user_pages_fast(space, wait, dma.addr, none, slots).map_err(to_program)?;
            self.edu
                .transfer(dma.offset, &mut Lent::new(pins), |pins| {
                    Memory::to_drain(pins, skip, dma.len)
                })?;
        } else {
            let pins: PinnedPages<_, Write, _> =
                pin_user_pages_fast(space, wait, dma.addr, none, slots).map_err(to_program)?;
            self.edu
                .transfer(dma.offset, &mut Lent::new(pins), |pins| {
                    Memory::to_fill(pins, skip, dma.len)
                })?;
        }
        Ok(0)
    }

    fn register(&self, arg: u64) -> SysResult {
        let [addr, len]: [u64; 2] = get_user(arg)?;
        let mut buffer = self.buffer.lock_killable()?;
        if buffer.is_some() {
            return Err(Errno::EBUSY);
        }
        if len == 0 || len > (PIECES as u64 - 1) * PAGE_SIZE {
            return Err(Errno::EINVAL);
        }
        let want = pages(addr, len)?;
        let mut slots = Vec::new();
        slots.try_reserve_exact(want).map_err(|_| Errno::ENOMEM)?;
        slots.resize(want, PageSlot::EMPTY);
        let space = current().space().ok_or(Errno::EFAULT)?;
        let account = Account::charge(space, want as u64)?;
        let pins = pin_longterm(space, &mut can_wait(), addr, GupFlags::empty(), slots)
            .map_err(to_program)?;
        if pins.len() < want {
            pins.unpin_clean();
            return Err(Errno::EFAULT);
        }
        *buffer = Some(Buffer {
            skip: addr & (PAGE_SIZE - 1),
            len,
            pins: Lent::new(pins),
            _account: account,
        });
        Ok(0)
    }

    fn dma_registered(&self, dma: &Dma) -> SysResult {
        let mut buffer = self.buffer.lock_killable()?;
        let buffer = buffer.as_mut().ok_or(Errno::ENXIO)?;
        let end = dma.addr.checked_add(dma.len);
        if end.is_none_or(|end| end > buffer.len) {
            return Err(Errno::EINVAL);
        }
        let skip = buffer.skip + dma.addr;
        self.edu
            .transfer(dma.offset, &mut buffer.pins, |pins| match dma.to_device {
                true => Memory::to_drain(pins, skip, dma.len),
                false => Memory::to_fill(pins, skip, dma.len),
            })?;
        Ok(0)
    }
}

impl FileOps for Device {
    fn seekable(&self) -> bool {
        false
    }

    fn mmap_at(&self, _file: &File, offset: u64, _len: u64) -> Result<Mappable, Errno> {
        let window = self.edu.window();
        let len = window.len.checked_sub(offset).ok_or(Errno::EINVAL)?;
        let first = window.first + offset;
        Ok(Mappable::Raw {
            first,
            len,
            caching: Caching::Off,
        })
    }

    fn ioctl(&self, _file: &File, cmd: u32, arg: u64) -> SysResult {
        match cmd {
            FACTORIAL => {
                let n: u32 = get_user(arg)?;
                put_user(arg, &self.edu.factorial(n)?)?;
                Ok(0)
            }
            DMA => self.dma(&Dma::of(arg)?),
            REGISTER => self.register(arg),
            UNREGISTER => match self.buffer.lock_killable()?.take() {
                Some(_) => Ok(0),
                None => Err(Errno::ENXIO),
            },
            DMA_REGISTERED => self.dma_registered(&Dma::of(arg)?),
            _ => Err(Errno::ENOTTY),
        }
    }
}
