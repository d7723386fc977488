//! COM1 (console) and COM2 (log channel): 16550 with FIFO, written by waiting, COM1 read by interrupt.

use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::port::Port;

use crate::sync::IrqLock;

const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;
const FIFO: usize = 16;
const LSR_DATA: u8 = 1;
const LSR_EMPTY: u8 = 0x20;
const LSR_IDLE: u8 = 0x40;

struct Uart(u16);

impl Uart {
    fn write_reg(&mut self, reg: u16, v: u8) {
        // SAFETY: the ports of a standard UART; the lock around `Uart` gives exclusive use.
        unsafe { Port::<u8>::new(self.0 + reg).write(v) }
    }

    fn read_reg(&mut self, reg: u16) -> u8 {
        // SAFETY: as above.
        unsafe { Port::<u8>::new(self.0 + reg).read() }
    }

    /// 115200 8N1, FIFO on, no interrupts.
    fn init(&mut self) {
        for (reg, v) in [
            (1, 0),
            (3, 0x80),
            (0, 1),
            (1, 0),
            (3, 3),
            (2, 0xc7),
            (4, 0x0b),
        ] {
            self.write_reg(reg, v);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(FIFO) {
            while self.read_reg(5) & LSR_EMPTY == 0 {
                core::hint::spin_loop();
            }
            for byte in chunk {
                self.write_reg(0, *byte);
            }
        }
    }
}

static CONSOLE: IrqLock<Uart> = IrqLock::new(Uart(COM1));
static LOG: IrqLock<Uart> = IrqLock::new(Uart(COM2));
static LOG_TO_CONSOLE: AtomicBool = AtomicBool::new(false);

/// Sets both up. Before anything is printed.
pub(crate) fn init() {
    CONSOLE.lock().init();
    LOG.lock().init();
}

/// Writes bytes as they are to the console.
pub fn write(bytes: &[u8]) {
    // Not the whole buffer under one lock: interrupts wait while it is held.
    for chunk in bytes.chunks(256) {
        CONSOLE.lock().write(chunk);
    }
}

/// Writes one piece of text to the log channel, unbroken; "\r\n" ends lines where the channel is a terminal.
pub fn write_log(bytes: &[u8]) {
    if LOG_TO_CONSOLE.load(Ordering::Relaxed) {
        let mut uart = CONSOLE.lock();
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(text) => {
                    uart.write(text);
                    uart.write(b"\r\n");
                }
                None => uart.write(line),
            }
        }
    } else {
        LOG.lock().write(bytes);
    }
}

/// Sends the log to the console too (`mode=shell`).
pub(crate) fn set_log_to_console(on: bool) {
    LOG_TO_CONSOLE.store(on, Ordering::Relaxed);
}

/// Turns receive interrupts of the console on; bytes go to `fs::tty::on_rx`.
pub fn enable_receive() {
    super::apic::route_isa(4, super::trap::VECTOR_COM1);
    CONSOLE.lock().write_reg(1, 1);
}

/// The receive interrupt.
pub(super) fn receive() {
    loop {
        let byte = {
            let mut uart = CONSOLE.lock();
            // Reading the identification register tells the UART that we are here.
            let _ = uart.read_reg(2);
            if uart.read_reg(5) & LSR_DATA == 0 {
                return;
            }
            uart.read_reg(0)
        };
        crate::fs::tty::on_rx(byte);
    }
}

/// Breaks both locks for the panic report.
///
/// # Safety
/// The other CPUs are stopped.
pub(crate) unsafe fn force_unlock() {
    // SAFETY: the caller's promise.
    unsafe {
        CONSOLE.force_unlock();
        LOG.force_unlock();
    }
}

/// Waits until both ports have sent everything: QEMU may end before it passes the last bytes on.
pub(crate) fn drain() {
    for uart in [&CONSOLE, &LOG] {
        while uart.lock().read_reg(5) & LSR_IDLE == 0 {
            core::hint::spin_loop();
        }
    }
}
