//! /sys/kernel/debug/gup_test: `mm::gup` for programs that test and measure it, with Linux's ioctls.
//!
//! The benchmarks take hold of a range, so many pages a call, let go of it, and tell how long each half took. The
//! slow ones hold the mmap lock throughout. `PIN_LONGTERM_TEST_*` keeps pins for as long as user mode likes: they
//! belong to the open file, and its last close ends them.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::mem::{forget, size_of};

use super::attr::{Attr, AttrCell, Kind};
use super::file::File;
use super::inode::{FileOps, FsStat, Inode};
use super::path::Path;
use super::pseudo::Kindred;
use crate::SysResult;
use crate::arch::X86;
use crate::arch::time::now_ns;
use crate::arch::uaccess::{Pod, copy_out, get_user, put_user};
use crate::sync::Mutex;
use crate::task::space::can_wait;
use crate::task::{Space, cond_resched, current};
use mm::gup::{self, GupFlags, PageSlot, Read, Write};
use mm::phys::{Folio, Hw};
use mm::{Errno, PAGE_SIZE};

/// `struct gup_test`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Request {
    get_us: u64,
    put_us: u64,
    addr: u64,
    size: u64,
    pages_per_call: u32,
    gup_flags: u32,
    test_flags: u32,
    which: [u32; 8],
    _end: u32,
}

// SAFETY: integers; the last word stands where C has padding.
unsafe impl Pod for Request {}

/// `struct pin_longterm_test`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Longterm {
    addr: u64,
    size: u64,
    flags: u32,
    _end: u32,
}

// SAFETY: as above.
unsafe impl Pod for Longterm {}

const fn ioctl(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'g' as u32) << 8 | number
}

const WRITES: u32 = 1;
const BOTH: u32 = 3;
const LONGTERM_START: u32 = ioctl(WRITES, 7, size_of::<Longterm>());
const LONGTERM_STOP: u32 = ioctl(0, 8, 0);
const LONGTERM_READ: u32 = ioctl(WRITES, 9, 8);
/// `test_flags`: the dump test pins.
const DUMP_PINS: u32 = 1;
/// `flags` of `PIN_LONGTERM_TEST_START`.
const USE_WRITE: u32 = 1;
const USE_FAST: u32 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Test {
    GetFast,
    PinFast,
    PinLongterm,
    Get,
    Pin,
    Dump { pins: bool },
}

impl Test {
    fn of(cmd: u32, test_flags: u32) -> Option<Self> {
        let pins = test_flags & DUMP_PINS != 0;
        let kinds = [
            Test::GetFast,
            Test::PinFast,
            Test::PinLongterm,
            Test::Get,
            Test::Pin,
            Test::Dump { pins },
        ];
        (1..)
            .zip(kinds)
            .find(|&(number, _)| cmd == ioctl(BOTH, number, size_of::<Request>()))
            .map(|(_, kind)| kind)
    }

    fn pins(self) -> bool {
        !matches!(self, Test::GetFast | Test::Get | Test::Dump { pins: false })
    }
}

/// The file.
pub fn inode(kin: Kindred, ino: u64) -> Arc<dyn Inode> {
    Arc::new(Node(
        kin,
        AttrCell::new(kin.dev, ino, Kind::Regular, 0o600, 0),
    ))
}

struct Node(Kindred, AttrCell);

impl Inode for Node {
    fn attr(&self) -> Attr {
        self.1.get(0, 0)
    }

    fn statfs(&self) -> FsStat {
        self.0.stat()
    }

    fn open(self: Arc<Self>, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        Ok(Arc::new(Device {
            longterm: Mutex::new(Pins::default()),
        }))
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Pages that this file holds pins of.
#[derive(Default)]
struct Pins {
    slots: Vec<PageSlot>,
    /// How many of them are pinned.
    count: usize,
}

impl Drop for Pins {
    fn drop(&mut self) {
        gup::unpin_user_pages(X86, &self.slots, self.count as u64);
    }
}

struct Device {
    longterm: Mutex<Pins>,
}

impl FileOps for Device {
    fn seekable(&self) -> bool {
        false
    }

    fn ioctl(&self, _file: &File, cmd: u32, arg: u64) -> SysResult {
        match cmd {
            LONGTERM_START => start(&mut *self.longterm.lock_killable()?, arg),
            LONGTERM_STOP => {
                let mut pins = self.longterm.lock_killable()?;
                *pins = Pins::default();
                Ok(0)
            }
            LONGTERM_READ => read(&*self.longterm.lock_killable()?, arg),
            _ => {
                Test::of(cmd, 0).ok_or(Errno::EINVAL)?;
                let mut request: Request = get_user(arg)?;
                let test = Test::of(cmd, request.test_flags).ok_or(Errno::EINVAL)?;
                run(test, &mut request)?;
                put_user(arg, &request)?;
                Ok(0)
            }
        }
    }
}

fn room_for(bytes: u64) -> Result<Vec<PageSlot>, Errno> {
    crate::memory::headroom()?;
    let pages = usize::try_from(bytes / PAGE_SIZE).map_err(|_| Errno::ENOMEM)?;
    let mut slots = Vec::new();
    slots.try_reserve_exact(pages).map_err(|_| Errno::ENOMEM)?;
    slots.resize(pages, PageSlot::EMPTY);
    Ok(slots)
}

/// Takes hold of the pages from `at` on, as many as there are slots. The caller answers for them.
#[inline(always)]
fn take(
    pins: bool,
    space: &Space,
    guard: Option<&mm::space::MmapReadGuard<'_, X86>>,
    at: u64,
    flags: GupFlags,
    slots: &mut [PageSlot],
) -> Result<usize, Errno> {
    let mut wait = can_wait();
    let write = flags.contains(GupFlags::WRITE);
    // What is forgotten here is let go by `put`.
    macro_rules! held {
        ($e:expr) => {{
            let held = $e.map_err(gup::to_program)?;
            let n = held.len();
            forget(held);
            Ok(n)
        }};
    }
    match (guard, pins, write) {
        (Some(guard), false, _) => {
            held!(gup::get_user_pages(guard, space, &wait, at, flags, slots))
        }
        (Some(guard), true, false) => {
            held!(gup::pin_user_pages::<_, _, Read, _>(
                guard, space, &wait, at, flags, slots
            ))
        }
        (Some(guard), true, true) => {
            held!(gup::pin_user_pages::<_, _, Write, _>(
                guard, space, &wait, at, flags, slots
            ))
        }
        (None, false, _) => {
            held!(gup::get_user_pages_fast(space, &mut wait, at, flags, slots))
        }
        (None, true, false) => {
            held!(gup::pin_user_pages_fast::<Read, _, _>(
                space, &mut wait, at, flags, slots
            ))
        }
        (None, true, true) => {
            held!(gup::pin_user_pages_fast::<Write, _, _>(
                space, &mut wait, at, flags, slots
            ))
        }
    }
}

fn put(pins: bool, slots: &[PageSlot]) {
    if pins {
        gup::unpin_user_pages(X86, slots, slots.len() as u64);
    } else {
        gup::put_pages(X86, slots);
    }
}

/// One benchmark. A call that fails or comes short ends it and shows in `size` only, as on Linux.
fn run(test: Test, r: &mut Request) -> Result<(), Errno> {
    let space = current().space().ok_or(Errno::EINVAL)?.clone();
    let mut slots = room_for(r.size)?;
    let guard = match test {
        Test::GetFast | Test::PinFast => None,
        _ => Some(
            space
                .mmap_read_killable(&mut can_wait())
                .map_err(|_| Errno::EINTR)?,
        ),
    };
    let longterm = match test {
        Test::PinLongterm => GupFlags::LONGTERM,
        _ => GupFlags::empty(),
    };
    let flags = GupFlags::from_raw(r.gup_flags).map(|f| f | longterm);
    let (pins, total, batch) = (test.pins(), slots.len(), r.pages_per_call as usize);
    let (mut done, mut asked) = (0, 0u64);
    let started = now_ns();
    while done < total {
        let want = batch.min(total - done);
        let at = r.addr.wrapping_add(asked);
        let got = flags.and_then(|flags| {
            let slots = &mut slots[done..done + want];
            take(pins, &space, guard.as_ref(), at, flags, slots)
        });
        let Ok(n @ 1..) = got else {
            break;
        };
        done += n;
        asked += want as u64 * PAGE_SIZE;
        if n < want {
            break;
        }
        if guard.is_none() {
            cond_resched();
        }
    }
    let ended = now_ns();
    r.get_us = (ended - started) / 1000;
    r.size = asked;
    let held = &slots[..done];
    if pins {
        verify(held);
    }
    if let Test::Dump { .. } = test {
        dump(r, held);
    }
    let started = now_ns();
    put(pins, held);
    r.put_us = (now_ns() - started) / 1000;
    Ok(())
}

/// Says so if a page is not pinned that should be.
fn verify(held: &[PageSlot]) {
    for (i, slot) in held.iter().enumerate() {
        let folio = Folio::of_page(X86, slot.pfn());
        if slot.pfn() != X86.phys().zero_page() && !folio.maybe_pinned() {
            klog!("gup_test: pages[{i}] is NOT dma-pinned");
            break;
        }
    }
}

/// Describes the pages whose numbers (from 1) the request has on the log.
fn dump(r: &mut Request, held: &[PageSlot]) {
    for which in &mut r.which {
        let Some(slot) = (*which as usize).checked_sub(1).map(|i| held.get(i)) else {
            continue;
        };
        let Some(slot) = slot else {
            klog!("gup_test: there is no page #{which}");
            *which = 0;
            continue;
        };
        let folio = Folio::of_page(X86, slot.pfn());
        let d = folio.desc();
        klog!(
            "gup_test: page #{} from {:#x}: pfn {:#x} refs {} maps {} pinned {} anon {} index {:#x} order {}",
            *which - 1,
            r.addr,
            slot.pfn().0,
            d.ref_count(),
            d.map_count(),
            folio.maybe_pinned(),
            folio.is_anon(),
            folio.index(),
            folio.order().get()
        );
    }
}

fn start(pins: &mut Pins, arg: u64) -> SysResult {
    if !pins.slots.is_empty() {
        return Err(Errno::EINVAL);
    }
    let ask: Longterm = get_user(arg)?;
    let aligned = (ask.addr | ask.size).is_multiple_of(PAGE_SIZE);
    if ask.flags & !(USE_WRITE | USE_FAST) != 0
        || !aligned
        || ask.size == 0
        || ask.size > i64::MAX as u64
    {
        return Err(Errno::EINVAL);
    }
    let space = current().space().ok_or(Errno::EINVAL)?.clone();
    let mut fresh = Pins {
        slots: room_for(ask.size)?,
        count: 0,
    };
    let guard = match ask.flags & USE_FAST {
        0 => {
            let guard = space.mmap_read_killable(&mut can_wait());
            Some(guard.map_err(|_| Errno::EINTR)?)
        }
        _ => None,
    };
    let mut flags = GupFlags::LONGTERM;
    flags.set(GupFlags::WRITE, ask.flags & USE_WRITE != 0);
    while fresh.count < fresh.slots.len() {
        let at = ask.addr.wrapping_add(fresh.count as u64 * PAGE_SIZE);
        let slots = &mut fresh.slots[fresh.count..];
        match take(true, &space, guard.as_ref(), at, flags, slots) {
            Ok(n @ 1..) => fresh.count += n,
            Ok(0) => return Err(Errno::EFAULT),
            Err(e) => return Err(e),
        }
    }
    drop(guard);
    *pins = fresh;
    Ok(0)
}

/// Copies what the pinned pages hold now to where `arg` points to.
fn read(pins: &Pins, arg: u64) -> SysResult {
    if pins.slots.is_empty() {
        return Err(Errno::EINVAL);
    }
    let to: u64 = get_user(arg)?;
    for (i, slot) in pins.slots[..pins.count].iter().enumerate() {
        let to = to.checked_add(i as u64 * PAGE_SIZE).ok_or(Errno::EFAULT)?;
        // SAFETY: a pinned page. Who maps it may write it meanwhile: bytes are copied as they are.
        if unsafe { copy_out(to, X86.frame_ptr(slot.pfn()), PAGE_SIZE as usize) } != 0 {
            return Err(Errno::EFAULT);
        }
        cond_resched();
    }
    Ok(0)
}
