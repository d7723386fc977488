//! Out of memory: a fault found no frame although every cache was emptied (the allocator does that
//! before it gives up). Blocks of disks that are cached go first. Then the process with the largest resident set dies; whoever ran out yields and
//! tries again, with no lock of `mm` held, so that the victim can take what it needs to leave.
//!
//! It may hold locks of files, though, and the victim may be waiting for one of those. So a victim that has not left after a while loses
//! its private memory where it stands (`mm::ops::reap`); who still runs out then looks for the next one. A while, because
//! a victim that leaves by itself tells those who wait for its futexes (Linux's OOM_REAPER_DELAY).

use alloc::sync::{Arc, Weak};

use linux_raw_sys::general::SIGKILL;
use mm::phys::Use;
use mm::{AddressSpace, CanWait, Hw, ops};

use crate::arch::X86;
use crate::arch::time::now_ns;
use crate::fs::writeback;
use crate::memory;
use crate::sync::IrqLock;
use crate::task::signal::{self, SigInfo};
use crate::task::{self, Process, Space};

/// How long a victim may take to leave; and how long others try to empty it where it stands.
const PATIENCE_NS: u64 = 2_000_000_000;
const TRIES_NS: u64 = 1_000_000_000;

/// Frames that nobody dies for: several times what is kept for the kernel.
const ROOM: u64 = 2048;

/// Who was killed last.
struct Victim {
    space: Weak<AddressSpace<X86>>,
    /// When it is emptied if it is still there.
    late: u64,
    /// Some of those who use the space live on, or it is empty already.
    stays: bool,
}

impl Victim {
    /// Whether its space is not yet gone: its process may have let go of it already.
    fn lives(&self) -> bool {
        self.space.strong_count() != 0
    }
}

static VICTIM: IrqLock<Option<Victim>> = IrqLock::new(None);

/// Called without locks by a thread that needs a frame to go on. Returns when trying again makes sense, or
/// the thread must die.
#[cold]
pub fn out_of_memory(wait: &mut CanWait<X86>) {
    if task::fatal_signal_pending() {
        return;
    }
    // What can be read again; objects that nobody uses may still hold frames.
    if memory::heap::give_back() != 0
        || writeback::shrink(wait, false) != 0
        || writeback::shrink(wait, true) != 0
        || mm::phys::slab::shrink(X86) != 0
    {
        return;
    }
    // Others may have made room meanwhile: the last victim may be gone, or just emptied.
    if !is_awaited(wait) && !has_room() {
        choose();
    }
    if !task::fatal_signal_pending() {
        task::yield_now();
    }
}

/// Whether the last victim has memory that comes back soon. Empties one that is late.
fn is_awaited(wait: &mut CanWait<X86>) -> bool {
    let (space, late) = match &*VICTIM.lock() {
        Some(victim) if victim.lives() && now_ns() < victim.late => return true,
        Some(victim) if victim.lives() && !victim.stays => (victim.space.clone(), victim.late),
        _ => return false,
    };
    let Some(strong) = space.upgrade() else {
        return true;
    };
    let Some(pages) = ops::reap(&strong, wait) else {
        // Whoever changes the space may be waiting, too.
        return now_ns() < late + TRIES_NS;
    };
    if let Some(victim) = &mut *VICTIM.lock()
        && Weak::ptr_eq(&victim.space, &space)
    {
        victim.stays = true;
    }
    crate::warn!(
        "out of memory: a victim does not leave, {} KiB taken from it",
        pages * 4
    );
    true
}

/// Whether there is more than enough now for whatever a fault may want.
fn has_room() -> bool {
    let free = Use::Kernel.zones().iter().map(|&zone| memory::zone(zone).0);
    free.sum::<u64>() >= ROOM
}

/// The processes that use a space. Without a lock: the last reference to a space may go here, which waits.
fn each_user(space: &Arc<Space>, mut f: impl FnMut(&Arc<Process>)) {
    task::for_each_process(|p| {
        if p.space().is_some_and(|other| Arc::ptr_eq(&other, space)) {
            f(p);
        }
    });
}

fn choose() {
    let mut best: Option<(Arc<Process>, Arc<Space>, u64)> = None;
    let mut leaving = false;
    // Process 1 only when nobody else has anything.
    let rank = |pid: u32, rss: u64| (pid != 1, rss);
    task::for_each_process(|p| {
        let Some(space) = p.space() else {
            return;
        };
        leaving |= space.is_doomed();
        let rss = space.rss_total();
        let worse = |(b, _, r): &(Arc<Process>, _, u64)| rank(p.pid, rss) > rank(b.pid, *r);
        if rss != 0 && !space.is_doomed() && best.as_ref().is_none_or(worse) {
            best = Some((p.clone(), space, rss));
        }
    });
    let Some((victim, space, rss)) = best else {
        let leaving = leaving || VICTIM.lock().as_ref().is_some_and(Victim::lives);
        assert!(leaving, "out of memory and nobody to kill");
        return;
    };
    let me = task::current().process.pid;
    let dies = |pid: u32| pid != 1 || pid == me && pid == victim.pid;
    let mut stays = false;
    each_user(&space, |p| stays |= !dies(p.pid));
    let before = {
        let mut last = VICTIM.lock();
        let late = now_ns();
        if last.as_ref().is_some_and(|v| v.lives() && late < v.late) {
            return; // somebody else has just chosen
        }
        last.replace(Victim {
            space: space.watch(),
            late: late + PATIENCE_NS,
            stays,
        })
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
    each_user(&space, |p| {
        if p.pid == me && p.pid == victim.pid {
            // Also process 1, whom signals do not kill.
            signal::deliver::force(SigInfo::kernel(SIGKILL), true);
        } else {
            signal::send_to_process(p, SigInfo::kernel(SIGKILL));
        }
    });
}
