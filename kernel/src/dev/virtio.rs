//! virtio over PCI (virtio 1.2, 2.7 and 4.1): the modern transport, and split queues of our own.
//!
//! A queue has `SLOTS` requests in flight at most. Each slot has a page of its own: the request's header, the status that the
//! device writes, and a table of descriptors, so that a request takes one entry of the ring however many pieces its memory has. A slot is
//! *free*, then *busy* with the device, then *done*; the interrupt handler makes it done and wakes its thread, which takes the
//! status and frees it. Nobody else touches a slot's page meanwhile. The slot of a `flight::Request` is freed by the handler, and the
//! request is taken from it by whoever is first: the handler, or who has found that the device is dead.
//!
//! With the event index each side says after which entry it wants to hear from the other, stores that, and looks once more. That needs a
//! barrier between the two, and QEMU 7.2 leaves a guest's barriers out where the machine has one CPU, though its devices
//! are threads: there, device and driver tell each other of every entry.
//!
//! A device that does not answer in time is reset. Once it has forgotten its queues it touches no memory: then its requests have failed,
//! and so do all that come later. One that does not even do that keeps the memory that it was given: whoever asked stays
//! asleep, with what he has pinned.
//!
//! What the device says is not believed: a completion of a slot that is not busy is reported and left alone.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::take;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering, fence};

use mm::Errno;

use super::block::{Reached, Way};
use super::flight::{self, Request};
use super::iommu::{self, Dma};
use super::irq::{self, Line};
use super::pci::{Function, Msix, Registers};
use crate::arch;
use crate::arch::time::now_ns;
use crate::memory::direct;
use crate::sync::{IrqLock, Mutex};
use crate::task::{Sleep, WaitQueue};

pub const VENDOR: u16 = 0x1af4;
/// Features of every device.
pub const INDIRECT: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// The device's addresses are translated like any other's (an IOMMU's, or not at all).
const ACCESS_PLATFORM: u64 = 1 << 33;

/// Configuration structures, by the `cfg_type` of their capability.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;
const VENDOR_CAPABILITY: u8 = 9;

/// The common structure's fields.
mod common {
    pub const DEVICE_FEATURE_SELECT: u32 = 0;
    pub const DEVICE_FEATURE: u32 = 4;
    pub const DRIVER_FEATURE_SELECT: u32 = 8;
    pub const DRIVER_FEATURE: u32 = 12;
    pub const CONFIG_VECTOR: u32 = 16;
    pub const NUM_QUEUES: u32 = 18;
    pub const STATUS: u32 = 20;
    pub const QUEUE_SELECT: u32 = 22;
    pub const QUEUE_SIZE: u32 = 24;
    pub const QUEUE_VECTOR: u32 = 26;
    pub const QUEUE_ENABLE: u32 = 28;
    pub const QUEUE_NOTIFY_OFF: u32 = 30;
    pub const QUEUE_DESC: u32 = 32;
    pub const QUEUE_DRIVER: u32 = 40;
    pub const QUEUE_DEVICE: u32 = 48;
    pub const LEN: u32 = 56;
}
const RESET_LOOKS: u32 = 1_000_000;
const NO_VECTOR: u16 = 0xffff;

/// Device status.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const FAILED: u8 = 128;

/// How a device is stopped.
struct Control {
    status: Registers,
    stopping: Mutex<()>,
    /// It has been, and is not used any more.
    dead: AtomicBool,
}

impl Control {
    /// Makes the device forget all that it was told; whether it has.
    fn reset(&self) -> bool {
        self.status.write8(0, 0);
        (0..RESET_LOOKS).any(|_| self.status.read8(0) == 0)
    }

    /// The end of a device that does not answer; whether it is quiet.
    #[cold]
    fn stop(&self) -> bool {
        let _one = self.stopping.lock();
        if !self.dead.load(Ordering::Relaxed) {
            let quiet = self.reset();
            let how = if quiet {
                "is stopped"
            } else {
                "keeps its memory"
            };
            crate::warn!("virtio: a device that does not answer {how}");
            self.dead.store(quiet, Ordering::Relaxed);
        }
        self.dead.load(Ordering::Relaxed)
    }
}

/// A device's registers.
pub struct Transport {
    function: Function,
    dma: Dma,
    control: &'static Control,
    common: Registers,
    notify: Registers,
    notify_step: u32,
    pub device: Registers,
    msix: Msix,
}

impl Transport {
    /// `None`: no modern device, or one without interrupt messages.
    pub fn of(function: Function) -> Option<Self> {
        function.enable();
        let mut found: [Option<Registers>; 5] = [const { None }; 5];
        let mut notify_step = 0;
        for (id, at) in function.capabilities() {
            let kind = function.read8(at + 3);
            if id != VENDOR_CAPABILITY || !matches!(kind, COMMON | NOTIFY | DEVICE) {
                continue;
            }
            let slot = &mut found[kind as usize];
            if slot.is_some() {
                continue; // the first of a kind is the one that the device likes best
            }
            let (offset, len) = (function.read32(at + 8), function.read32(at + 12));
            *slot = function.registers(function.read8(at + 4), offset, len);
            if kind == NOTIFY {
                notify_step = function.read32(at + 16);
            }
        }
        let [_, common, notify, _, device] = found;
        let common = common.filter(|c| c.len() >= common::LEN)?;
        let control = Control {
            status: common.part(common::STATUS, 1),
            stopping: Mutex::new(()),
            dead: AtomicBool::new(false),
        };
        Some(Transport {
            function,
            dma: Dma::DIRECT,
            control: Box::leak(Box::new(control)),
            common,
            notify: notify?,
            notify_step,
            device: device?,
            msix: function.msix()?,
        })
    }

    fn status(&self, bits: u8) {
        let old = self.common.read8(common::STATUS);
        self.common.write8(common::STATUS, old | bits);
    }

    /// Resets the device and agrees on those of `wanted` that it has; `None` if not on all of `needed`.
    pub fn negotiate(&mut self, needed: u64, wanted: u64) -> Option<u64> {
        if !self.control.reset() {
            return None;
        }
        self.status(ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            self.common.write32(common::DEVICE_FEATURE_SELECT, half);
            offered |= u64::from(self.common.read32(common::DEVICE_FEATURE)) << (32 * half);
        }
        let needed = needed | VERSION_1;
        let wanted = wanted | if arch::ncpus() > 1 { EVENT_INDEX } else { 0 };
        let agreed = offered & (needed | wanted | ACCESS_PLATFORM);
        for half in 0..2 {
            self.common.write32(common::DRIVER_FEATURE_SELECT, half);
            let word = (agreed >> (32 * half)) as u32;
            self.common.write32(common::DRIVER_FEATURE, word);
        }
        self.status(FEATURES_OK);
        let accepted = self.common.read8(common::STATUS) & FEATURES_OK != 0;
        if !accepted || agreed & needed != needed {
            self.status(FAILED);
            return None;
        }
        self.common.write16(common::CONFIG_VECTOR, NO_VECTOR);
        self.dma = match agreed & ACCESS_PLATFORM {
            0 => Dma::past(self.function),
            _ => Dma::of(self.function)?,
        };
        Some(agreed)
    }

    /// Its way to memory; after it has been agreed on.
    pub fn dma(&self) -> Dma {
        self.dma
    }

    pub fn queues(&self) -> u16 {
        self.common.read16(common::NUM_QUEUES)
    }

    /// Sets queue `n` up; its interrupts go to `cpu`. It stays.
    pub fn queue(&self, n: u16, cpu: usize, features: u64) -> Option<&'static Queue> {
        let c = &self.common;
        c.write16(common::QUEUE_SELECT, n);
        let most = c.read16(common::QUEUE_SIZE);
        if (most as usize) < SLOTS || !most.is_power_of_two() {
            return None;
        }
        c.write16(common::QUEUE_SIZE, SLOTS as u16);
        let at = u32::from(c.read16(common::QUEUE_NOTIFY_OFF)).checked_mul(self.notify_step)?;
        if at.checked_add(2)? > self.notify.len() {
            return None;
        }
        let alloc = || self.dma.alloc(0, iommu::READS | iommu::WRITES);
        let ring = alloc()?;
        let mut slots = Vec::with_capacity(SLOTS);
        for _ in 0..SLOTS {
            slots.push(Slot {
                page: alloc()?,
                state: AtomicU8::new(FREE),
                done: WaitQueue::new(),
            });
        }
        let queue: &'static Queue = Box::leak(Box::new(Queue {
            control: self.control,
            dma: self.dma,
            patience: super::patience(),
            n,
            ring,
            bell: self.notify.part(at, 2),
            event_index: features & EVENT_INDEX != 0,
            inner: IrqLock::new(Inner {
                free: u32::MAX >> (32 - SLOTS),
                put: 0,
                taken: 0,
                flying: [const { None }; SLOTS],
            }),
            room: WaitQueue::new(),
            slots,
            confused: AtomicBool::new(false),
        }));
        self.msix.route(n, cpu, irq::vector(queue)?)?;
        c.write16(common::QUEUE_VECTOR, n);
        if c.read16(common::QUEUE_VECTOR) != n {
            return None;
        }
        c.write_halves(common::QUEUE_DESC, ring);
        c.write_halves(common::QUEUE_DRIVER, ring + AVAIL);
        c.write_halves(common::QUEUE_DEVICE, ring + USED);
        c.write16(common::QUEUE_ENABLE, 1);
        Some(queue)
    }

    /// The device may begin.
    pub fn ready(&self) {
        self.status(DRIVER_OK);
    }
}

/// Requests in flight, and entries of a ring.
const SLOTS: usize = 32;
/// Where the parts of a ring lie in its page: descriptors, what we put, what the device used.
const AVAIL: u64 = 1024;
const USED: u64 = 2048;
/// Where the parts of a request lie in its page.
const STATUS_AT: u64 = 32;
const TABLE_AT: u64 = 64;
/// Pieces of memory in a request: what a table has room for, beside the header and the status.
pub const MOST: usize = (4096 - TABLE_AT as usize) / 16 - 2;

/// Flags of a descriptor: another follows; the device writes; a table of descriptors.
const NEXT: u16 = 1;
const WRITES: u16 = 2;
const TABLE: u16 = 4;

/// A descriptor, as the device reads it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Desc {
    pa: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const FREE: u8 = 0;
const BUSY: u8 = 1;
const DONE: u8 = 2;
/// A status that no device writes.
const UNWRITTEN: u8 = 0xff;

struct Slot {
    page: u64,
    state: AtomicU8,
    done: WaitQueue,
}

impl Slot {
    /// What the device said at the end. Of a slot that it has done with.
    fn status(&self) -> u8 {
        // SAFETY: the slot's own page, of which nobody has a reference.
        unsafe { (direct(self.page + STATUS_AT) as *const u8).read_volatile() }
    }
}

struct Inner {
    /// Free slots, bit by bit.
    free: u32,
    /// How many requests we have put into the ring, and how many we have taken back; they wrap.
    put: u16,
    taken: u16,
    /// Requests that end by themselves, by slot.
    flying: [Option<Flight>; SLOTS],
}

/// What a status byte means.
pub type Judge = fn(u8) -> Result<(), Errno>;

/// A request that the device has.
struct Flight {
    request: Box<Request>,
    judge: Judge,
    deadline: u64,
}

/// A split queue.
pub struct Queue {
    control: &'static Control,
    dma: Dma,
    /// Nanoseconds that a request may take.
    patience: u64,
    n: u16,
    ring: u64,
    bell: Registers,
    event_index: bool,
    inner: IrqLock<Inner>,
    /// Threads that wait for a slot.
    room: WaitQueue,
    slots: Vec<Slot>,
    /// The device has said nonsense, and we have said so.
    confused: AtomicBool,
}

impl Queue {
    /// A word of the ring's page, which the device reads and writes, too.
    fn word(&self, offset: u64) -> &AtomicU16 {
        debug_assert!(offset < 4095 && offset & 1 == 0);
        // SAFETY: inside our page, which is ours for ever and is accessed as atomics and by the device.
        unsafe { &*(direct(self.ring + offset) as *const AtomicU16) }
    }

    /// A request of `header` and `memory`; returns its status byte when it is done, or none if the device will never be. The
    /// caller keeps the memory where it is until then.
    pub fn request(&self, header: &[u64; 2], memory: Option<&Reached<'_>>) -> Option<u8> {
        let i = self.take_slot()?;
        let slot = &self.slots[i];
        let count = self.fill(slot, header, memory);
        self.put(i, count);
        let pending = || slot.state.load(Ordering::Acquire) != DONE;
        let wait = |deadline| {
            slot.done
                .wait_while(Sleep::Uninterruptible, deadline, pending)
        };
        if wait(Some(now_ns() + self.patience)).is_err() {
            if self.control.stop() {
                return None; // the slot is nobody's any more: nor is the queue
            }
            let _ = wait(None);
        }
        let status = slot.status();
        self.give_slot(i);
        Some(status)
    }

    fn give_slot(&self, i: usize) {
        self.slots[i].state.store(FREE, Ordering::Relaxed);
        self.inner.lock().free |= 1 << i;
        self.room.wake_one();
    }

    /// Begins `request`, which is given to [`flight::done`] in the end.
    pub fn begin(&self, header: &[u64; 2], mut request: Box<Request>, judge: Judge) {
        let Some(i) = self.take_slot() else {
            request.answer(Err(Errno::EIO));
            return flight::done(request);
        };
        let count = match request.lend(self.dma) {
            Ok(memory) => self.fill(&self.slots[i], header, Some(&memory)),
            Err(error) => {
                self.give_slot(i);
                request.answer(Err(error));
                return flight::done(request);
            }
        };
        let deadline = now_ns() + self.patience;
        self.inner.lock().flying[i] = Some(Flight {
            request,
            judge,
            deadline,
        });
        self.put(i, count);
    }

    /// Stops the device if it has not answered a request that was begun; those of a device that is stopped have failed.
    pub fn give_up(&self) {
        let now = now_ns();
        let late = |flight: &Flight| flight.deadline < now;
        let any = self.inner.lock().flying.iter().flatten().any(late);
        if any && !self.control.stop() {
            for flight in self.inner.lock().flying.iter_mut().flatten() {
                flight.deadline = u64::MAX;
            }
        }
        if !self.control.dead.load(Ordering::Relaxed) {
            return;
        }
        for i in 0..SLOTS {
            let flight = self.inner.lock().flying[i].take();
            if let Some(mut flight) = flight {
                flight.request.answer(Err(Errno::EIO));
                flight::done(flight.request);
            }
        }
    }

    /// A free slot; none of a queue that is used no more.
    fn take_slot(&self) -> Option<usize> {
        loop {
            if self.control.dead.load(Ordering::Relaxed) {
                return None;
            }
            {
                let mut inner = self.inner.lock();
                if inner.free != 0 {
                    let i = inner.free.trailing_zeros();
                    inner.free &= !(1 << i);
                    return Some(i as usize);
                }
            }
            let full = || self.inner.lock().free == 0;
            let deadline = Some(now_ns() + self.patience);
            let _ = self.room.wait_while(Sleep::Uninterruptible, deadline, full);
        }
    }

    /// Writes a request into its slot's page; how many descriptors it has.
    fn fill(&self, slot: &Slot, header: &[u64; 2], memory: Option<&Reached<'_>>) -> usize {
        let mut used = 0;
        let mut put = |pa, len, flags| {
            assert!(used <= MOST + 1);
            let next = used as u16 + 1;
            let desc = Desc {
                pa,
                len,
                flags,
                next,
            };
            // SAFETY: the slot's own page, taken by this thread, not yet the device's; inside it by the line above.
            unsafe {
                (direct(slot.page + TABLE_AT) as *mut Desc)
                    .add(used)
                    .write_volatile(desc)
            };
            used += 1;
        };
        put(slot.page, 16, NEXT);
        if let Some(memory) = memory {
            let writes = if memory.way() == Way::Fill { WRITES } else { 0 };
            for piece in memory.pieces() {
                put(piece.pa, piece.len, writes | NEXT);
            }
        }
        put(slot.page + STATUS_AT, 1, WRITES);
        // SAFETY: as above.
        unsafe {
            (direct(slot.page) as *mut [u64; 2]).write_volatile(*header);
            (direct(slot.page + STATUS_AT) as *mut u8).write_volatile(UNWRITTEN);
        }
        used
    }

    /// Hands slot `i`, whose table has `count` descriptors, to the device.
    fn put(&self, i: usize, count: usize) {
        let slot = &self.slots[i];
        slot.state.store(BUSY, Ordering::Relaxed);
        let table = Desc {
            pa: slot.page + TABLE_AT,
            len: 16 * count as u32,
            flags: TABLE,
            next: 0,
        };
        let mut inner = self.inner.lock();
        // SAFETY: entry `i` of the ring's descriptors, not the device's while slot `i` is ours.
        unsafe {
            (direct(self.ring) as *mut Desc)
                .add(i)
                .write_volatile(table)
        };
        let old = inner.put;
        let at = AVAIL + 4 + 2 * (u64::from(old) % SLOTS as u64);
        self.word(at).store(i as u16, Ordering::Relaxed);
        inner.put = old.wrapping_add(1);
        // What was written above is there before the device sees the index.
        self.word(AVAIL + 2).store(inner.put, Ordering::Release);
        fence(Ordering::SeqCst);
        // Does the device want to hear of the entry of this index?
        let event = USED + 4 + 8 * SLOTS as u64;
        let wanted = !self.event_index || self.word(event).load(Ordering::Acquire) == old;
        drop(inner);
        if wanted {
            self.bell.write16(0, self.n);
        }
    }

    /// What the device has done since the last look: slots with a thread, bit by bit; requests are added to `landed`.
    fn take_done(&self, landed: &mut flight::List) -> u32 {
        let mut done = 0;
        let mut inner = self.inner.lock();
        loop {
            let used = self.word(USED + 2).load(Ordering::Acquire);
            while inner.taken != used {
                let at = USED + 4 + 8 * (u64::from(inner.taken) % SLOTS as u64);
                let low = self.word(at).load(Ordering::Relaxed);
                let high = self.word(at + 2).load(Ordering::Relaxed);
                inner.taken = inner.taken.wrapping_add(1);
                let busy = |slot: &&Slot| slot.state.load(Ordering::Relaxed) == BUSY;
                match self.slots.get(low as usize).filter(busy) {
                    Some(slot) if high == 0 => match take(&mut inner.flying[low as usize]) {
                        None => {
                            slot.state.store(DONE, Ordering::Release);
                            done |= 1 << low;
                        }
                        Some(mut flight) => {
                            flight.request.answer((flight.judge)(slot.status()));
                            slot.state.store(FREE, Ordering::Relaxed);
                            inner.free |= 1 << low;
                            landed.push(flight.request);
                        }
                    },
                    _ if self.confused.swap(true, Ordering::Relaxed) => {}
                    _ => crate::warn!(
                        "virtio: the device is done with {low}, which it was not given"
                    ),
                }
            }
            if !self.event_index {
                return done;
            }
            // Tell me of the next; unless it has come already.
            self.word(AVAIL + 4 + 2 * SLOTS as u64)
                .store(inner.taken, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.word(USED + 2).load(Ordering::Acquire) == inner.taken {
                return done;
            }
        }
    }
}

impl Line for Queue {
    fn interrupt(&self) {
        let mut landed = flight::List::default();
        let mut done = self.take_done(&mut landed);
        for _ in 0..flight::done_all(landed) {
            self.room.wake_one();
        }
        while done != 0 {
            self.slots[done.trailing_zeros() as usize].done.wake_all();
            done &= done - 1;
        }
    }
}
