//! One CPU's memory management unit, as ill-behaved as the manuals allow.
//!
//! It walks the tables in simulated RAM entry by entry, reading exactly what `Pte` wrote and knowing
//! nothing else of mm (but that nobody counts a special frame); sets accessed and dirty bits itself, by locked compare-and-swap on the entry it
//! read, when it likes; keeps leaves (`Leaf`) and the upper levels of past walks (`Upper`, the
//! paging-structure caches) for as long as nobody tells it to forget; forgets some at random; tags what
//! it keeps with the space (PCID) and keeps global leaves across root changes. Every kept entry and
//! every access carries the *life* of the frame it names, so that the use of a frame that was freed,
//! even one that was handed out again since, is seen at once.

use super::ram::Ram;
use super::rng::Rng;
use crate::addr::Pfn;
use crate::hw::FlushRange;

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
/// The one bit of mm's own that it knows: whose frame it is does not matter.
const SPECIAL: u64 = 1 << 9;
const ADDR: u64 = 0x000f_ffff_ffff_f000;

const KEY_SHIFT: u32 = 59;

/// What a key register says about data of a key.
pub fn key_allows(pkru: u32, key: u64, write: bool) -> bool {
    let bits = pkru >> (2 * (key & 15));
    bits & 1 == 0 && !(write && bits & 2 != 0)
}

/// Leaves a CPU keeps.
const LEAVES: usize = 96;
/// Upper-level entries a CPU keeps.
const UPPERS: usize = 24;

/// How an access wants to use a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Exec,
}

/// What the trap would say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// The address (CR2).
    pub va: u64,
    /// The access.
    pub want: Want,
    /// Whether an entry was present and refused (error code bit 0).
    pub present: bool,
    /// Whether the key register refused it (bit 5).
    pub key: bool,
}

/// Whose translations: a space's number. 0 is the kernel's own root.
pub type Tag = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rights {
    write: bool,
    user: bool,
    exec: bool,
    /// The leaf's key.
    key: u64,
}

impl Rights {
    const ALL: Self = Self {
        write: true,
        user: true,
        exec: true,
        key: 0,
    };
    fn and(self, e: u64) -> Self {
        Self {
            write: self.write && e & W != 0,
            user: self.user && e & U != 0,
            exec: self.exec && e & NX == 0,
            key: e >> KEY_SHIFT & 15,
        }
    }
    /// Whether the key register refuses data of this leaf. Only users' pages have keys, for the kernel as well.
    fn key_refuses(self, pkru: u32, want: Want) -> bool {
        self.user && want != Want::Exec && !key_allows(pkru, self.key, want == Want::Write)
    }
    fn allows(self, want: Want) -> bool {
        self.user
            && match want {
                Want::Read => true,
                Want::Write => self.write,
                Want::Exec => self.exec,
            }
    }
}

/// A kept leaf.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    tag: Tag,
    global: bool,
    /// First address and log2 of the bytes it covers.
    va: u64,
    shift: u32,
    /// First frame and its life when the entry was read; none: a bare frame, which may be free.
    pfn: Pfn,
    life: Option<u32>,
    rights: Rights,
    dirty: bool,
}

/// A kept upper-level entry: the table that covers `va >> shift` of a space.
#[derive(Clone, Copy, Debug)]
struct Upper {
    tag: Tag,
    va: u64,
    shift: u32,
    table: Pfn,
    life: u32,
    rights: Rights,
}

/// What a CPU remembers of tables.
#[derive(Debug)]
pub struct Mmu {
    root: Pfn,
    tag: Tag,
    pkru: u32,
    leaves: Vec<Leaf>,
    uppers: Vec<Upper>,
    rng: Rng,
    violation: Option<String>,
    /// Where it faulted last: the instruction is still in flight, and so is speculation about it.
    hot: u64,
    /// What a flush took: wanted again as soon as nobody looks.
    lost: Vec<u64>,
}

enum Walked {
    Leaf(Leaf),
    Fault(PageFault),
    /// An entry changed under a locked update: begin again.
    Again,
}

fn sext(va: u64) -> bool {
    let top = va >> 47;
    top == 0 || top == 0x1ffff
}

impl Mmu {
    /// A CPU on the kernel's own root, remembering nothing.
    pub fn new(root: Pfn, seed: u64) -> Self {
        Self {
            root,
            tag: 0,
            pkru: 0,
            leaves: Vec::new(),
            uppers: Vec::new(),
            rng: Rng::new(seed),
            violation: None,
            hot: 0,
            lost: Vec::new(),
        }
    }
    /// The loaded root.
    pub fn root(&self) -> Pfn {
        self.root
    }
    /// The loaded space.
    pub fn tag(&self) -> Tag {
        self.tag
    }
    /// Loads the key register.
    pub fn set_pkru(&mut self, pkru: u32) {
        self.pkru = pkru;
    }
    /// What went wrong since the last call, if anything did.
    pub fn take_violation(&mut self) -> Option<String> {
        self.violation.take()
    }
    fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// CR3 is written with the no-flush bit: entries of other spaces stay, tagged.
    pub fn set_root(&mut self, root: Pfn, tag: Tag) {
        self.root = root;
        self.tag = tag;
    }

    /// Forgets entries of one space, as the request says and not one more.
    pub fn flush(&mut self, tag: Tag, range: FlushRange) {
        self.lost.clear();
        let lost = self
            .leaves
            .iter()
            .filter(|l| l.tag == tag && tag == self.tag);
        self.lost.extend(lost.map(|l| l.va));
        match range {
            FlushRange::All => {
                self.leaves.retain(|l| l.tag != tag || l.global);
                self.uppers.retain(|u| u.tag != tag);
            }
            FlushRange::Pages { start, end } => self
                .leaves
                .retain(|l| l.tag != tag || l.va >= end || l.va + (1 << l.shift) <= start),
        }
    }
    /// Forgets global leaves, too.
    pub fn flush_everything(&mut self) {
        self.leaves.clear();
        self.uppers.clear();
    }
    /// Forgets one entry, or a few: capacity, a hypervisor, a whim.
    pub fn evict_some(&mut self) {
        if !self.leaves.is_empty() {
            let i = self.rng.below(self.leaves.len() as u64) as usize;
            self.leaves.swap_remove(i);
        }
        if !self.uppers.is_empty() && self.rng.one_in(2) {
            let i = self.rng.below(self.uppers.len() as u64) as usize;
            self.uppers.swap_remove(i);
        }
    }

    fn usable(&self, l: &Leaf) -> bool {
        l.global || l.tag == self.tag
    }

    /// A user access to one byte: the host address, or the fault. The caller reads or writes at once,
    /// before this CPU can acknowledge anything.
    pub fn translate(&mut self, ram: &Ram, va: u64, want: Want) -> Result<*mut u8, PageFault> {
        self.translate_as(ram, va, want, true)
    }

    /// As the kernel (`user` false: the user bit is not asked for).
    pub fn translate_as(
        &mut self,
        ram: &Ram,
        va: u64,
        want: Want,
        user: bool,
    ) -> Result<*mut u8, PageFault> {
        let r = self.translate_inner(ram, va, want, user);
        if r.is_err() {
            self.hot = va;
        }
        r
    }

    fn translate_inner(
        &mut self,
        ram: &Ram,
        va: u64,
        want: Want,
        user: bool,
    ) -> Result<*mut u8, PageFault> {
        let refuse = |present, key| PageFault {
            va,
            want,
            present,
            key,
        };
        if !sext(va) {
            return Err(refuse(false, false));
        }
        if let Some(i) = self
            .leaves
            .iter()
            .position(|l| self.usable(l) && va >> l.shift == l.va >> l.shift)
        {
            let l = self.leaves[i];
            let ok = if user {
                l.rights.allows(want)
            } else {
                want != Want::Write || l.rights.write
            };
            let key = l.rights.key_refuses(self.pkru, want);
            if !ok || key {
                // A kept entry that refuses faults at once, stale or not, and is forgotten by the fault.
                self.leaves.swap_remove(i);
                return Err(refuse(true, key));
            }
            if want != Want::Write || l.dirty {
                return Ok(self.reach(ram, l, va));
            }
            // First store through a clean entry: the walker must set the dirty bit in memory.
            self.leaves.swap_remove(i);
        }
        loop {
            match self.walk(ram, va, want, user) {
                Walked::Leaf(l) => {
                    self.keep(l);
                    return Ok(self.reach(ram, l, va));
                }
                Walked::Fault(f) => return Err(f),
                Walked::Again => {}
            }
        }
    }

    /// A walk that nobody asked for: speculation may read any address at any time and keep the result.
    pub fn speculate(&mut self, ram: &Ram, va: u64) {
        if !sext(va) {
            return;
        }
        if let Walked::Leaf(l) = self.walk(ram, va, Want::Read, false) {
            self.keep(l);
        }
    }

    /// Speculates on the access that faulted last.
    pub fn speculate_hot(&mut self, ram: &Ram) {
        if self.hot != 0 {
            self.speculate(ram, self.hot);
        }
    }

    /// Speculates on something that was flushed: its entry may still be there.
    pub fn speculate_lost(&mut self, ram: &Ram) {
        if !self.lost.is_empty() {
            let va = *self.rng.pick(&self.lost);
            self.speculate(ram, va);
        }
    }

    /// Uses a kept leaf without consulting the tables: what any load in flight may do.
    pub fn use_any_leaf(&mut self, ram: &Ram) {
        if self.leaves.is_empty() {
            return;
        }
        let i = self.rng.below(self.leaves.len() as u64) as usize;
        let l = self.leaves[i];
        if self.usable(&l) {
            self.reach(ram, l, l.va);
        }
    }

    fn reach(&mut self, ram: &Ram, l: Leaf, va: u64) -> *mut u8 {
        let pfn = Pfn(l.pfn.0 + ((va - l.va) >> 12));
        if l.life.is_some_and(|life| !ram.alive(l.pfn, life)) {
            self.violate(format!(
                "{va:#x} of space {} reached frame {:#x} through a kept translation after it was freed",
                l.tag, l.pfn.0
            ));
        }
        // A translation to beyond RAM would be a device: mm maps none here.
        // SAFETY: `offset` stays within the frame.
        unsafe { ram.ptr(pfn).add((va & 0xfff) as usize) }
    }

    fn keep(&mut self, l: Leaf) {
        self.leaves
            .retain(|o| !((o.tag == l.tag || o.global) && o.shift == l.shift && o.va == l.va));
        if self.leaves.len() == LEAVES {
            let i = self.rng.below(LEAVES as u64) as usize;
            self.leaves.swap_remove(i);
        }
        self.leaves.push(l);
    }

    fn keep_upper(&mut self, u: Upper) {
        self.uppers
            .retain(|o| !(o.tag == u.tag && o.shift == u.shift && o.va == u.va));
        if self.uppers.len() == UPPERS {
            let i = self.rng.below(UPPERS as u64) as usize;
            self.uppers.swap_remove(i);
        }
        self.uppers.push(u);
    }

    /// Where to begin: the root, or a kept table nearer to the leaf.
    fn begin(&mut self, va: u64) -> (u32, Pfn, u32, Rights) {
        let root = (39, self.root, u32::MAX, Rights::ALL);
        if self.rng.one_in(8) {
            return root;
        }
        self.uppers
            .iter()
            .filter(|u| u.tag == self.tag && va >> u.shift == u.va >> u.shift)
            .min_by_key(|u| u.shift)
            .map_or(root, |u| (u.shift - 9, u.table, u.life, u.rights))
    }

    /// The walk, in steps of one entry. `shift` is that of the entries of the table being read.
    fn walk(&mut self, ram: &Ram, va: u64, want: Want, user: bool) -> Walked {
        let (mut shift, mut table, life, mut rights) = self.begin(va);
        let refuse = |present, key| {
            Walked::Fault(PageFault {
                va,
                want,
                present,
                key,
            })
        };
        let mut life = if life == u32::MAX {
            ram.life(table)
        } else {
            life
        };
        loop {
            if !ram.alive(table, life) {
                self.violate(format!(
                    "walk for {va:#x} of space {} read table frame {:#x} after it was freed",
                    self.tag, table.0
                ));
                return refuse(false, false);
            }
            let cell = ram.entry(table, (va >> shift) & 511);
            let seen = cell.load();
            if seen & P == 0 {
                return refuse(false, false);
            }
            rights = rights.and(seen);
            let pfn = Pfn((seen & ADDR) >> 12);
            if !ram.contains(pfn) {
                self.violate(format!(
                    "walk for {va:#x} of space {}: the entry {seen:#x} at level shift {shift} leads out of memory",
                    self.tag
                ));
                return refuse(false, false);
            }
            if shift == 12 || seen & PS != 0 {
                let ok = if user {
                    rights.allows(want)
                } else {
                    want != Want::Write || rights.write
                };
                let key = rights.key_refuses(self.pkru, want);
                if !ok || key {
                    return refuse(true, key);
                }
                let mark = A | if want == Want::Write { D } else { 0 };
                if seen & mark != mark && !cell.swap_if(seen, seen | mark) {
                    return Walked::Again;
                }
                let base = Pfn(pfn.0 & !((1 << (shift - 12)) - 1));
                return Walked::Leaf(Leaf {
                    tag: self.tag,
                    global: seen & G != 0,
                    va: va >> shift << shift,
                    shift,
                    pfn: base,
                    life: (seen & SPECIAL == 0).then(|| ram.life(base)),
                    rights,
                    dirty: (seen | mark) & D != 0,
                });
            }
            if seen & A == 0 && !cell.swap_if(seen, seen | A) {
                return Walked::Again;
            }
            life = ram.life(pfn);
            self.keep_upper(Upper {
                tag: self.tag,
                va: va >> shift << shift,
                shift,
                table: pfn,
                life,
                rights,
            });
            table = pfn;
            shift -= 9;
        }
    }

    /// Something usable that still leads to `pfn`, whose life ends now.
    pub fn still_reaches(&self, pfn: Pfn, frames: u64) -> Option<String> {
        let hit = |p: Pfn| (pfn.0..pfn.0 + frames).contains(&p.0);
        if let Some(l) = self.leaves.iter().find(|l| {
            let first = l.pfn.0;
            let last = first + (1 << (l.shift - 12));
            self.usable(l) && l.life.is_some() && first < pfn.0 + frames && pfn.0 < last
        }) {
            return Some(format!("leaf {:#x} of space {}", l.va, l.tag));
        }
        self.uppers
            .iter()
            .find(|u| u.tag == self.tag && hit(u.table))
            .map(|u| {
                format!(
                    "table for {:#x} (entries of 2^{}) of space {}",
                    u.va,
                    u.shift - 9,
                    u.tag
                )
            })
            .or_else(|| hit(self.root).then(|| format!("root of space {}", self.tag)))
    }

    /// Compares everything usable with the tables as they are, when nothing is in flight: a leaf may say
    /// less than its entry, never more or something else.
    pub fn stale(&self, ram: &Ram) -> Option<String> {
        for u in self.uppers.iter().filter(|u| u.tag == self.tag) {
            let mut table = self.root;
            let mut shift = 39;
            let mut rights = Rights::ALL;
            loop {
                let e = ram.entry(table, (u.va >> shift) & 511).load();
                rights = rights.and(e);
                let next = Pfn((e & ADDR) >> 12);
                if e & P == 0 || e & PS != 0 || !ram.contains(next) {
                    return Some(format!(
                        "space {}: a table for {:#x} (level shift {}) is kept, the entry is {e:#x}",
                        u.tag, u.va, u.shift
                    ));
                }
                table = next;
                if shift == u.shift {
                    break;
                }
                shift -= 9;
            }
            if table != u.table || (u.rights.write && !rights.write) {
                return Some(format!(
                    "space {}: the kept table for {:#x} is frame {:#x}, the entry leads to {:#x}",
                    u.tag, u.va, u.table.0, table.0
                ));
            }
        }
        for l in self.leaves.iter().filter(|l| self.usable(l)) {
            let now = self.peek(ram, l.va);
            let why = match now {
                None => Some("nothing is mapped there".to_string()),
                Some((pfn, rights, dirty)) => {
                    if pfn != l.pfn {
                        Some(format!("the entry leads to frame {:#x}", pfn.0))
                    } else if (l.rights.write && !rights.write)
                        || (l.rights.exec && !rights.exec)
                        || (l.rights.user && !rights.user)
                        || l.rights.key != rights.key
                    {
                        Some(format!("kept rights {:?}, entry's {rights:?}", l.rights))
                    } else if l.dirty && !dirty && l.rights.write {
                        Some("kept as dirty, the entry is clean".to_string())
                    } else {
                        None
                    }
                }
            };
            if let Some(why) = why {
                return Some(format!(
                    "space {}: {:#x} is kept with frame {:#x}, but {why}",
                    l.tag, l.va, l.pfn.0
                ));
            }
        }
        None
    }

    /// Whether the tables have memory for `va`, and not nothing, or a device that does not answer.
    pub fn answers(&self, ram: &Ram, va: u64) -> bool {
        self.peek(ram, va).is_some()
    }

    /// What the tables say of `va`, without marking or keeping anything.
    fn peek(&self, ram: &Ram, va: u64) -> Option<(Pfn, Rights, bool)> {
        let (mut table, mut shift, mut rights) = (self.root, 39, Rights::ALL);
        loop {
            let e = ram.entry(table, (va >> shift) & 511).load();
            let pfn = Pfn((e & ADDR) >> 12);
            if e & P == 0 || !ram.contains(pfn) {
                return None;
            }
            rights = rights.and(e);
            if shift == 12 || e & PS != 0 {
                return Some((pfn, rights, e & D != 0));
            }
            table = pfn;
            shift -= 9;
        }
    }

    /// A random number of this CPU's.
    pub fn random(&mut self, below: u64) -> u64 {
        self.rng.below(below)
    }
    /// How many leaves of the loaded space are kept.
    pub fn kept(&self) -> usize {
        self.leaves.iter().filter(|l| self.usable(l)).count()
    }
    /// An address of the loaded space that is kept, if any.
    pub fn any_kept(&mut self) -> Option<u64> {
        let mine: Vec<u64> = self
            .leaves
            .iter()
            .filter(|l| l.tag == self.tag && !l.global)
            .map(|l| l.va)
            .collect();
        (!mine.is_empty()).then(|| *self.rng.pick(&mine))
    }
}
