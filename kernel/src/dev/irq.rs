//! Interrupt vectors for devices: given out once, kept for ever. And the old machine's lines, for devices without messages.
//!
//! A line is shared: its vector calls everybody on it, and each asks his own device, which lets go of the line then. The handler is
//! over before the controller is told so (`arch::trap`): else a line that is still up would interrupt once more.
#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use spin::Once;

use crate::arch;

/// What an interrupt is for.
pub trait Line: Sync {
    /// Called by an interrupt handler, interrupts off: takes interrupt-safe locks only.
    fn interrupt(&self);
    /// What /proc/interrupts calls it.
    fn kind(&self) -> &'static str {
        "message"
    }
}

/// Below the vectors of the processors' own interrupts, above those of the old machine's lines.
const FIRST: usize = 0x40;
const LAST: usize = 0xdf;

static LINES: [Once<&'static dyn Line>; LAST - FIRST + 1] =
    [const { Once::new() }; LAST - FIRST + 1];
static GIVEN: AtomicUsize = AtomicUsize::new(0);
/// How many have come, by the CPU.
static COUNTS: [[AtomicU64; arch::MAX_CPUS]; LINES.len()] =
    [const { [const { AtomicU64::new(0) }; arch::MAX_CPUS] }; LINES.len()];

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
    /// That it goes to a CPU.
    routed: Once<Option<()>>,
}

static WIRES: [Wire; 16] = [const {
    Wire {
        takers: [const { Once::new() }; 8],
        given: AtomicUsize::new(0),
        routed: Once::new(),
    }
}; 16];

impl Line for Wire {
    fn interrupt(&self) {
        let there = self.takers.iter().map_while(Once::get);
        there.for_each(|line| line.interrupt());
    }

    fn kind(&self) -> &'static str {
        "line"
    }
}

/// Calls `line`, too, when line `irq` of the old machine goes up. All CPUs have some of the lines. `None`: there is no such line, it is
/// full, or it goes nowhere.
pub fn wire(irq: u8, line: &'static dyn Line) -> Option<()> {
    let wire = WIRES.get(irq as usize)?;
    let n = wire.given.fetch_add(1, Ordering::Relaxed);
    wire.takers.get(n)?.call_once(|| line);
    *wire.routed.call_once(|| {
        let cpu = irq as usize % arch::ncpus();
        arch::route_pci(irq, cpu, vector(wire)?)
    })
}

/// Whether the vector was somebody's, who has been called. From the interrupt handler.
pub fn dispatch(vector: u8) -> bool {
    let n = (vector as usize).checked_sub(FIRST);
    let line = n.and_then(|n| Some((LINES.get(n)?.get()?, COUNTS.get(n)?)));
    if let Some((line, counts)) = line {
        counts[arch::cpu_id()].fetch_add(1, Ordering::Relaxed);
        line.interrupt();
    }
    line.is_some()
}

/// /proc/interrupts: those of devices.
pub fn report(out: &mut dyn fmt::Write) -> fmt::Result {
    let cpus = arch::ncpus();
    write!(out, "    ")?;
    (0..cpus).try_for_each(|cpu| write!(out, " {:>10}", alloc::format!("CPU{cpu}")))?;
    writeln!(out)?;
    for (n, (line, counts)) in LINES.iter().zip(&COUNTS).enumerate() {
        let Some(line) = line.get() else { break };
        write!(out, "{:>3}:", FIRST + n)?;
        let mut counts = counts[..cpus].iter().map(|n| n.load(Ordering::Relaxed));
        counts.try_for_each(|n| write!(out, " {n:>10}"))?;
        writeln!(out, "  {}", line.kind())?;
    }
    Ok(())
}
