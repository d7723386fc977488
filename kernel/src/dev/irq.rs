//! Interrupt vectors for devices: given out once, kept for ever.
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
