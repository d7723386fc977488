//! Interrupts between CPUs, with acknowledgement.
//!
//! Each CPU has one request slot for shootdowns and one for calls. The initiator fills its slot, sets the
//! mask of CPUs that have to answer, sends the interrupt to each, and waits with interrupts on until every
//! bit is gone: so several initiators serve each other and none waits for a CPU that waits for it. A handler
//! serves all slots that name its CPU. Never wait here with interrupts off or an `IrqLock` held.
//!
//! An initiator looks a few times, then halts; whoever answers last wakes it. An answer that is long in coming
//! comes from a CPU that its host does not run just now, and spinning would keep it from running.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mm::Pfn;
use mm::hw::{AtomicCpuSet, FlushRange, FlushReq};

use super::trap::{VECTOR_CALL, VECTOR_RESCHED, VECTOR_SHOOTDOWN};
use super::{MAX_CPUS, apic, cpu, cpu_id, ncpus, percpu};

/// What to forget. `set` is null for the kernel half, where `range` is all that counts.
struct Request {
    set: *const AtomicCpuSet,
    flush: FlushReq,
}

#[repr(align(64))]
struct Shootdown {
    /// CPUs that have not answered.
    pending: AtomicU64,
    /// Written by the slot's CPU while `pending` is zero, read by the CPUs named there.
    request: UnsafeCell<Request>,
}
// SAFETY: `pending` says who may touch `request`, as above.
unsafe impl Sync for Shootdown {}

#[repr(align(64))]
struct Call {
    pending: AtomicU64,
    f: AtomicUsize,
}

static SHOOTDOWNS: [Shootdown; MAX_CPUS] = [const {
    Shootdown {
        pending: AtomicU64::new(0),
        request: UnsafeCell::new(Request {
            set: core::ptr::null(),
            flush: FlushReq {
                root: Pfn(0),
                id: 0,
                generation: 0,
                range: FlushRange::All,
            },
        }),
    }
}; MAX_CPUS];

static CALLS: [Call; MAX_CPUS] = [const {
    Call {
        pending: AtomicU64::new(0),
        f: AtomicUsize::new(0),
    }
}; MAX_CPUS];

/// In `pending`: the initiator halts until it is woken.
const HALTED: u64 = 1 << 63;

/// Looks before an initiator halts: about as long as an answer takes that comes at once.
const LOOKS: u32 = 64;

/// More pages of the kernel half than this: the whole TLB goes.
const MOST_PAGES: u64 = 33;

fn send_to(mask: u64, vector: u8) {
    let mut rest = mask;
    while rest != 0 {
        let target = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        // SAFETY: the entry of a CPU that runs; the id does not change.
        apic::send(unsafe { (*percpu::of(target)).apic_id }, vector);
    }
}

/// Makes `target` look at its current thread's work, or leave `hlt`.
pub fn send_resched(target: usize) {
    send_to(1 << target, VECTOR_RESCHED);
}

/// Makes this CPU forget the kernel half's translations of `start..end`.
pub fn flush_kernel_local(start: u64, end: u64) {
    if (end - start) >> 12 <= MOST_PAGES {
        (start..end).step_by(4096).for_each(cpu::invlpg);
    } else {
        flush_everything();
    }
}

/// All translations of this CPU, global ones too.
fn flush_everything() {
    const PGE: u64 = 1 << 7;
    // SAFETY: the same CR4 afterwards; changing PGE flushes all.
    unsafe {
        let cr4: u64;
        core::arch::asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags));
        core::arch::asm!("mov cr4, {}", in(reg) cr4 ^ PGE, options(nostack, preserves_flags));
        core::arch::asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
    }
}

/// Makes every CPU forget the kernel half's translations of `start..end`, and waits. Interrupts must be on.
pub fn flush_kernel(start: u64, end: u64) {
    flush_kernel_local(start, end);
    let others = ((1 << ncpus()) - 1) & !(1 << cpu_id());
    let range = FlushRange::Pages { start, end };
    round(
        others,
        core::ptr::null(),
        FlushReq {
            root: Pfn(0),
            id: 0,
            generation: 0,
            range,
        },
    );
}

/// Makes the CPUs of `others` forget what `flush` says and waits for their answers. Interrupts must be on.
pub(super) fn shootdown_space(others: u64, set: &AtomicCpuSet, flush: FlushReq) {
    round(others, set, flush);
}

fn round(others: u64, set: *const AtomicCpuSet, flush: FlushReq) {
    if others == 0 {
        return;
    }
    assert!(super::irqs_on(), "shootdown with interrupts off");
    let slot = &SHOOTDOWNS[cpu_id()];
    // SAFETY: our slot, and nobody is pending on it: the last round waited for that.
    unsafe { slot.request.get().write(Request { set, flush }) };
    slot.pending.store(others, Ordering::SeqCst);
    send_to(others, VECTOR_SHOOTDOWN);
    await_answers(&slot.pending);
}

/// Returns when every CPU of `pending` has answered. Interrupts are on.
fn await_answers(pending: &AtomicU64) {
    for _ in 0..LOOKS {
        if pending.load(Ordering::Acquire) == 0 {
            return;
        }
        core::hint::spin_loop();
    }
    // From the look to the halt interrupts are off: the one that wakes comes after the halt has begun.
    super::irq_disable();
    if pending.fetch_or(HALTED, Ordering::AcqRel) != 0 {
        while pending.load(Ordering::Acquire) != HALTED {
            super::halt_until_interrupt();
            super::irq_disable();
        }
    }
    pending.store(0, Ordering::Relaxed);
    super::irq_enable();
}

/// Whether CPU `id` has halted in a call round.
#[cfg(feature = "test")]
pub fn halts_for_answers(id: usize) -> bool {
    CALLS[id].pending.load(Ordering::SeqCst) & HALTED != 0
}

/// This CPU has done what the slot of CPU `from` asks.
fn answer(pending: &AtomicU64, from: usize) {
    let bit = 1 << cpu_id();
    if pending.fetch_and(!bit, Ordering::SeqCst) == bit | HALTED {
        send_resched(from);
    }
}

pub(super) fn serve_shootdowns() {
    let bit = 1 << cpu_id();
    percpu::this().ipis.fetch_add(1, Ordering::Relaxed);
    for (from, slot) in SHOOTDOWNS[..ncpus()].iter().enumerate() {
        if slot.pending.load(Ordering::Acquire) & bit != 0 {
            // SAFETY: our bit is set, so the request stands until we clear it, and so does the set it names.
            let request = unsafe { &*slot.request.get() };
            // SAFETY: as above.
            match (unsafe { request.set.as_ref() }, request.flush.range) {
                (Some(set), _) => super::hw::on_shootdown(set, request.flush),
                (None, FlushRange::Pages { start, end }) => flush_kernel_local(start, end),
                (None, FlushRange::All) => flush_everything(),
            }
            answer(&slot.pending, from);
        }
    }
}

/// Runs `f` on every CPU (here too) and waits. Interrupts must be on; elsewhere `f` runs in an interrupt.
pub fn run_on_all(f: fn()) {
    run_on(u64::MAX, f);
}

/// As `run_on_all`, on the CPUs of `cpus` only.
pub fn run_on(cpus: u64, f: fn()) {
    let me = cpu_id();
    let targets = cpus & ((1 << ncpus()) - 1) & !(1 << me);
    if targets != 0 {
        assert!(super::irqs_on(), "call round with interrupts off");
        let slot = &CALLS[me];
        slot.f.store(f as usize, Ordering::Relaxed);
        slot.pending.store(targets, Ordering::SeqCst);
        send_to(targets, VECTOR_CALL);
    }
    if cpus & 1 << me != 0 {
        let on = super::irq_save();
        f();
        super::irq_restore(on);
    }
    if targets != 0 {
        await_answers(&CALLS[me].pending);
    }
}

pub(super) fn serve_calls() {
    let bit = 1 << cpu_id();
    percpu::this().ipis.fetch_add(1, Ordering::Relaxed);
    for (from, slot) in CALLS[..ncpus()].iter().enumerate() {
        if slot.pending.load(Ordering::Acquire) & bit != 0 {
            // SAFETY: `run_on` stored a function pointer before it set the bit.
            let f: fn() = unsafe { core::mem::transmute(slot.f.load(Ordering::Relaxed)) };
            f();
            answer(&slot.pending, from);
        }
    }
}

/// The CPU that stops the others, plus one.
static STOPPING: AtomicUsize = AtomicUsize::new(0);
static STOPPED: AtomicU64 = AtomicU64::new(0);

/// Stops the other CPUs by NMI, for a panic. An error names the CPU that did so before.
pub(crate) fn stop_others() -> Result<(), usize> {
    let me = cpu_id();
    STOPPING
        .compare_exchange(0, me + 1, Ordering::SeqCst, Ordering::SeqCst)
        .map_err(|other| other - 1)?;
    let others = ((1u64 << ncpus()) - 1) & !(1 << me);
    for target in 0..ncpus() {
        if target != me {
            // SAFETY: as in `send_to`.
            apic::send_nmi(unsafe { (*percpu::of(target)).apic_id });
        }
    }
    // One that does not answer is not waited for: the report matters more.
    for _ in 0..10_000_000u32 {
        if STOPPED.load(Ordering::Acquire) & others == others {
            break;
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// Non-maskable interrupt: the end, when a CPU panicked.
pub(super) fn on_nmi() {
    if STOPPING.load(Ordering::SeqCst) != 0 {
        STOPPED.fetch_or(1 << cpu_id(), Ordering::Release);
        stop();
    }
}

/// This CPU runs nothing any more.
pub(crate) fn stop() -> ! {
    loop {
        super::irq_disable();
        x86_64::instructions::hlt();
    }
}
