//! NVMe disks (NVM Express base specification 1.4): a queue pair for each CPU, memory by lists of pages (PRP).
//!
//! A queue has fewer commands in flight (`slots`) than its rings have entries, so that they never fill. A slot's part of `lists` says where
//! the second and later pages of its command are. Its number is the lower half of the command's identifier; the upper half says
//! how often the slot has been used, so that a completion of an earlier command is known for what it is.
//!
//! Of a command's pages only the first may begin and only the last may end inside a page, and so it is with memory. More than the device
//! moves at once (MDTS) takes several commands, one after the other.
//!
//! A controller is stopped by disabling it: when it says that it is not ready any more, it has forgotten its queues and touches no memory.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use mm::{Errno, PAGE_SIZE};

use super::Driver;
use super::block::{self, Bounce, Disk, Family, Memory, PIECES, Reached, SECTOR, Way};
use super::flight::Request;
use super::iommu::{Dma, READS, WRITES};
use super::irq;
use super::pci::{Function, Registers};
use super::slots::{self, Completion, Control, Parts, Reset, SLOTS, Slots};
use crate::arch;
use crate::arch::time::now_ns;
use crate::memory::direct;
use crate::task::cond_resched;

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

/// Entries of a ring: one of commands fills a page.
pub const DEPTH: u16 = 64;
const _: () = assert!(SLOTS < DEPTH as usize);
/// Bytes of a slot's list, and pages that a command may have: one more than the list, the last entry of which a device might take for a pointer
/// to the next.
const LIST: u64 = 1024;
const PAGES: usize = LIST as usize / 8;
const LISTS_ORDER: u8 = 3;
const _: () = assert!(PIECES <= PAGES);

/// A command as the device reads it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Command {
    /// Opcode; its identifier in the upper half.
    pub opcode: u32,
    namespace: u32,
    reserved: [u32; 4],
    prp: [u64; 2],
    words: [u32; 6],
}

/// A controller's registers.
struct Chip {
    registers: Registers,
    /// Nanoseconds that it may take to become ready, or not ready.
    settles: u64,
}

impl Chip {
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

    /// The doorbells of queue `n`: of commands, and of completions.
    fn bells(&self, n: u32, stride: u32) -> [Registers; 2] {
        [0, 1].map(|k| self.registers.part(BELLS + (2 * n + k) * stride, 4))
    }
}

impl Reset for &'static Chip {
    fn reset(&self) -> bool {
        self.registers.write32(CC, 0);
        self.settle(false)
    }
}

/// Where we are in the rings.
pub struct Ends {
    /// Where the next command goes.
    tail: u16,
    /// Where the next completion comes, and what its phase bit will be.
    head: u16,
    phase: bool,
    /// What the device knows of the head.
    told: u16,
    /// How often each slot has been used; wraps.
    uses: [u8; SLOTS],
}

impl Default for Ends {
    fn default() -> Ends {
        Ends {
            tail: 0,
            head: 0,
            phase: true,
            told: 0,
            uses: [0; SLOTS],
        }
    }
}

/// A pair of rings: commands and completions.
pub struct Ring {
    pub commands: u64,
    pub completions: u64,
    lists: u64,
    pub bells: [Registers; 2],
}

pub type Queue = Slots<Ring>;

impl Ring {
    /// In memory that `dma` lets the device reach. It stays: a device may use it for ever.
    pub fn new(dma: Dma, bells: [Registers; 2]) -> Option<Ring> {
        Some(Ring {
            commands: dma.alloc(0, READS)?,
            completions: dma.alloc(0, WRITES)?,
            lists: dma.alloc(LISTS_ORDER, READS)?,
            bells,
        })
    }

    /// Word `n` of a completion.
    fn word(&self, entry: u16, n: u64) -> &AtomicU32 {
        debug_assert!(entry < DEPTH && n < 4);
        let at = self.completions + 16 * u64::from(entry) + 4 * n;
        // SAFETY: inside our page, which is ours for ever and is accessed as atomics and by the device.
        unsafe { &*(direct(at) as *const AtomicU32) }
    }
}

impl super::slots::Ring for Ring {
    type Command<'a> = Order<'a>;
    type Ends = Ends;

    fn memory<'a>(order: &'a Order<'_>) -> Option<Reached<'a>> {
        order.memory
    }

    fn put(&self, ends: &mut Ends, slot: usize, order: &Order<'_>) -> bool {
        let list = self.lists + LIST * slot as u64;
        let uses = &mut ends.uses[slot];
        *uses = uses.wrapping_add(1);
        let mut command = order.command;
        command.opcode |= (slot as u32) << 16 | u32::from(*uses) << 24;
        if let Some(memory) = &order.memory {
            let mut pages = pages(memory);
            let first = pages.next().unwrap_or(0);
            let (mut second, mut more) = (0, 0);
            for page in pages {
                assert!(more < PAGES);
                // SAFETY: the slot's own list, which nobody else has, nor has the device (`Ring::put`); inside it by the line above.
                unsafe { (direct(list) as *mut u64).add(more).write_volatile(page) };
                if more == 0 {
                    second = page;
                }
                more += 1;
            }
            command.prp = [first, if more > 1 { list } else { second }];
        }
        let at = direct(self.commands) as *mut Command;
        // SAFETY: an entry of our ring; the device has read what was there, for there are more entries than slots.
        unsafe { at.add(ends.tail as usize).write_volatile(command) };
        ends.tail = (ends.tail + 1) % DEPTH;
        // The processor keeps the order: memory first, then the doorbell. With the lock held, so that the tail does not go back.
        self.bells[0].write32(0, u32::from(ends.tail));
        false
    }

    fn take(&self, ends: &mut Ends) -> Option<Completion> {
        let last = self.word(ends.head, 3).load(Ordering::Acquire);
        if (last >> 16 & 1 != 0) != ends.phase {
            if ends.told != ends.head {
                ends.told = ends.head;
                self.bells[1].write32(0, u32::from(ends.head));
            }
            return None;
        }
        let answer = self.word(ends.head, 0).load(Ordering::Relaxed);
        ends.head = (ends.head + 1) % DEPTH;
        ends.phase ^= ends.head == 0;
        let [slot, uses, ..] = last.to_le_bytes();
        let slot = slot as usize;
        Some(Completion {
            slot: (ends.uses.get(slot) == Some(&uses)).then_some(slot),
            answer: match last >> 17 {
                0 => Ok(answer),
                _ => Err(Errno::EIO),
            },
        })
    }
}

/// A command, and the memory that it is about.
pub struct Order<'a> {
    pub command: Command,
    pub memory: Option<Reached<'a>>,
}

impl From<Command> for Order<'_> {
    fn from(command: Command) -> Self {
        Order {
            command,
            memory: None,
        }
    }
}

/// Where its pages' bytes begin.
fn pages(memory: &Reached<'_>) -> impl Iterator<Item = u64> {
    memory.pieces().flat_map(|piece| {
        let (first, end) = (piece.pa, piece.pa + u64::from(piece.len));
        let next = first - first % PAGE_SIZE + PAGE_SIZE;
        core::iter::once(first).chain((next..end).step_by(PAGE_SIZE as usize))
    })
}

struct Controller {
    control: &'static Control,
    /// For commands to itself.
    admin: &'static Queue,
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
pub fn start(function: Function) -> Option<&'static dyn Driver> {
    function.enable();
    let cap = function.registers(0, 0, BELLS)?.read64(CAP);
    let stride = 4u32 << (cap >> 32 & 15);
    let commands = cap >> 37 & 1 != 0;
    let large_pages_only = cap >> 48 & 15 != 0;
    if !commands || large_pages_only || (cap as u16) < DEPTH - 1 {
        return None;
    }
    let bells = 2 * (arch::ncpus() as u32 + 1) * stride;
    let chip: &'static Chip = Box::leak(Box::new(Chip {
        registers: function.registers(0, 0, BELLS + bells)?,
        settles: (cap >> 24 & 255).max(1) * 500_000_000,
    }));
    let control = Control::new("nvme", chip);
    let started = bring_up(function, chip, control, stride);
    if started.is_none() {
        control.reset();
    }
    started
}

fn bring_up(
    function: Function,
    chip: &'static Chip,
    control: &'static Control,
    stride: u32,
) -> Option<&'static dyn Driver> {
    if !control.reset() {
        return None;
    }
    let msix = function.msix()?;
    let dma = Dma::of(function)?;
    // Memory for queue `n`, which the device has not heard of. It stays.
    let queue = |n| -> Option<&'static Queue> {
        let ring = Ring::new(dma, chip.bells(n, stride))?;
        Some(Box::leak(Box::new(Slots::new(
            control,
            ring,
            Ends::default(),
        ))))
    };
    let admin = queue(0)?;
    msix.route(0, 0, irq::vector(admin)?)?;
    let r = &chip.registers;
    r.write32(AQA, u32::from(DEPTH - 1) << 16 | u32::from(DEPTH - 1));
    r.write_halves(ASQ, admin.ring().commands);
    r.write_halves(ACQ, admin.ring().completions);
    r.write32(CC, ENABLE);
    if !chip.settle(true) {
        return None;
    }
    let mut bounce = Bounce::new().ok()?;
    let mut identify = |what, namespace| -> Option<Vec<u8>> {
        let command = Command {
            opcode: IDENTIFY,
            namespace,
            words: [what, 0, 0, 0, 0, 0],
            ..Command::default()
        };
        let page = Memory::of_bounce(&mut bounce, Way::Fill, 4096);
        let page = page.map(dma).ok()?;
        let memory = Some(*page);
        admin.request(Order { command, memory }).ok()?;
        drop(page);
        Some(bounce.bytes()[..4096].to_vec())
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
    let given = admin.request(Order::from(set)).ok()?;
    let given = (given & 0xffff).min(given >> 16).min(wanted) + 1;
    let mut queues = Vec::new();
    for n in 1..=given {
        let queue = queue(n)?;
        let make = |opcode, how, ring| {
            let command = Command {
                opcode,
                prp: [ring, 0],
                words: [u32::from(DEPTH - 1) << 16 | n, how, 0, 0, 0, 0],
                ..Command::default()
            };
            admin.request(Order::from(command)).ok()
        };
        msix.route(n as u16, n as usize - 1, irq::vector(queue)?)?;
        let interrupts = n << 16 | INTERRUPTS | CONTIGUOUS;
        make(CREATE_CQ, interrupts, queue.ring().completions)?;
        make(CREATE_SQ, n << 16 | CONTIGUOUS, queue.ring().commands)?;
        queues.push(queue);
    }

    let most = match about[77] {
        0 => u64::MAX,
        n => PAGE_SIZE << n.min(20),
    };
    let controller: &Controller = Box::leak(Box::new(Controller {
        control,
        admin,
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
    Some(controller)
}

impl Driver for Controller {
    fn let_go(&self) -> bool {
        block::depart(self.control, || {
            let mut queues = self.queues.clone();
            queues.push(self.admin);
            slots::let_go(self.control, &queues)
        })
    }
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
        about: &[u8],
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
    fn command(&self, opcode: u32, sector: u64) -> Command {
        let at = sector / (u64::from(self.block) / SECTOR);
        Command {
            opcode,
            namespace: self.namespace,
            words: [at as u32, (at >> 32) as u32, 0, 0, 0, 0],
            ..Command::default()
        }
    }

    /// Any will do: this thread may be elsewhere by the time that the answer comes.
    fn queue(&self) -> &'static Queue {
        let queues = &self.controller.queues;
        queues[arch::cpu_id() % queues.len()]
    }
}

impl Parts<Ring> for Nvme {
    fn part<'a>(
        &self,
        sector: u64,
        memory: Reached<'a>,
        skip: u64,
    ) -> Result<(Order<'a>, u64), Errno> {
        let opcode = match memory.way() {
            Way::Fill => READ,
            Way::Drain => WRITE,
        };
        let (block, len) = (u64::from(self.block), self.controller.most);
        let len = len.min(memory.bytes() - skip);
        if len == 0 || !len.is_multiple_of(block) {
            return Err(Errno::EINVAL);
        }
        let mut command = self.command(opcode, sector + skip / SECTOR);
        command.words[2] = (len / block) as u32 - 1;
        let memory = memory.part(skip, len);
        Ok((Order { command, memory }, len))
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
        let memory = memory.map(self.controller.dma)?;
        self.queue().transfer(self, sector, &memory)
    }

    fn begin(&'static self, request: Box<Request>) {
        self.queue().begin(self.controller.dma, self, request);
    }

    fn give_up(&self) {
        for queue in &self.controller.queues {
            queue.give_up();
        }
    }

    fn flush(&self) -> Result<(), Errno> {
        match self.controller.caches {
            true => {
                let flush = Order::from(self.command(FLUSH, 0));
                self.queue().request(flush).map(drop)
            }
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
            let command = Command {
                opcode: MANAGE,
                namespace: self.namespace,
                words: [0, DEALLOCATE, 0, 0, 0, 0], // one range
                ..Command::default()
            };
            let range = range.map(self.controller.dma)?;
            let memory = Some(*range);
            self.queue().request(Order { command, memory })?;
            at += n;
        }
        Ok(())
    }

    fn control(&self) -> &'static Control {
        self.controller.control
    }
}
