//! QEMU's teaching device (`-device edu`): a number to read, a factorial, an interrupt, and a DMA engine that copies between its
//! 4 KiB and memory. `/dev/edu` is one file: `fs/edu.rs` says what its requests are.
//!
//! A transfer takes a tenth of a second, so there is time to look: the memory is borrowed (`block::Memory`) until the device has
//! interrupted, whatever its process does meanwhile. QEMU gives up when an offset is outside the device's 4 KiB, so that is checked
//! here; its addresses have 28 bits unless `dma_mask` says otherwise, which no register shows: a transfer that lands elsewhere
//! is the machine's mistake.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};
use mm::Errno;
use spin::Once;

use super::block::{Memory, Way};
use super::irq::{self, Line};
use super::pci::{Function, Registers};
use crate::sync::Mutex;
use crate::task::{Sleep, WaitQueue};

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
/// `IRQ_STATUS`.
const FACTORIAL_DONE: u32 = 1;
const DMA_DONE: u32 = 0x100;

/// Its memory, as its DMA engine sees it.
const BUFFER: u64 = 0x4_0000;
/// A transfer that ends with the last of its 4096 bytes is too long for QEMU 7.2, which gives up then.
pub const BUFFER_LEN: u64 = 4095;

/// All its registers.
pub const WINDOW_LEN: u64 = 1 << 20;

pub struct Edu {
    registers: Registers,
    /// Where they are.
    window: u64,
    /// One request at a time.
    turn: Mutex<()>,
    /// What it has interrupted for.
    done: AtomicU32,
    waiting: WaitQueue,
}

static EDU: Once<&'static Edu> = Once::new();

/// The machine's, if it has one.
pub fn edu() -> Option<&'static Edu> {
    EDU.get().copied()
}

pub fn is_one(function: Function) -> bool {
    function.id() == ID
}

/// The first one is taken. `None`: it is not what it should be.
pub fn start(function: Function) -> Option<()> {
    if EDU.get().is_some() {
        return Some(());
    }
    function.enable();
    let registers = function.registers(0, 0, LEN)?;
    let identity = registers.read32(IDENTITY);
    if identity & 0xffff != 0x00ed {
        return None;
    }
    let edu = Box::leak(Box::new(Edu {
        registers,
        window: function.window(0)?,
        turn: Mutex::new(()),
        done: AtomicU32::new(0),
        waiting: WaitQueue::new(),
    }));
    function.msi(0, irq::vector(edu)?)?;
    crate::info!("edu: version {}.{}", identity >> 24, identity >> 16 & 0xff);
    EDU.call_once(|| edu);
    Some(())
}

impl Edu {
    /// Sleeps until it has interrupted for `what`.
    fn wait(&self, what: u32) {
        let pending = || self.done.load(Ordering::Acquire) & what == 0;
        let _ = self
            .waiting
            .wait_while(Sleep::Uninterruptible, None, pending);
        self.done.fetch_and(!what, Ordering::Relaxed);
    }

    /// Where its registers are in physical memory: [`WINDOW_LEN`] bytes.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// `n!` in 32 bits.
    pub fn factorial(&self, n: u32) -> Result<u32, Errno> {
        let _turn = self.turn.lock_killable()?;
        self.registers.write32(STATUS, FACTORIAL_INTERRUPTS);
        self.registers.write32(FACTORIAL, n);
        self.wait(FACTORIAL_DONE);
        // It interrupts a moment before it says that it has stopped.
        while self.registers.read32(STATUS) & COMPUTES != 0 {
            crate::task::cond_resched();
        }
        Ok(self.registers.read32(FACTORIAL))
    }

    /// Moves all of `memory` from or to its own bytes at `offset`. `EINVAL` if it has fewer.
    pub fn transfer(&self, offset: u64, memory: &Memory<'_>) -> Result<(), Errno> {
        let len: u64 = memory.pieces().iter().map(|p| u64::from(p.len)).sum();
        if offset.checked_add(len).is_none_or(|end| end > BUFFER_LEN) {
            return Err(Errno::EINVAL);
        }
        let _turn = self.turn.lock_killable()?;
        let mut at = BUFFER + offset;
        for piece in memory.pieces() {
            let (from, to, way) = match memory.way() {
                Way::Fill => (at, piece.pa, DMA_TO_MEMORY),
                Way::Drain => (piece.pa, at, 0),
            };
            self.registers.write64(DMA_FROM, from);
            self.registers.write64(DMA_TO, to);
            self.registers.write32(DMA_COUNT, piece.len);
            let go = DMA_GO | DMA_INTERRUPTS | way;
            self.registers.write32(DMA_COMMAND, go);
            self.wait(DMA_DONE);
            at += u64::from(piece.len);
        }
        Ok(())
    }
}

impl Line for Edu {
    fn interrupt(&self) {
        let why = self.registers.read32(IRQ_STATUS);
        self.registers.write32(IRQ_ACK, why);
        self.done.fetch_or(why, Ordering::Release);
        self.waiting.wake_all();
    }
}
