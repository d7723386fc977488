//! Faults of our own making: one place in mm forgets a flush, and some test must notice.
//!
//! Every flush carries the place that asked for it (`FlushReq::site`, the caller's file and line, only
//! with the feature "sim"), so that each place is a mutation point by itself and none can be forgotten:
//! [`Sim::sites`](super::Sim::sites) lists those that a run has used, and `model_tlb.rs` compares with a
//! search of the sources.

use super::{Sim, lock};
use crate::hw::{FlushRange, FlushReq};
use core::panic::Location;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// A place that flushes: file and line, relative to the crate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Site {
    /// As the compiler names it.
    pub file: &'static str,
    /// Where in it.
    pub line: u32,
}

impl From<&'static Location<'static>> for Site {
    fn from(l: &'static Location<'static>) -> Self {
        Self {
            file: l.file(),
            line: l.line(),
        }
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = self.file.rsplit_once("src/").map_or(self.file, |(_, f)| f);
        write!(f, "{file}:{}", self.line)
    }
}

/// What is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// The whole flush.
    Drop(Site),
    /// The other CPUs are not told.
    DropRemote(Site),
    /// This CPU does not forget.
    DropLocal(Site),
    /// Leaves are forgotten, upper levels kept (only means something where tables are freed).
    KeepUppers(Site),
    /// The batch does not hear of what this place emptied.
    SkipNote(Site),
    /// A CPU that comes back to a space trusts what it kept of it, whatever was flushed meanwhile.
    TrustTags,
}

/// Who forgets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    Local,
    Remote,
}

/// How often a place flushed, by kind.
#[derive(Clone, Copy, Default, Debug)]
pub struct Used {
    /// Leaves of a range.
    pub pages: u32,
    /// Everything.
    pub all: u32,
    /// Of them, with tables to free.
    pub tables: u32,
}

#[derive(Default)]
pub(crate) struct Mutations {
    active: Mutex<Option<Mutation>>,
    used: Mutex<BTreeMap<Site, Used>>,
    notes: Mutex<BTreeSet<Site>>,
}

impl Mutations {
    /// Whether a mutation makes this half of the flush not happen. Counts the place, too.
    pub(crate) fn keeps(&self, req: &FlushReq, half: Half) -> bool {
        let site = Site::from(req.site);
        {
            let mut used = lock(&self.used);
            let u = used.entry(site).or_default();
            match req.range {
                FlushRange::All => {
                    u.all += 1;
                    u.tables += u32::from(req.tables);
                }
                FlushRange::Pages { .. } => u.pages += 1,
            }
        }
        match *lock(&self.active) {
            Some(Mutation::Drop(s)) => s == site,
            Some(Mutation::DropRemote(s)) => s == site && half == Half::Remote,
            Some(Mutation::DropLocal(s)) => s == site && half == Half::Local,
            _ => false,
        }
    }
    /// A place notes what it emptied; whether the batch shall not hear of it.
    pub(crate) fn forgets_note(&self, at: &'static Location<'static>) -> bool {
        let site = Site::from(at);
        lock(&self.notes).insert(site);
        *lock(&self.active) == Some(Mutation::SkipNote(site))
    }
    pub(crate) fn trusts_tags(&self) -> bool {
        *lock(&self.active) == Some(Mutation::TrustTags)
    }
    /// Whether a full flush by this place forgets leaves only.
    pub(crate) fn keeps_uppers(&self, req: &FlushReq) -> bool {
        matches!(*lock(&self.active), Some(Mutation::KeepUppers(s))
            if s == Site::from(req.site))
    }
}

impl Sim {
    /// From now on, until `None`: one place forgets.
    pub fn mutate(&self, m: Option<Mutation>) {
        *lock(&self.mutations.active) = m;
    }
    /// The places that have flushed, and how.
    pub fn sites(&self) -> BTreeMap<Site, Used> {
        lock(&self.mutations.used).clone()
    }
    /// The places that have told a batch what they emptied.
    pub fn note_sites(&self) -> BTreeSet<Site> {
        lock(&self.mutations.notes).clone()
    }
}
