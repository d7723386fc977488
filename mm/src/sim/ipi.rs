//! Shootdowns and their acknowledgements.
//!
//! Rule: a CPU with interrupts off acknowledges nothing, so whoever frees a table that a lockless reader
//! may be in waits for that reader. A CPU that keeps a space only lazily is told as well, and leaves it.
//! Nobody may wait here with interrupts off: two such CPUs would wait for each other.

use super::mutate::Half;
use super::{CpuState, SLOTS, Sim, Slot, lock};
use crate::addr::Pfn;
use crate::hw::{AtomicCpuSet, Cpu, FlushRange, FlushReq};
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A host thread that waits so long for an acknowledgement has found a deadlock.
const PATIENCE: Duration = Duration::from_secs(20);

impl Sim {
    pub(super) fn send_shootdown(&'static self, cpus: &AtomicCpuSet, req: FlushReq) {
        let me = self.cpu();
        if !self.irqs_on() {
            self.report(Some(
                "a shootdown is awaited with interrupts off".to_string(),
            ));
        }
        if self.mutations.keeps(&req, Half::Remote) {
            return;
        }
        self.shootdowns.fetch_add(1, Ordering::Relaxed);
        let mut targets: Vec<usize> = (0..self.cpus.len())
            .filter(|c| *c != me && cpus.load() & (1 << c) != 0)
            .collect();
        let turn = lock(&self.rng).below(targets.len().max(1) as u64) as usize;
        targets.rotate_left(turn);
        for c in targets {
            self.dawdle(c);
            let state = self.wait_interruptible(c);
            self.forget_in(state, c, &req, Some(cpus));
        }
    }

    pub(super) fn send_grace(&'static self) {
        let me = self.cpu();
        if !self.irqs_on() {
            self.report(Some(
                "a grace period is awaited with interrupts off".to_string(),
            ));
        }
        for c in (0..self.cpus.len()).filter(|c| *c != me) {
            drop(self.wait_interruptible(c));
        }
    }

    /// The interrupt is on its way; its target goes on with what it kept.
    fn dawdle(&'static self, c: usize) {
        if self.config.threads {
            let lazily = lock(&self.rng).one_in(4);
            if lazily {
                std::thread::yield_now();
            }
            return;
        }
        let n = lock(&self.rng).below(4);
        for _ in 0..n {
            let what = lock(&self.rng).below(8);
            self.act(c, what, false);
        }
    }

    /// Waits until CPU `c` would take an interrupt, and holds it there.
    fn wait_interruptible(&'static self, c: usize) -> MutexGuard<'static, CpuState> {
        let mut since = None;
        loop {
            let state = lock(&self.cpus[c].state);
            if !self.cpus[c].masked.load(Ordering::SeqCst) {
                return state;
            }
            drop(state);
            let since = *since.get_or_insert_with(|| {
                self.late.fetch_add(1, Ordering::Relaxed);
                Instant::now()
            });
            assert!(
                self.config.threads,
                "CPU {c} has interrupts off and, stepped, will never acknowledge"
            );
            assert!(
                since.elapsed() < PATIENCE,
                "CPU {c} never acknowledged: deadlock"
            );
            std::thread::yield_now();
        }
    }

    /// CPU `c` forgets what `req` names.
    pub(super) fn forget(&self, c: usize, req: &FlushReq, cpus: Option<&AtomicCpuSet>) {
        self.forget_in(lock(&self.cpus[c].state), c, req, cpus);
    }

    fn forget_in(
        &self,
        mut state: MutexGuard<'_, CpuState>,
        c: usize,
        req: &FlushReq,
        cpus: Option<&AtomicCpuSet>,
    ) {
        let s = &mut *state;
        let Some(slot) = s.slots.iter_mut().find(|s| s.id == req.id) else {
            return;
        };
        // A flush that overtook an earlier one of the same space stands for it, if it forgets everything.
        let range = if slot.generation + 1 < req.generation {
            FlushRange::All
        } else {
            req.range
        };
        let range = if range == FlushRange::All && self.mutations.keeps_uppers(req) {
            FlushRange::Pages {
                start: 0,
                end: u64::MAX,
            }
        } else {
            range
        };
        slot.generation = slot.generation.max(req.generation);
        s.mmu.flush(req.id, range);
        if let Some(cpus) = cpus
            && s.mmu.tag() == req.id
            && self.cpus[c].lazy.load(Ordering::SeqCst)
        {
            let root = Pfn(self.kernel_root.load(Ordering::SeqCst));
            s.mmu.set_root(root, 0);
            s.mmu.flush(req.id, FlushRange::All);
            s.slots.retain(|s| s.id != req.id);
            cpus.remove(c);
        }
    }

    /// CR3 is written for a thread of the space, so this CPU is not lazy any more: entries of `id` stay if they are good for `generation`.
    pub(super) fn load(&self, root: Pfn, id: u64, generation: u64) {
        assert!(id != 0, "0 is the kernel's own root");
        if self.cpus[self.me()].masked.load(Ordering::SeqCst) {
            // As the door demands.
        } else {
            self.report(Some("a root is loaded with interrupts on".to_string()));
        }
        let mut here = self.here();
        let s = &mut *here;
        if !self.config.pcid {
            s.mmu.flush_everything();
            s.slots.clear();
        }
        match s.slots.iter_mut().find(|s| s.id == id) {
            Some(slot) if slot.generation == generation => {}
            Some(_) if self.mutations.trusts_tags() => {}
            Some(slot) => {
                slot.generation = generation;
                s.mmu.flush(id, FlushRange::All);
            }
            None => {
                if s.slots.len() == SLOTS {
                    let i = s.mmu.random(SLOTS as u64) as usize;
                    let old = s.slots.swap_remove(i);
                    s.mmu.flush(old.id, FlushRange::All);
                }
                s.slots.push(Slot { id, generation });
            }
        }
        s.mmu.set_root(root, id);
        self.cpus[self.me()].lazy.store(false, Ordering::SeqCst);
    }
}
