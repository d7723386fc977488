//! The end of a boot that cannot go on: one line on the log channel (COM2, or COM1 where that is the only port: the
//! console may belong to a program), then a QEMU exit code.

use core::arch::asm;
use core::fmt::{Arguments, Write};

/// Why there is no kernel running. The number goes to the debug-exit device; QEMU exits with `2n + 1`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Failure {
    NoKernel = 0x20,
    BadKernel = 0x21,
    TooLittleMemory = 0x22,
    NoFeature = 0x23,
    BadBootInformation = 0x24,
    Internal = 0x25,
}

pub const EXIT_PORT: u16 = 0xf4;
const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;

/// Says why and ends the machine.
pub fn stop(failure: Failure, why: Arguments) -> ! {
    let _ = writeln!(Serial, "pinfold loader: {why}");
    // SAFETY: the debug-exit device ends QEMU; without one nothing answers and the CPU halts for ever.
    unsafe {
        asm!("out dx, eax", in("dx") EXIT_PORT, in("eax") failure as u32, options(nomem, nostack));
        loop {
            asm!("cli", "hlt", options(nomem, nostack));
        }
    }
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let port = if line_status(COM2) == 0xff {
            COM1
        } else {
            COM2
        };
        for byte in text.bytes() {
            // Ready to send; a port without a UART reads as all ones, which is ready too.
            while line_status(port) & 0x20 == 0 {}
            // SAFETY: sending a byte touches no memory.
            unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack)) };
        }
        // Sent to the last bit, or QEMU may end first.
        while line_status(port) & 0x40 == 0 {}
        Ok(())
    }
}

fn line_status(port: u16) -> u8 {
    let status: u8;
    // SAFETY: reading the line status touches no memory.
    unsafe { asm!("in al, dx", in("dx") port + 5, out("al") status, options(nomem, nostack)) };
    status
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    stop(Failure::Internal, format_args!("{info}"))
}
