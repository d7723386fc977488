//! Slots that a device is taken out of while the machine runs (PCI Express 5.0, 6.7; the port's own registers, not ACPI's).
//!
//! 1. Who wants a device presses the attention button of its slot (`device_del` in QEMU's monitor). The port interrupts, and its
//!    thread does the rest: a device that keeps it waiting keeps nobody else.
//! 2. The power indicator blinks: wait. The drivers of what is in the slot let go of it, one after the other (`Driver::let_go`).
//! 3. The power goes off and the indicator, too, with one command: take it. If a driver cannot let go, the indicator is on as before,
//!    and whoever asked may ask again.
//!
//! A button that is pressed while the machine starts has been pressed all the same: its thread begins when all devices have been started.
//!
//! Nobody may change his mind after the first press, for which the specification has five seconds: a monitor has no button that one leans on. A
//! device that is put in waits for the next boot, without power.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;
use spin::Mutex as Spin;

use super::Driver;
use super::irq::{self, Line};
use super::pci::{EXPRESS, Function};
use crate::arch::time::now_ns;
use crate::task::{Sleep, WaitQueue, cond_resched, spawn_kernel_thread};

/// Registers of the `EXPRESS` capability.
const FLAGS: u8 = 0x02;
const CAPABILITIES: u8 = 0x14;
const CONTROL: u8 = 0x18;
const STATUS: u8 = 0x1a;

/// `FLAGS`: there is a slot; which message it interrupts with.
const SLOT: u16 = 1 << 8;
const MESSAGE_SHIFT: u16 = 9;
/// `CAPABILITIES`: button, switch of the power, and indicator; devices may be taken out; commands are carried out at once.
const NEEDED: u32 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 6;
const AT_ONCE: u32 = 1 << 18;
/// `CONTROL`: the button interrupts; interrupts at all; the indicator; no power.
const BUTTON_CALLS: u16 = 1 << 0;
const CALLS: u16 = 1 << 5;
const INDICATOR: u16 = 3 << 8;
const LIT: u16 = 1 << 8;
const BLINKS: u16 = 2 << 8;
const DARK: u16 = 3 << 8;
const NO_POWER: u16 = 1 << 10;
/// `STATUS`, to be cleared by writing ones: the button was pressed, a command was carried out; and all of those.
const PRESSED: u16 = 1 << 0;
const DONE: u16 = 1 << 4;
const EVENTS: u16 = 0x11f;
/// What is read where there is no port.
const NOBODY: u16 = 0xffff;

/// Nanoseconds that a command may take (6.7.3.2).
const PATIENCE: u64 = 1_000_000_000;

/// A port with such a slot.
struct Port {
    function: Function,
    /// Where its capability is.
    at: u8,
    /// Whether it says when a command has been carried out.
    tells: bool,
    call: WaitQueue,
}

static PORTS: Spin<Vec<&'static Port>> = Spin::new(Vec::new());
/// What is driven.
static DRIVEN: Spin<Vec<(Function, &'static dyn Driver)>> = Spin::new(Vec::new());

/// Whoever drives a function.
pub fn driven(function: Function, driver: &'static dyn Driver) {
    DRIVEN.lock().push((function, driver));
}

/// Looks whether a function is a port with such a slot; before what is in the slot is started.
pub fn start(function: Function) {
    if let Some((at, tells)) = slot(function)
        && port(function, at, tells).is_none()
    {
        crate::warn!("pci {function}: nothing can be taken out of this slot");
    }
}

/// Where its registers are, and whether it says when a command has been carried out.
fn slot(function: Function) -> Option<(u8, bool)> {
    function.behind()?;
    let (_, at) = function.capabilities().find(|&(id, _)| id == EXPRESS)?;
    let capabilities = function.read32(at + CAPABILITIES);
    let fits = function.read16(at + FLAGS) & SLOT != 0 && capabilities & NEEDED == NEEDED;
    fits.then_some((at, capabilities & AT_ONCE == 0))
}

fn port(function: Function, at: u8, tells: bool) -> Option<()> {
    let port: &Port = Box::leak(Box::new(Port {
        function,
        at,
        tells,
        call: WaitQueue::new(),
    }));
    function.enable();
    let vector = irq::vector(port)?;
    match function.msix() {
        Some(msix) => msix.route(function.read16(at + FLAGS) >> MESSAGE_SHIFT & 31, 0, vector)?,
        None => function.msi(0, vector)?,
    }
    port.clear(EVENTS & !PRESSED);
    PORTS.lock().push(port);
    Some(())
}

/// From now on what is in the slots may be taken out: it has been started.
pub fn listen() {
    let ports = PORTS.lock().clone();
    for (me, port) in ports.iter().enumerate() {
        if spawn_kernel_thread("hotplug", thread, me).is_err() {
            crate::warn!("pci {}: there is no memory for its thread", port.function);
        }
    }
}

impl Line for Port {
    fn interrupt(&self) {
        self.call.wake_one();
    }
}

impl Port {
    fn status(&self) -> u16 {
        self.function.read16(self.at + STATUS)
    }

    /// Clears those of `events` that are there; QEMU takes a write that names others for a mistake, and clears nothing.
    fn clear(&self, events: u16) {
        let there = self.status() & events;
        self.function.write16(self.at + STATUS, there);
    }

    /// A port that has been taken out itself, with a switch that it was a part of, says that everything has happened.
    fn is_pressed(&self) -> bool {
        let status = self.status();
        status != NOBODY && status & PRESSED != 0
    }

    /// Sets the bits of `mask` to those of `value`, and waits until that has been carried out.
    fn command(&self, mask: u16, value: u16) {
        self.clear(DONE);
        let old = self.function.read16(self.at + CONTROL);
        let new = old & !mask | value;
        self.function.write16(self.at + CONTROL, new);
        let deadline = now_ns() + PATIENCE;
        while self.tells && self.status() & DONE == 0 {
            if now_ns() > deadline {
                crate::warn!("pci {}: a slot that does not answer", self.function);
                return;
            }
            cond_resched();
        }
    }

    /// The button was pressed.
    fn let_go(&self) {
        let function = self.function;
        self.command(INDICATOR, BLINKS);
        let mut all: Vec<_> = DRIVEN.lock().clone();
        all.retain(|(device, _)| device.above().any(|bridge| bridge == function));
        for (device, _) in &all {
            crate::info!("pci {device}: is to be taken out of {function}");
        }
        if all.iter().all(|(_, driver)| driver.let_go()) {
            DRIVEN
                .lock()
                .retain(|(device, _)| !all.iter().any(|(gone, _)| gone == device));
            self.command(INDICATOR | NO_POWER, DARK | NO_POWER);
        } else {
            crate::warn!("pci {function}: what is in the slot cannot go");
            self.command(INDICATOR, LIT);
        }
        // What was pressed meanwhile was the same wish; and what is in the slot has changed, as we know.
        self.clear(EVENTS);
    }
}

/// Nobody else gives the port commands: each changes some bits of one register.
fn thread(me: usize) {
    let port = PORTS.lock()[me];
    port.command(BUTTON_CALLS | CALLS, BUTTON_CALLS | CALLS);
    loop {
        let call = &port.call;
        let _ = call.wait_while(Sleep::Uninterruptible, None, || !port.is_pressed());
        port.let_go();
    }
}
