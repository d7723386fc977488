//! Interrupt vectors for devices: given out once, kept for ever. And the old machine's lines, for devices without messages.
//!
//! A line is shared: its vector calls everybody on it, and each asks his own device, which lets go of the line then. The handler is
//! over before the controller is told so (`arch::trap`): else a line that is still up would interrupt once more.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicUsize, Ordering};
use spin::Once;

/// What an interrupt is for.
pub trait Line: Sync {
    /// Called by an interrupt handler, interrupts off: takes interrupt-safe locks only.
    fn interrupt(&self);
}

/// Below the vectors of the processors' own interrupts, above those of the old machine's lines.
const FIRST: usize = 0x40;
const LAST: usize = 0xdf;

static LINES: [Once<&'static dyn Line>; LAST - FIRST + 1] =
    [const { Once::new() }; LAST - FIRST + 1];
static GIVEN: AtomicUsize = AtomicUsize::new(0);

/// A vector whose interrupts go to `line`, on whichever CPU they come. `None`: all are taken.
pub fn vector(line: &'static dyn Line) -> Option<u8> {
    let n = GIVEN.fetch_add(1, Ordering::Relaxed);
    LINES.get(n)?.call_once(|| line);
    Some((FIRST + n) as u8)
}

/// A line of the old machine, and who is on it.
struct Wire {
    takers: [Once<&'static dyn Line>; 8],
    given: AtomicUsize,
}

static WIRES: [Wire; 16] = [const {
    Wire {
        takers: [const { Once::new() }; 8],
        given: AtomicUsize::new(0),
    }
}; 16];

impl Line for Wire {
    fn interrupt(&self) {
        let there = self.takers.iter().map_while(Once::get);
        there.for_each(|line| line.interrupt());
    }
}

/// Calls `line`, too, when line `irq` of the old machine goes up. All CPUs have some of the lines. `None`: there is no such line, or it
/// is full.
pub fn wire(irq: u8, line: &'static dyn Line) -> Option<()> {
    let wire = WIRES.get(irq as usize)?;
    let n = wire.given.fetch_add(1, Ordering::Relaxed);
    wire.takers.get(n)?.call_once(|| line);
    if n == 0 {
        let cpu = irq as usize % crate::arch::ncpus();
        crate::arch::route_pci(irq, cpu, vector(wire)?);
    }
    Some(())
}

/// Whether the vector was somebody's, who has been called. From the interrupt handler.
pub fn dispatch(vector: u8) -> bool {
    let line = (vector as usize)
        .checked_sub(FIRST)
        .and_then(|n| LINES.get(n)?.get());
    if let Some(line) = line {
        line.interrupt();
    }
    line.is_some()
}
