//! NVMe disks (NVM Express base specification 1.4): a queue pair for each CPU, memory by lists of pages (PRP).
//!
//! A queue has `SLOTS` commands in flight at most, so that its rings of `DEPTH` entries never fill. A slot is *free*, then *busy* with
//! the device, then *done*: the interrupt handler makes it done and wakes its thread, which takes the status and frees it. Its part of
//! `lists` says where the second and later pages of its command are.
//!
//! Of a command's pages only the first may begin and only the last may end inside a page, and so it is with memory. More than the device
//! moves at once (MDTS) takes several commands, one after the other.
//!
//! A device that does not answer in time is disabled. When it says that it is not ready any more, it has forgotten its queues and touches no
//! memory: its requests have failed, and so do all that come later. One that does not say so keeps the memory that it was
//! given: whoever asked stays asleep, with what he has pinned.
//!
//! What the device says is not believed: a completion of a slot that is not busy is reported and left alone.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use mm::{Errno, PAGE_SIZE};

use super::block::{self, Bounce, Disk, Family, Memory, Reached, SECTOR, Way};
use super::iommu::{Dma, READS, WRITES};
use super::irq::{self, Line};
use super::pci::{Function, Registers};
use crate::arch;
use crate::arch::time::now_ns;
use crate::memory::direct;
use crate::sync::{IrqLock, Mutex};
use crate::task::{Sleep, WaitQueue, cond_resched};

/// Mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_08_02;

/// Registers; the doorbells follow them.
const CAP: u32 = 0x00;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;
const AQA: u32 = 0x24;
const ASQ: u32 = 0x28;
const ACQ: u32 = 0x30;
const BELLS: u32 = 0x1000;

/// `CC`: enabled, with entries of 64 and 16 bytes; pages of 4 KiB are its zeroes.
const ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
const READY: u32 = 1;
const FATAL: u32 = 2;

/// Commands to the controller.
const CREATE_SQ: u32 = 0x01;
const CREATE_CQ: u32 = 0x05;
const IDENTIFY: u32 = 0x06;
const SET_FEATURES: u32 = 0x09;
const NUMBER_OF_QUEUES: u32 = 7;
/// What to identify.
const NAMESPACE: u32 = 0;
const CONTROLLER: u32 = 1;
const NAMESPACES: u32 = 2;
/// A queue lies in one piece; it interrupts.
const CONTIGUOUS: u32 = 1;
const INTERRUPTS: u32 = 2;
/// Commands to a namespace.
const FLUSH: u32 = 0x00;
const WRITE: u32 = 0x01;
const READ: u32 = 0x02;
const MANAGE: u32 = 0x09;
/// `MANAGE`: these blocks are wanted no more.
const DEALLOCATE: u32 = 1 << 2;

/// Commands in flight, and entries of a ring: one of commands fills a page.
const SLOTS: usize = 32;
const DEPTH: u16 = 64;
/// Bytes of a slot's list, and pages that a command may have: one more than the list, the last entry of which a device might take for a pointer
/// to the next.
const LIST: u64 = 1024;
const PAGES: usize = LIST as usize / 8;
const LISTS_ORDER: u8 = 3;

/// A command as the device reads it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Command {
    /// Opcode; the slot's number in the upper half.
    opcode: u32,
    namespace: u32,
    reserved: [u32; 4],
    prp: [u64; 2],
    words: [u32; 6],
}

/// How a controller is stopped.
struct Control {
    registers: Registers,
    /// Nanoseconds that it may take to become ready, or not ready.
    settles: u64,
    stopping: Mutex<()>,
    /// It has been, and is not used any more.
    dead: AtomicBool,
}

impl Control {
    /// Whether it becomes ready, or not ready, in time.
    fn settle(&self, ready: bool) -> bool {
        let deadline = now_ns() + self.settles;
        loop {
            let status = self.registers.read32(CSTS);
            if (status & READY != 0) == ready {
                return true;
            }
            if ready && status & FATAL != 0 || now_ns() > deadline {
                return false;
            }
            cond_resched();
        }
    }

    /// Makes it forget all that it was told; whether it has.
    fn disable(&self) -> bool {
        self.registers.write32(CC, 0);
        self.settle(false)
    }

    /// The end of a controller that does not answer; whether it is quiet.
    #[cold]
    fn stop(&self) -> bool {
        let _one = self.stopping.lock();
        if !self.dead.load(Ordering::Relaxed) {
            let quiet = self.disable();
            let how = if quiet {
                "is stopped"
            } else {
                "keeps its memory"
            };
            crate::warn!("nvme: a device that does not answer {how}");
            self.dead.store(quiet, Ordering::Relaxed);
        }
        self.dead.load(Ordering::Relaxed)
    }
}

const FREE: u8 = 0;
const BUSY: u8 = 1;
const DONE: u8 = 2;

struct Slot {
    state: AtomicU8,
    /// What the device has said: 0 is well; and the command's answer.
    status: AtomicU16,
    answer: AtomicU32,
    done: WaitQueue,
}

struct Inner {
    /// Free slots, bit by bit.
    free: u32,
    /// Where the next command goes.
    tail: u16,
    /// Where the next completion comes, and what its phase bit will be.
    head: u16,
    phase: bool,
}

/// A pair of rings: commands and completions.
struct Queue {
    control: &'static Control,
    /// Nanoseconds that a command may take.
    patience: u64,
    commands: u64,
    completions: u64,
    lists: u64,
    tail_bell: Registers,
    head_bell: Registers,
    inner: IrqLock<Inner>,
    /// Threads that wait for a slot.
    room: WaitQueue,
    slots: Vec<Slot>,
    /// The device has said nonsense, and we have said so.
    confused: AtomicBool,
}

impl Queue {
    /// Memory for queue `n`. It stays, and the device has not heard of it.
    fn new(control: &'static Control, dma: Dma, n: u32, stride: u32) -> Option<&'static Queue> {
        let bell = |k| control.registers.part(BELLS + (2 * n + k) * stride, 4);
        let slot = || Slot {
            state: AtomicU8::new(FREE),
            status: AtomicU16::new(0),
            answer: AtomicU32::new(0),
            done: WaitQueue::new(),
        };
        Some(Box::leak(Box::new(Queue {
            control,
            patience: super::patience(),
            commands: dma.alloc(0, READS)?,
            completions: dma.alloc(0, WRITES)?,
            lists: dma.alloc(LISTS_ORDER, READS)?,
            tail_bell: bell(0),
            head_bell: bell(1),
            inner: IrqLock::new(Inner {
                free: u32::MAX >> (32 - SLOTS),
                tail: 0,
                head: 0,
                phase: true,
            }),
            room: WaitQueue::new(),
            slots: (0..SLOTS).map(|_| slot()).collect(),
            confused: AtomicBool::new(false),
        })))
    }

    /// Runs a command on memory in `pages`: the answer. `EIO` if the device says no, or nothing and is quiet; the caller
    /// keeps the memory where it is until then.
    fn request(&self, command: Command, pages: &[u64]) -> Result<u32, Errno> {
        let i = self.take_slot().ok_or(Errno::EIO)?;
        let slot = &self.slots[i];
        self.put(i, command, pages);
        let pending = || slot.state.load(Ordering::Acquire) != DONE;
        let wait = |deadline| {
            slot.done
                .wait_while(Sleep::Uninterruptible, deadline, pending)
        };
        if wait(Some(now_ns() + self.patience)).is_err() {
            if self.control.stop() {
                return Err(Errno::EIO); // the slot is nobody's any more: nor is the queue
            }
            let _ = wait(None);
        }
        let status = slot.status.load(Ordering::Relaxed);
        let answer = slot.answer.load(Ordering::Relaxed);
        slot.state.store(FREE, Ordering::Relaxed);
        self.inner.lock().free |= 1 << i;
        self.room.wake_one();
        match status {
            0 => Ok(answer),
            _ => Err(Errno::EIO),
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

    /// Hands a command to the device as slot `i`'s.
    fn put(&self, i: usize, mut command: Command, pages: &[u64]) {
        assert!(pages.len() <= PAGES);
        let list = self.lists + LIST * i as u64;
        command.opcode |= (i as u32) << 16;
        command.prp = match *pages {
            [] => [0, 0],
            [one] => [one, 0],
            [one, two] => [one, two],
            [one, ..] => {
                let rest = direct(list) as *mut u64;
                for (n, &page) in pages[1..].iter().enumerate() {
                    // SAFETY: the slot's own list, taken by this thread, not yet the device's; `PAGES` keeps it inside.
                    unsafe { rest.add(n).write_volatile(page) };
                }
                [one, list]
            }
        };
        self.slots[i].state.store(BUSY, Ordering::Relaxed);
        let mut inner = self.inner.lock();
        let at = direct(self.commands) as *mut Command;
        // SAFETY: an entry of our ring; the device has read what was there, for there are more entries than slots.
        unsafe { at.add(inner.tail as usize).write_volatile(command) };
        inner.tail = (inner.tail + 1) % DEPTH;
        // The processor keeps the order: memory first, then the doorbell.
        self.tail_bell.write32(0, u32::from(inner.tail));
    }

    /// Word `n` of a completion.
    fn word(&self, entry: u16, n: u64) -> &AtomicU32 {
        debug_assert!(entry < DEPTH && n < 4);
        let at = self.completions + 16 * u64::from(entry) + 4 * n;
        // SAFETY: inside our page, which is ours for ever and is accessed as atomics and by the device.
        unsafe { &*(direct(at) as *const AtomicU32) }
    }

    /// What the device has done since the last look; slots, bit by bit.
    fn take_done(&self) -> u32 {
        let mut done = 0;
        let mut inner = self.inner.lock();
        let mut taken = false;
        // It has no room for more before it hears that these were taken.
        for _ in 0..DEPTH {
            let last = self.word(inner.head, 3).load(Ordering::Acquire);
            if (last >> 16 & 1 != 0) != inner.phase {
                break;
            }
            taken = true;
            let answer = self.word(inner.head, 0).load(Ordering::Relaxed);
            inner.head = (inner.head + 1) % DEPTH;
            inner.phase ^= inner.head == 0;
            let i = last as u16;
            let busy = |slot: &&Slot| slot.state.load(Ordering::Relaxed) == BUSY;
            match self.slots.get(i as usize).filter(busy) {
                Some(slot) => {
                    slot.status.store((last >> 17) as u16, Ordering::Relaxed);
                    slot.answer.store(answer, Ordering::Relaxed);
                    slot.state.store(DONE, Ordering::Release);
                    done |= 1 << i;
                }
                None if self.confused.swap(true, Ordering::Relaxed) => {}
                None => {
                    crate::warn!("nvme: the device is done with {i}, which it was not given")
                }
            }
        }
        if taken {
            self.head_bell.write32(0, u32::from(inner.head));
        }
        done
    }
}

impl Line for Queue {
    fn interrupt(&self) {
        let mut done = self.take_done();
        while done != 0 {
            self.slots[done.trailing_zeros() as usize].done.wake_all();
            done &= done - 1;
        }
    }
}

/// The pages of one command.
struct Gathered {
    pages: [u64; PAGES],
    used: usize,
    len: u64,
}

/// Up to `most` bytes of `memory` from `at` on: what one command can say. Only its first page begins inside a page and only its last
/// ends there, as with any memory.
fn gather(memory: &Reached<'_>, at: u64, most: u64) -> Option<Gathered> {
    let mut g = Gathered {
        pages: [0; PAGES],
        used: 0,
        len: 0,
    };
    for piece in memory.part(at, most.min(memory.bytes() - at))?.pieces() {
        let (mut pa, end) = (piece.pa, piece.pa + u64::from(piece.len));
        while pa < end && g.used < PAGES {
            let n = (end - pa).min(PAGE_SIZE - pa % PAGE_SIZE);
            g.pages[g.used] = pa;
            g.used += 1;
            g.len += n;
            pa += n;
        }
    }
    Some(g)
}

struct Controller {
    queues: Vec<&'static Queue>,
    dma: Dma,
    /// Bytes in one command.
    most: u64,
    /// It keeps writes to itself until it is told to flush them.
    caches: bool,
    discards: bool,
}

/// A namespace of a controller.
struct Nvme {
    name: String,
    controller: &'static Controller,
    namespace: u32,
    sectors: u64,
    block: u32,
    read_only: bool,
}

static CONTROLLERS: AtomicUsize = AtomicUsize::new(0);

pub fn is_one(function: Function) -> bool {
    function.class() == CLASS
}

/// `None`: it lacks something that every such device has, or does not do what it is told.
pub fn start(function: Function) -> Option<()> {
    function.enable();
    let cap = function.registers(0, 0, BELLS)?.read64(CAP);
    let stride = 4u32 << (cap >> 32 & 15);
    let commands = cap >> 37 & 1 != 0;
    let large_pages_only = cap >> 48 & 15 != 0;
    if !commands || large_pages_only || (cap as u16) < DEPTH - 1 {
        return None;
    }
    let bells = 2 * (arch::ncpus() as u32 + 1) * stride;
    let control: &'static Control = Box::leak(Box::new(Control {
        registers: function.registers(0, 0, BELLS + bells)?,
        settles: (cap >> 24 & 255).max(1) * 500_000_000,
        stopping: Mutex::new(()),
        dead: AtomicBool::new(false),
    }));
    let started = bring_up(function, control, stride);
    if started.is_none() {
        control.disable();
    }
    started
}

fn bring_up(function: Function, control: &'static Control, stride: u32) -> Option<()> {
    if !control.disable() {
        return None;
    }
    let msix = function.msix()?;
    let dma = Dma::of(function)?;
    let admin = Queue::new(control, dma, 0, stride)?;
    msix.route(0, 0, irq::vector(admin)?)?;
    let r = &control.registers;
    r.write32(AQA, u32::from(DEPTH - 1) << 16 | u32::from(DEPTH - 1));
    r.write_halves(ASQ, admin.commands);
    r.write_halves(ACQ, admin.completions);
    r.write32(CC, ENABLE);
    if !control.settle(true) {
        return None;
    }
    let mut bounce = Bounce::new().ok()?;
    let mut identify = |what, namespace| -> Option<[u8; 4096]> {
        let command = Command {
            opcode: IDENTIFY,
            namespace,
            words: [what, 0, 0, 0, 0, 0],
            ..Command::default()
        };
        let memory = Memory::of_bounce(&mut bounce, Way::Fill, 4096);
        let memory = memory.map(dma).ok()?;
        let page = memory.pieces().next()?.pa;
        admin.request(command, &[page]).ok()?;
        drop(memory);
        bounce.bytes()[..4096].try_into().ok()
    };
    let about = identify(CONTROLLER, 0)?;
    let listed = identify(NAMESPACES, 0)?;
    let mut spaces = Vec::new();
    for id in listed.chunks_exact(4).map(|id| word(id, 0)) {
        if id == 0 {
            break;
        }
        spaces.push((id, identify(NAMESPACE, id)?));
    }

    let wanted = arch::ncpus() as u32 - 1;
    let set = Command {
        opcode: SET_FEATURES,
        words: [NUMBER_OF_QUEUES, wanted << 16 | wanted, 0, 0, 0, 0],
        ..Command::default()
    };
    let given = admin.request(set, &[]).ok()?;
    let given = (given & 0xffff).min(given >> 16).min(wanted) + 1;
    let mut queues = Vec::new();
    for n in 1..=given {
        let queue = Queue::new(control, dma, n, stride)?;
        let make = |opcode, how, ring| {
            let command = Command {
                opcode,
                words: [u32::from(DEPTH - 1) << 16 | n, how, 0, 0, 0, 0],
                ..Command::default()
            };
            admin.request(command, &[ring]).ok()
        };
        msix.route(n as u16, n as usize - 1, irq::vector(queue)?)?;
        let interrupts = n << 16 | INTERRUPTS | CONTIGUOUS;
        make(CREATE_CQ, interrupts, queue.completions)?;
        make(CREATE_SQ, n << 16 | CONTIGUOUS, queue.commands)?;
        queues.push(queue);
    }

    let most = match about[77] {
        0 => u64::MAX,
        n => PAGE_SIZE << n.min(20),
    };
    let controller = Box::leak(Box::new(Controller {
        queues,
        dma,
        most,
        caches: about[525] & 1 != 0,
        discards: about[520] & 1 << 2 != 0,
    }));
    let me = CONTROLLERS.fetch_add(1, Ordering::Relaxed);
    for (n, (id, about)) in (1..).zip(&spaces) {
        let name = alloc::format!("nvme{me}n{n}");
        match Nvme::of(controller, name, *id, about) {
            Some(disk) => block::add(Box::leak(Box::new(disk)), Family::Extended),
            None => crate::warn!("nvme{me}: namespace {id} is not understood"),
        }
    }
    Some(())
}

/// The 32 bits at `at`.
fn word(bytes: &[u8], at: usize) -> u32 {
    (0..4).fold(0, |word, n| word | u32::from(bytes[at + n]) << (8 * n))
}

impl Nvme {
    /// `None`: its blocks are of a size, or have a form, that we do not know.
    fn of(
        controller: &'static Controller,
        name: String,
        namespace: u32,
        about: &[u8; 4096],
    ) -> Option<Self> {
        let format = word(about, 128 + 4 * (about[26] & 15) as usize);
        let (metadata, shift) = (format as u16, format >> 16 & 255);
        let blocks = u64::from(word(about, 0)) | u64::from(word(about, 4)) << 32;
        if metadata != 0 || !(9..=12).contains(&shift) || blocks > u64::MAX >> 13 {
            return None;
        }
        Some(Nvme {
            name,
            controller,
            namespace,
            sectors: blocks << (shift - 9),
            block: 1 << shift,
            read_only: about[99] & 1 != 0,
        })
    }

    /// A command about blocks from `sector` on.
    fn command(&self, opcode: u32, sector: u64, how: u32) -> Command {
        let at = sector / (u64::from(self.block) / SECTOR);
        Command {
            opcode,
            namespace: self.namespace,
            words: [at as u32, (at >> 32) as u32, how, 0, 0, 0],
            ..Command::default()
        }
    }

    fn request(&self, command: Command, pages: &[u64]) -> Result<(), Errno> {
        // Any queue will do: this thread may be elsewhere by the time that the answer comes.
        let queues = &self.controller.queues;
        let queue = queues[arch::cpu_id() % queues.len()];
        queue.request(command, pages).map(drop)
    }
}

impl Disk for Nvme {
    fn name(&self) -> &str {
        &self.name
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn block(&self) -> u32 {
        self.block
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn transfer(&self, sector: u64, memory: &Memory<'_>) -> Result<(), Errno> {
        let opcode = match memory.way() {
            Way::Fill => READ,
            Way::Drain => WRITE,
        };
        let memory = memory.map(self.controller.dma)?;
        let mut done = 0;
        while done < memory.bytes() {
            let part = gather(&memory, done, self.controller.most).ok_or(Errno::EINVAL)?;
            let block = u64::from(self.block);
            if part.len == 0 || !part.len.is_multiple_of(block) {
                return Err(Errno::EINVAL);
            }
            let at = sector + done / SECTOR;
            let command = self.command(opcode, at, (part.len / block) as u32 - 1);
            self.request(command, &part.pages[..part.used])?;
            done += part.len;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        match self.controller.caches {
            true => self.request(self.command(FLUSH, 0, 0), &[]),
            // Without a cache, what is done is written.
            false => Ok(()),
        }
    }

    fn discard(&self, sector: u64, sectors: u64) -> Result<(), Errno> {
        if !self.controller.discards {
            return Err(Errno::EOPNOTSUPP);
        }
        let per = u64::from(self.block) / SECTOR;
        let (mut at, end) = (sector / per, (sector + sectors) / per);
        let mut bounce = Bounce::new()?;
        while at < end {
            let n = (end - at).min(u64::from(u32::MAX));
            bounce.bytes()[..4].fill(0);
            bounce.bytes()[4..8].copy_from_slice(&(n as u32).to_le_bytes());
            bounce.bytes()[8..16].copy_from_slice(&at.to_le_bytes());
            let range = Memory::of_bounce(&mut bounce, Way::Drain, 16);
            let range = range.map(self.controller.dma)?;
            let command = Command {
                opcode: MANAGE,
                namespace: self.namespace,
                words: [0, DEALLOCATE, 0, 0, 0, 0], // one range
                ..Command::default()
            };
            let page = range.pieces().next().ok_or(Errno::EIO)?.pa;
            self.request(command, &[page])?;
            at += n;
        }
        Ok(())
    }
}
