//! The TSC as clock, the local APIC timer as alarm.
//!
//! Both are measured once at boot, against the ACPI PM timer, for 200 µs: short, because under counted
//! instructions waiting is what boot would mostly do.

use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::Port;

use super::{apic, cpu};

const PM_HZ: u64 = 3_579_545;
const MEASURE_TICKS: u64 = PM_HZ / 5000;

/// Nanoseconds per TSC tick and APIC timer ticks per nanosecond, both times 2^32.
static NS_PER_TICK: AtomicU64 = AtomicU64::new(1 << 32);
static APIC_PER_NS: AtomicU64 = AtomicU64::new(1 << 28);
static TSC_START: AtomicU64 = AtomicU64::new(0);
static TSC_HZ: AtomicU64 = AtomicU64::new(1_000_000_000);
static REALTIME: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds since boot.
#[inline]
pub fn now_ns() -> u64 {
    let ticks = cpu::rdtsc().wrapping_sub(TSC_START.load(Ordering::Relaxed));
    mul_shift(ticks, NS_PER_TICK.load(Ordering::Relaxed))
}

#[inline]
fn mul_shift(v: u64, mult: u64) -> u64 {
    ((u128::from(v) * u128::from(mult)) >> 32) as u64
}

/// What to add to `now_ns` for the time of day.
pub fn realtime_offset_ns() -> u64 {
    REALTIME.load(Ordering::Relaxed)
}

/// TSC ticks per second.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// One timer interrupt on this CPU at `deadline_ns` (earlier when that is further than the timer counts);
/// `u64::MAX`: none.
#[inline]
pub fn set_timer(deadline_ns: u64) {
    if deadline_ns == u64::MAX {
        return apic::timer_start(0);
    }
    let ns = deadline_ns.saturating_sub(now_ns()).min(30_000_000_000);
    let count = mul_shift(ns, APIC_PER_NS.load(Ordering::Relaxed));
    apic::timer_start(count.clamp(1, u64::from(u32::MAX)) as u32);
}

/// Starts the clock at zero.
pub(super) fn start() {
    TSC_START.store(cpu::rdtsc(), Ordering::Relaxed);
}

/// A PM timer value and the TSC at that moment: of several tries the one that took least time.
fn sample(port: &mut Port<u32>) -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..4 {
        let before = cpu::rdtsc();
        // SAFETY: the PM timer's port, from the FADT; reading has no effect.
        let pm = unsafe { port.read() };
        let took = cpu::rdtsc() - before;
        if took < best.0 {
            best = (took, u64::from(pm & 0xff_ffff), before + took / 2);
        }
    }
    (best.1, best.2)
}

/// Measures TSC and APIC timer. Boot CPU, after its local APIC is on.
pub(super) fn calibrate(pm_port: Option<u16>) {
    let mut apic_hz = None;
    let mut tsc_hz = known_tsc_hz();
    if let Some(port) = pm_port {
        let mut port = Port::<u32>::new(port);
        apic::timer_masked(true);
        apic::timer_start(u32::MAX);
        let (pm0, tsc0) = sample(&mut port);
        let apic0 = apic::timer_current();
        let (mut pm1, mut tsc1);
        loop {
            (pm1, tsc1) = sample(&mut port);
            if pm1.wrapping_sub(pm0) & 0xff_ffff >= MEASURE_TICKS {
                break;
            }
        }
        let apic1 = apic::timer_current();
        apic::timer_start(0);
        apic::timer_masked(false);
        let ticks = pm1.wrapping_sub(pm0) & 0xff_ffff;
        apic_hz = Some(u64::from(apic0 - apic1) * PM_HZ / ticks);
        tsc_hz = tsc_hz.or(Some(roundest(
            ((tsc1 - tsc0) as u128 * u128::from(PM_HZ) / u128::from(ticks)) as u64,
            ticks,
        )));
    }
    let tsc_hz = tsc_hz.filter(|hz| *hz > 1_000_000).unwrap_or(1_000_000_000);
    let apic_hz = apic_hz.filter(|hz| *hz > 100_000).unwrap_or(62_500_000);
    TSC_HZ.store(tsc_hz, Ordering::Relaxed);
    NS_PER_TICK.store((1_000_000_000u64 << 32) / tsc_hz, Ordering::Relaxed);
    APIC_PER_NS.store((apic_hz << 32) / 1_000_000_000, Ordering::Relaxed);
    REALTIME.store(cmos_seconds() * 1_000_000_000 - now_ns(), Ordering::Relaxed);
}

/// A frequency measured over `ticks` is known to one tick of them: of what it may be, a multiple of 100 MHz if there is
/// one. Counted instructions are 1 GHz exactly.
fn roundest(hz: u64, ticks: u64) -> u64 {
    const ROUND: u64 = 100_000_000;
    let near = (hz + ROUND / 2) / ROUND * ROUND;
    if near.abs_diff(hz) <= hz / ticks {
        near
    } else {
        hz
    }
}

/// What CPUID says about the TSC's frequency, where it does.
fn known_tsc_hz() -> Option<u64> {
    if __cpuid_count(0, 0).eax < 0x15 {
        return None;
    }
    let r = __cpuid_count(0x15, 0);
    (r.eax != 0 && r.ebx != 0 && r.ecx != 0)
        .then(|| u64::from(r.ecx) * u64::from(r.ebx) / u64::from(r.eax))
}

fn cmos(reg: u8) -> u8 {
    // SAFETY: the CMOS clock's index and data ports; only the boot CPU reads it, once.
    unsafe {
        Port::<u8>::new(0x70).write(reg | 0x80);
        Port::<u8>::new(0x71).read()
    }
}

/// Seconds since 1970 from the battery clock, taken as UTC.
fn cmos_seconds() -> u64 {
    let read = || [0u8, 2, 4, 7, 8, 9, 0x32].map(cmos);
    let mut now = read();
    for _ in 0..1000 {
        let again = read();
        if cmos(0x0a) & 0x80 == 0 && now == again {
            break;
        }
        now = again;
    }
    let format = cmos(0x0b);
    let number = |v: u8| {
        u64::from(if format & 4 != 0 {
            v
        } else {
            (v >> 4) * 10 + (v & 15)
        })
    };
    let [s, m, h, day, month, year, century] = now;
    let mut hour = number(h & 0x7f);
    if format & 2 == 0 {
        hour = hour % 12 + if h & 0x80 != 0 { 12 } else { 0 };
    }
    let century = match number(century) {
        c @ 19..=29 => c,
        _ => 20,
    };
    let (year, month, day) = (century * 100 + number(year), number(month), number(day));
    // Days since 1970 in the proleptic Gregorian calendar, years counted from March.
    let (y, mp) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * mp + 2) / 5 + day - 1;
    (days.saturating_sub(719_468)) * 86_400 + hour * 3600 + number(m) * 60 + number(s)
}
