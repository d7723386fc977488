//! Out of memory: a fault found no frame although every cache was emptied (the allocator does that
//! before it gives up). Blocks of disks that are cached go first. Then the process with the largest resident set dies; whoever ran out yields and
//! tries again, with no lock held, so that the victim can take what it needs to leave.

use alloc::sync::{Arc, Weak};

use linux_raw_sys::general::SIGKILL;
use mm::{AddressSpace, CanWait, Hw};

use crate::arch::X86;
use crate::fs::writeback;
use crate::sync::IrqLock;
use crate::task::signal::{self, SigInfo};
use crate::task::{self, Process};

/// The space of the process that was killed last.
static VICTIM: IrqLock<Option<Weak<AddressSpace<X86>>>> = IrqLock::new(None);

/// Called without locks by a thread that needs a frame to go on. Returns when trying again makes sense, or
/// the thread must die.
#[cold]
pub fn out_of_memory(wait: &mut CanWait<X86>) {
    if task::fatal_signal_pending() {
        return;
    }
    // What can be read again; objects that nobody uses may still hold frames.
    if writeback::shrink(wait, false) != 0
        || writeback::shrink(wait, true) != 0
        || mm::phys::slab::shrink(X86) != 0
    {
        return;
    }
    if !victim_lives() {
        choose();
    }
    if !task::fatal_signal_pending() {
        task::yield_now();
    }
}

/// Whether the last victim's space is not yet emptied: its process may have let go of it already.
fn victim_lives() -> bool {
    VICTIM.lock().as_ref().is_some_and(lives)
}

fn lives(space: &Weak<AddressSpace<X86>>) -> bool {
    space.strong_count() != 0
}

/// Without a lock: the last reference to a space may go here, which waits.
fn resident(p: &Process) -> u64 {
    p.space().map_or(0, |s| s.rss_total())
}

fn choose() {
    let mut best: Option<(Arc<Process>, u64)> = None;
    task::for_each_process(|p| {
        let rss = resident(p);
        // Process 1 only when nobody else has anything.
        let rank = |pid: u32, rss: u64| (pid != 1, rss);
        if rss != 0
            && best
                .as_ref()
                .is_none_or(|(b, r)| rank(p.pid, rss) > rank(b.pid, *r))
        {
            best = Some((p.clone(), rss));
        }
    });
    let Some((victim, rss)) = best else {
        panic!("out of memory and nobody to kill");
    };
    let Some(space) = victim.space().map(|s| s.watch()) else {
        return; // it has just left by itself
    };
    let before = {
        let mut v = VICTIM.lock();
        if v.as_ref().is_some_and(lives) {
            return; // somebody else has just chosen
        }
        v.replace(space)
    };
    drop(before);
    crate::error!(
        "out of memory: killed process {} ({}), {} KiB resident, {} KiB free",
        victim.pid,
        core::str::from_utf8(&victim.comm())
            .unwrap_or("?")
            .trim_end_matches('\0'),
        rss * 4,
        X86.phys().free_frames(X86) * 4
    );
    if victim.pid == task::current().process.pid {
        // Also process 1, whom signals do not kill.
        signal::deliver::force(SigInfo::kernel(SIGKILL), true);
    } else {
        signal::send_to_process(&victim, SigInfo::kernel(SIGKILL));
    }
}
