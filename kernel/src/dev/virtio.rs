//! virtio over PCI (virtio 1.2, 2.7 and 4.1): the modern transport, and split queues of our own.
//!
//! A slot (`slots`) has a page of its own: the request's header, the status that the device writes, and a table of descriptors, so that a
//! request takes one entry of the ring however many pieces its memory has. Table and ring have as many entries as a chain may be long.
//!
//! With the event index each side says after which entry it wants to hear from the other, stores that, and looks once more. That needs a
//! barrier between the two, and QEMU 7.2 leaves a guest's barriers out where the machine has one CPU, though its devices
//! are threads: there, device and driver tell each other of every entry.
//!
//! An index that says that the device has done more than it can have been given is nonsense, and nothing is taken from its ring any more.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU16, Ordering, fence};

use mm::Errno;

use super::block::{Reached, Way};
use super::iommu::{self, Dma};
use super::irq::{self, Line};
use super::pci::{Function, Msix, Registers};
use super::slots::{Completion, Control, Reset, SLOTS, Slots};
use crate::arch;
use crate::memory::direct;

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
const ISR: u8 = 3;
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

/// The register that stops a device.
struct Status(Registers);

impl Reset for Status {
    fn reset(&self) -> bool {
        self.0.write8(0, 0);
        (0..RESET_LOOKS).any(|_| self.0.read8(0) == 0)
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
    calls: Calls,
}

/// How a device interrupts.
enum Calls {
    Messages(Msix),
    /// By a line, and why: reading that lets go of the line.
    Line(Registers),
}

/// The one queue of a device that has a line.
struct OnLine {
    why: Registers,
    queue: &'static Queue,
}

/// Why it interrupts: a queue.
const QUEUE_CALLS: u8 = 1;

impl Line for OnLine {
    fn interrupt(&self) {
        if self.why.read8(0) & QUEUE_CALLS != 0 {
            self.queue.interrupt();
        }
    }
}

impl Transport {
    /// `None`: no modern device, or one that cannot interrupt.
    pub fn of(function: Function) -> Option<Self> {
        function.enable();
        let mut found: [Option<Registers>; 5] = [const { None }; 5];
        let mut notify_step = 0;
        for (id, at) in function.capabilities() {
            let kind = function.read8(at + 3);
            if id != VENDOR_CAPABILITY || !matches!(kind, COMMON | NOTIFY | ISR | DEVICE) {
                continue;
            }
            let slot = &mut found[kind as usize];
            if slot.is_some() {
                continue; // the first of a kind is the one that the device likes best
            }
            let (offset, len) = (function.read32(at + 8), function.read32(at + 12));
            // Fields are words, notifications halves of them.
            let aligned = offset.is_multiple_of(if kind == NOTIFY { 2 } else { 4 });
            *slot = function
                .registers(function.read8(at + 4), offset, len)
                .filter(|_| aligned);
            if kind == NOTIFY {
                notify_step = function.read32(at + 16);
            }
        }
        let [_, common, notify, why, device] = found;
        let common = common.filter(|c| c.len() >= common::LEN)?;
        let status = Status(common.part(common::STATUS, 1));
        Some(Transport {
            function,
            dma: Dma::DIRECT,
            control: Control::new("virtio", status),
            common,
            notify: notify?,
            notify_step,
            device: device?,
            calls: match function.msix() {
                Some(msix) => Calls::Messages(msix),
                None => Calls::Line(why?),
            },
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
        if let Calls::Messages(_) = self.calls {
            self.common.write16(common::CONFIG_VECTOR, NO_VECTOR);
        }
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

    /// How it is stopped.
    pub fn control(&self) -> &'static Control {
        self.control
    }

    pub fn queues(&self) -> u16 {
        match self.calls {
            Calls::Messages(_) => self.common.read16(common::NUM_QUEUES),
            Calls::Line(_) => 1,
        }
    }

    /// Sets queue `n` up; its interrupts go to `cpu`, and `judge` says what they mean. It stays.
    pub fn queue(&self, n: u16, cpu: usize, features: u64, judge: Judge) -> Option<&'static Queue> {
        let c = &self.common;
        c.write16(common::QUEUE_SELECT, n);
        let most = c.read16(common::QUEUE_SIZE);
        if (most as usize) < SLOTS || !most.is_power_of_two() {
            return None;
        }
        let entries = most.min(ENTRIES);
        c.write16(common::QUEUE_SIZE, entries);
        let at = u32::from(c.read16(common::QUEUE_NOTIFY_OFF)).checked_mul(self.notify_step)?;
        if !at.is_multiple_of(2) || at.checked_add(2)? > self.notify.len() {
            return None;
        }
        let bell = self.notify.part(at, 2);
        let ring = Ring::new(self.dma, n, entries, (bell, features), judge)?;
        let page = ring.page;
        let queue: &'static Queue =
            Box::leak(Box::new(Slots::new(self.control, ring, Ends::default())));
        match &self.calls {
            Calls::Messages(msix) => {
                msix.route(n, cpu, irq::vector(queue)?)?;
                c.write16(common::QUEUE_VECTOR, n);
                if c.read16(common::QUEUE_VECTOR) != n {
                    return None;
                }
            }
            Calls::Line(why) => {
                let why = why.part(0, 1);
                irq::wire(
                    self.function.line()?,
                    Box::leak(Box::new(OnLine { why, queue })),
                )?;
            }
        }
        c.write_halves(common::QUEUE_DESC, page);
        c.write_halves(common::QUEUE_DRIVER, page + AVAIL);
        c.write_halves(common::QUEUE_DEVICE, page + USED);
        c.write16(common::QUEUE_ENABLE, 1);
        Some(queue)
    }

    /// It cannot be used: it forgets all that it was told.
    pub fn abandon(&self) {
        self.control.reset();
    }

    /// The device may begin.
    pub fn ready(&self) {
        self.status(DRIVER_OK);
    }
}

/// Entries of a ring at most: a chain of descriptors may not be longer (2.7.5.3.1).
const ENTRIES: u16 = 128;
/// Where the parts of a ring lie in its page: descriptors, what we put, what the device used.
pub const AVAIL: u64 = 2048;
pub const USED: u64 = 2560;
const _: () = assert!(16 * ENTRIES as u64 <= AVAIL);
const _: () = assert!(AVAIL + 6 + 2 * ENTRIES as u64 <= USED);
const _: () = assert!(USED + 6 + 8 * ENTRIES as u64 <= 4096);
/// Where the parts of a request lie in its page.
const STATUS_AT: u64 = 32;
const TABLE_AT: u64 = 64;
const _: () = assert!(TABLE_AT + 16 * ENTRIES as u64 <= 4096);

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

/// A status that no device writes.
const UNWRITTEN: u8 = 0xff;

/// What a status byte means.
pub type Judge = fn(u8) -> Result<(), Errno>;

/// A request of `header` and `memory`.
pub struct Command<'a> {
    pub header: [u64; 2],
    pub memory: Option<Reached<'a>>,
}

/// How many requests we have put into the ring, and how many we have taken back; they wrap.
#[derive(Default)]
pub struct Ends {
    put: u16,
    taken: u16,
}

/// A split queue.
pub struct Ring {
    n: u16,
    entries: u16,
    pub page: u64,
    slots: [u64; SLOTS],
    bell: Registers,
    event_index: bool,
    judge: Judge,
}

pub type Queue = Slots<Ring>;

impl Ring {
    /// Of `entries`, a power of two up to `ENTRIES`, in memory that `dma` lets the device reach. It stays: a device may use it for ever.
    pub fn new(
        dma: Dma,
        n: u16,
        entries: u16,
        (bell, features): (Registers, u64),
        judge: Judge,
    ) -> Option<Ring> {
        let alloc = || dma.alloc(0, iommu::READS | iommu::WRITES);
        let mut slots = [0; SLOTS];
        for page in &mut slots {
            *page = alloc()?;
        }
        Some(Ring {
            n,
            entries,
            page: alloc()?,
            slots,
            bell,
            event_index: features & EVENT_INDEX != 0,
            judge,
        })
    }

    /// Pieces of memory that a request may have: a chain has header and status, too.
    pub fn most(&self) -> usize {
        self.entries as usize - 2
    }

    /// A word of the ring's page, which the device reads and writes, too.
    fn word(&self, offset: u64) -> &AtomicU16 {
        debug_assert!(offset < 4095 && offset & 1 == 0);
        // SAFETY: inside our page, which is ours for ever and is accessed as atomics and by the device.
        unsafe { &*(direct(self.page + offset) as *const AtomicU16) }
    }

    /// What the device wrote at the end of the slot's request.
    fn status(&self, slot: usize) -> u8 {
        // SAFETY: the slot's own page, ours for ever, of which nobody has a reference.
        unsafe { (direct(self.slots[slot] + STATUS_AT) as *const u8).read_volatile() }
    }

    /// Writes a request into its slot's page; how many descriptors it has.
    fn fill(&self, slot: u64, command: &Command<'_>) -> usize {
        let mut used = 0;
        let mut put = |pa, len, flags| {
            assert!(used < self.entries as usize);
            let next = used as u16 + 1;
            let desc = Desc {
                pa,
                len,
                flags,
                next,
            };
            // SAFETY: the slot's own page, which nobody else has, nor has the device (`put`); inside it by the line above.
            unsafe { (direct(slot + TABLE_AT) as *mut Desc).add(used).write(desc) };
            used += 1;
        };
        put(slot, 16, NEXT);
        if let Some(memory) = &command.memory {
            let writes = if memory.way() == Way::Fill { WRITES } else { 0 };
            for piece in memory.pieces() {
                put(piece.pa, piece.len, writes | NEXT);
            }
        }
        put(slot + STATUS_AT, 1, WRITES);
        // SAFETY: as above.
        unsafe {
            (direct(slot) as *mut [u64; 2]).write(command.header);
            (direct(slot + STATUS_AT) as *mut u8).write_volatile(UNWRITTEN);
        }
        used
    }

    /// Whether the device has used more than we have taken. `None`: more than it was given.
    fn more(&self, ends: &Ends) -> Option<bool> {
        let used = self.word(USED + 2).load(Ordering::Acquire);
        match used.wrapping_sub(ends.taken) {
            0 => Some(false),
            n => ((n as usize) <= SLOTS).then_some(true),
        }
    }
}

impl super::slots::Ring for Ring {
    type Command<'a> = Command<'a>;
    type Ends = Ends;

    fn memory<'a>(command: &'a Command<'_>) -> Option<Reached<'a>> {
        command.memory
    }

    fn put(&self, ends: &mut Ends, slot: usize, command: &Command<'_>) -> bool {
        let page = self.slots[slot];
        let table = Desc {
            pa: page + TABLE_AT,
            len: 16 * self.fill(page, command) as u32,
            flags: TABLE,
            next: 0,
        };
        // SAFETY: the slot's entry of the ring's descriptors, which nobody else has, nor has the device.
        unsafe { (direct(self.page) as *mut Desc).add(slot).write(table) };
        let old = ends.put;
        let at = AVAIL + 4 + 2 * u64::from(old % self.entries);
        self.word(at).store(slot as u16, Ordering::Relaxed);
        ends.put = old.wrapping_add(1);
        // What was written above is there before the device sees the index.
        self.word(AVAIL + 2).store(ends.put, Ordering::Release);
        fence(Ordering::SeqCst);
        // Does the device want to hear of the entry of this index?
        let event = USED + 4 + 8 * u64::from(self.entries);
        !self.event_index || self.word(event).load(Ordering::Acquire) == old
    }

    fn take(&self, ends: &mut Ends) -> Option<Completion> {
        let nonsense = Completion {
            slot: None,
            answer: Err(Errno::EIO),
        };
        let mut more = self.more(ends);
        if more == Some(false) && self.event_index {
            // Tell me of the next; unless it has come already.
            self.word(AVAIL + 4 + 2 * u64::from(self.entries))
                .store(ends.taken, Ordering::Release);
            fence(Ordering::SeqCst);
            more = self.more(ends);
        }
        match more {
            Some(false) => return None,
            None => return Some(nonsense),
            Some(true) => {}
        }
        let at = USED + 4 + 8 * u64::from(ends.taken % self.entries);
        let low = self.word(at).load(Ordering::Relaxed);
        let high = self.word(at + 2).load(Ordering::Relaxed);
        ends.taken = ends.taken.wrapping_add(1);
        let slot = (low as usize) < SLOTS && high == 0;
        Some(match slot {
            true => Completion {
                slot: Some(low as usize),
                answer: (self.judge)(self.status(low as usize)).map(|()| 0),
            },
            false => nonsense,
        })
    }

    fn bell(&self) {
        self.bell.write16(0, self.n);
    }
}
