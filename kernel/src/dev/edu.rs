//! QEMU's teaching device (`-device edu`): a number to read, a factorial, an interrupt, and a DMA engine that copies between its
//! 4 KiB and memory. `/dev/edu` is one file: `fs/edu.rs` says what its requests are.
//!
//! A transfer takes a tenth of a second, so there is time to look. What the device says of itself counts, and nothing else: a program
//! may have its registers mapped, and start it, take its interrupts or make some up. So:
//!
//! 1. With the turn, wait until it is idle; then tell it, start it, and read back what it was told. It takes no orders while it runs. If the
//!    order is not ours, somebody was faster: again, once it is idle.
//! 2. Wait until it is idle. An interrupt says when to look; who hears none looks by himself now and then.
//! 3. The memory is lent (`block::Lent`) until then, whatever its process does meanwhile. A device that is still at work when its
//!    time is over is dead: it loses the bus, and keeps for ever what it was lent.
//!
//! QEMU gives up when an offset is outside the device's 4 KiB, so that is checked here; its addresses have 28 bits unless `dma_mask`
//! says otherwise, which no register shows: a transfer that lands elsewhere is the machine's mistake.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, Ordering};

use mm::Errno;
use spin::Mutex as Spin;

use super::Driver;
use super::block::{Lent, Memory, Way};
use super::iommu::Dma;
use super::irq::{self, Line};
use super::pci::{Function, Registers, Window};
use crate::arch::time::now_ns;
use crate::fs::devfs;
use crate::sync::{Mutex, MutexGuard};
use crate::task::{Sleep, WaitError, WaitQueue};

const ID: (u16, u16) = (0x1234, 0x11e8);

/// Registers.
const IDENTITY: u32 = 0x00;
const FACTORIAL: u32 = 0x08;
const STATUS: u32 = 0x20;
const IRQ_STATUS: u32 = 0x24;
const IRQ_ACK: u32 = 0x64;
const DMA_FROM: u32 = 0x80;
const DMA_TO: u32 = 0x88;
const DMA_COUNT: u32 = 0x90;
const DMA_COMMAND: u32 = 0x98;
const LEN: u32 = 0xa0;

/// `STATUS`: at work; interrupt when the factorial is there.
const COMPUTES: u32 = 1;
const FACTORIAL_INTERRUPTS: u32 = 0x80;
/// `DMA_COMMAND`: go; from the device to memory; interrupt at the end.
const DMA_GO: u32 = 1;
const DMA_TO_MEMORY: u32 = 2;
const DMA_INTERRUPTS: u32 = 4;

/// Its memory, as its DMA engine sees it.
const BUFFER: u64 = 0x4_0000;
/// A transfer that ends with the last of its 4096 bytes is too long for QEMU 7.2, which gives up then.
pub const BUFFER_LEN: u64 = 4095;

/// Nanoseconds after which a waiter looks by himself.
const LOOK: u64 = 5_000_000;

pub struct Edu {
    function: Function,
    registers: Registers,
    dma: Dma,
    /// Where they are.
    window: Window,
    /// Nanoseconds that it may work.
    patience: u64,
    /// One request at a time; whether the device is alive.
    turn: Mutex<bool>,
    waiting: WaitQueue,
    /// It is to be taken out: no more turns.
    leaving: AtomicBool,
}

/// An order to its DMA engine.
struct Order {
    from: u64,
    to: u64,
    len: u32,
    command: u32,
}

static EDU: Spin<Option<&'static Edu>> = Spin::new(None);

/// The machine's, if it has one.
pub fn edu() -> Option<&'static Edu> {
    *EDU.lock()
}

/// The first one is taken.
pub fn is_one(function: Function) -> bool {
    function.id() == ID && edu().is_none()
}

/// `None`: it is not what it should be.
pub fn start(function: Function) -> Option<&'static dyn Driver> {
    function.enable();
    let registers = function.registers(0, 0, LEN)?;
    let identity = registers.read32(IDENTITY);
    if identity & 0xffff != 0x00ed {
        return None;
    }
    let edu: &Edu = Box::leak(Box::new(Edu {
        function,
        registers,
        dma: Dma::of(function)?,
        window: function.window(0)?,
        patience: super::patience(),
        turn: Mutex::new(true),
        waiting: WaitQueue::new(),
        leaving: AtomicBool::new(false),
    }));
    function.msi(0, irq::vector(edu)?)?;
    crate::info!("edu: version {}.{}", identity >> 24, identity >> 16 & 0xff);
    *EDU.lock() = Some(edu);
    Some(edu)
}

impl Driver for Edu {
    /// Who has its registers mapped finds nobody there from then on.
    fn let_go(&self) -> bool {
        *EDU.lock() = None;
        devfs::forget("edu");
        self.leaving.store(true, Ordering::Relaxed);
        let mut alive = self.turn.lock();
        self.function.leave_the_bus();
        *alive = false;
        true
    }
}

impl Edu {
    /// Sleeps until `bit` of a register is clear.
    fn idle(&self, register: u32, bit: u32, how: Sleep, until: u64) -> Result<(), Errno> {
        let busy = || self.registers.read32(register) & bit != 0;
        loop {
            let look = (now_ns() + LOOK).min(until);
            match self.waiting.wait_while(how, Some(look), busy) {
                Ok(()) => return Ok(()),
                Err(WaitError::Signal) => return Err(Errno::EINTR),
                Err(WaitError::Timeout) if look == until => return Err(Errno::ETIMEDOUT),
                Err(WaitError::Timeout) => {}
            }
        }
    }

    fn turn(&self) -> Result<MutexGuard<'_, bool>, Errno> {
        let alive = self.turn.lock_killable()?;
        match *alive && !self.leaving.load(Ordering::Relaxed) {
            true => Ok(alive),
            false => Err(Errno::EIO),
        }
    }

    /// Where its registers are in physical memory.
    pub fn window(&self) -> Window {
        self.window
    }

    /// `n!` in 32 bits; of another number, if a program tells it one at the same time.
    pub fn factorial(&self, n: u32) -> Result<u32, Errno> {
        let _turn = self.turn()?;
        let until = now_ns() + self.patience;
        self.idle(STATUS, COMPUTES, Sleep::Killable, until)?;
        self.registers.write32(STATUS, FACTORIAL_INTERRUPTS);
        self.registers.write32(FACTORIAL, n);
        self.idle(STATUS, COMPUTES, Sleep::Killable, until)?;
        Ok(self.registers.read32(FACTORIAL))
    }

    /// Moves all of the memory that `of` finds in what is lent, from or to the device's own bytes at `offset`. `EINVAL` if it has fewer,
    /// `EFAULT` without memory, `ETIMEDOUT` too late, `EIO` from a device that is dead.
    pub fn transfer<P>(
        &self,
        offset: u64,
        lent: &mut Lent<P>,
        of: impl FnOnce(&P) -> Option<Memory<'_>>,
    ) -> Result<(), Errno> {
        let mut alive = self.turn()?;
        let memory = of(lent.get().ok_or(Errno::EIO)?).ok_or(Errno::EFAULT)?;
        if offset
            .checked_add(memory.bytes())
            .is_none_or(|end| end > BUFFER_LEN)
        {
            return Err(Errno::EINVAL);
        }
        let memory = memory.map(self.dma)?;
        let mut at = BUFFER + offset;
        let done = memory.pieces().try_for_each(|piece| {
            let (from, to, way) = match memory.way() {
                Way::Fill => (at, piece.pa, DMA_TO_MEMORY),
                Way::Drain => (piece.pa, at, 0),
            };
            at += u64::from(piece.len);
            let order = Order {
                from,
                to,
                len: piece.len,
                command: DMA_INTERRUPTS | way,
            };
            self.obey(&order, &mut alive)
        });
        drop(memory);
        if done.is_err() && !*alive {
            lent.lose();
        }
        done
    }

    /// Gives an order, until it has been carried out. If that ends the device it has not said that it is done with the memory.
    fn obey(&self, order: &Order, alive: &mut bool) -> Result<(), Errno> {
        let r = &self.registers;
        let until = now_ns() + self.patience;
        loop {
            self.idle(DMA_COMMAND, DMA_GO, Sleep::Killable, until)?;
            r.write64(DMA_FROM, order.from);
            r.write64(DMA_TO, order.to);
            r.write32(DMA_COUNT, order.len);
            r.write32(DMA_COMMAND, order.command | DMA_GO);
            let told = (r.read64(DMA_FROM), r.read64(DMA_TO), r.read32(DMA_COUNT));
            let ours = told == (order.from, order.to, order.len)
                && r.read32(DMA_COMMAND) & !DMA_GO == order.command;
            let idle = self.idle(DMA_COMMAND, DMA_GO, Sleep::Uninterruptible, until);
            if idle.is_err() {
                self.function.leave_the_bus();
                crate::warn!("edu: does not answer, and keeps its memory");
                *alive = false;
                return Err(Errno::ETIMEDOUT);
            }
            if ours {
                return Ok(());
            }
            if now_ns() >= until {
                return Err(Errno::ETIMEDOUT);
            }
        }
    }
}

impl Line for Edu {
    fn interrupt(&self) {
        let why = self.registers.read32(IRQ_STATUS);
        self.registers.write32(IRQ_ACK, why);
        self.waiting.wake_all();
    }
}
