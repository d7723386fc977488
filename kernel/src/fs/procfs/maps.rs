//! maps and smaps: the VMAs of a process, and what is resident in each.
//!
//! The VMAs are walked under the mmap lock for reading, the entries of one page table at a time under its own lock.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use mm::hw::Cpu;
use mm::phys::flag;
use mm::space::{MmapReadGuard, Vma, VmaFlags};
use mm::table::PtGuard;

use super::super::attr::{major, minor};
use super::super::pseudo::Text;
use super::kpage::Page;
use super::process::Target;
use crate::arch::X86;
use crate::task::Space;
use crate::task::space::can_wait;
use crate::vsyscall;

type Guard<'a> = MmapReadGuard<'a, X86>;

fn space_of(target: &Target) -> Option<Arc<Space>> {
    target.process().ok()?.space()
}

/// Calls `f` for every VMA, in order.
fn each(target: &Target, mut f: impl FnMut(&Guard<'_>, &Vma<X86>) -> fmt::Result) -> fmt::Result {
    let Some(space) = space_of(target) else {
        return Ok(());
    };
    let mut wait = can_wait();
    let guard = space.mmap_read(&mut wait);
    let mut at = guard.find_from(0);
    while let Some(vma) = at {
        f(&guard, vma)?;
        at = guard.next(vma);
    }
    Ok(())
}

fn header(out: &mut Text, guard: &Guard<'_>, vma: &Vma<X86>) -> fmt::Result {
    let line = out.0.len();
    let flags = vma.flags();
    let letter = |f, c| if flags.contains(f) { c } else { '-' };
    write!(
        out,
        "{:08x}-{:08x} {}{}{}{} ",
        vma.start(),
        vma.end(),
        letter(VmaFlags::READ, 'r'),
        letter(VmaFlags::WRITE, 'w'),
        letter(VmaFlags::EXEC, 'x'),
        if flags.contains(VmaFlags::MAYSHARE) {
            's'
        } else {
            'p'
        },
    )?;
    let label = vma.object().map(|o| o.label());
    let (offset, dev, ino) = label
        .as_ref()
        .map_or((0, 0, 0), |l| (vma.pgoff() << 12, l.dev, l.ino));
    write!(
        out,
        "{offset:08x} {:02x}:{:02x} {ino} ",
        major(dev),
        minor(dev)
    )?;
    let path = label.and_then(|l| l.path);
    let name = match &path {
        Some(p) => Some(&**p),
        None => special_name(guard, vma),
    };
    if let Some(name) = name {
        pad(out, line)?;
        for c in name.chars() {
            match c {
                '\n' => out.write_str("\\012")?,
                c => out.write_char(c)?,
            }
        }
    }
    writeln!(out)
}

/// Names begin in column 73 of the line that began at `line`.
fn pad(out: &mut Text, line: usize) -> fmt::Result {
    while out.0.len() - line < 73 {
        out.bytes(b" ")?;
    }
    Ok(())
}

fn special_name(guard: &Guard<'_>, vma: &Vma<X86>) -> Option<&'static str> {
    if vma.object().is_some() {
        return Some("/dev/zero (deleted)");
    }
    let layout = &guard.space().layout;
    let (start_brk, brk) = (layout.start_brk.load(Relaxed), layout.brk.load(Relaxed));
    if vma.start() < brk && vma.end() > start_brk {
        return Some("[heap]");
    }
    let stack = layout.start_stack.load(Relaxed);
    if vma.flags().contains(VmaFlags::STACK) || vma.start() <= stack && stack <= vma.end() {
        return Some("[stack]");
    }
    None
}

pub fn maps(target: &Target, out: &mut Text) -> fmt::Result {
    each(target, |guard, vma| header(out, guard, vma))?;
    gate(target, out)
}

/// The gate page, which is no VMA.
fn gate(target: &Target, out: &mut Text) -> fmt::Result {
    let (Some(readable), Some(_)) = (vsyscall::mode(), space_of(target)) else {
        return Ok(());
    };
    let (line, start) = (out.0.len(), vsyscall::PAGE);
    let r = if readable { 'r' } else { '-' };
    write!(
        out,
        "{start:x}-{:x} {r}-xp {:08x} 00:00 0 ",
        start + 4096,
        0
    )?;
    pad(out, line)?;
    writeln!(out, "[vsyscall]")
}

/// Bytes of a VMA by what they are.
#[derive(Default, Clone, Copy)]
struct Tally {
    size: u64,
    rss: u64,
    /// In 1/4096 bytes.
    pss: u64,
    pss_dirty: u64,
    pss_anon: u64,
    pss_file: u64,
    pss_shmem: u64,
    shared_clean: u64,
    shared_dirty: u64,
    private_clean: u64,
    private_dirty: u64,
    referenced: u64,
    anonymous: u64,
    lazy_free: u64,
    locked: u64,
}

fn tally(guard: &Guard<'_>, vma: &Vma<X86>) -> Tally {
    let mut t = Tally {
        size: vma.end() - vma.start(),
        ..Tally::default()
    };
    let mut va = vma.start();
    while va < vma.end() {
        let next = ((va | 0x1f_ffff) + 1).min(vma.end());
        if let Some(table) = guard.space().tables.pte_table(va, guard) {
            for page in (va..next).step_by(4096) {
                t.count(&table, page);
            }
        }
        va = next;
    }
    if vma.flags().contains(VmaFlags::LOCKED) {
        t.locked = t.pss;
    }
    t
}

impl Tally {
    fn count(&mut self, table: &PtGuard<X86>, va: u64) {
        const PAGE: u64 = 4096;
        let pte = table.get(PtGuard::<X86>::index(va));
        if pte.folio(X86).is_none() {
            return;
        }
        let page = Page::of(pte.pfn());
        let mappers = page.mappings().max(1);
        let dirty = pte.dirty() || page.has(flag::DIRTY);
        let share = PAGE * 4096 / mappers;
        self.rss += PAGE;
        self.pss += share;
        if dirty {
            self.pss_dirty += share;
        }
        if page.is_anon() {
            self.anonymous += PAGE;
            self.pss_anon += share;
            if !dirty && !page.has(flag::SWAPBACKED) {
                self.lazy_free += PAGE;
            }
        } else if page.has(flag::SWAPBACKED) {
            self.pss_shmem += share;
        } else {
            self.pss_file += share;
        }
        let kind = match (mappers > 1, dirty) {
            (true, false) => &mut self.shared_clean,
            (true, true) => &mut self.shared_dirty,
            (false, false) => &mut self.private_clean,
            (false, true) => &mut self.private_dirty,
        };
        *kind += PAGE;
        if pte.young() || page.has(flag::REFERENCED) {
            self.referenced += PAGE;
        }
    }

    fn add(&mut self, o: &Tally) {
        self.size += o.size;
        self.rss += o.rss;
        self.pss += o.pss;
        self.pss_dirty += o.pss_dirty;
        self.pss_anon += o.pss_anon;
        self.pss_file += o.pss_file;
        self.pss_shmem += o.pss_shmem;
        self.shared_clean += o.shared_clean;
        self.shared_dirty += o.shared_dirty;
        self.private_clean += o.private_clean;
        self.private_dirty += o.private_dirty;
        self.referenced += o.referenced;
        self.anonymous += o.anonymous;
        self.lazy_free += o.lazy_free;
        self.locked += o.locked;
    }

    /// Linux's lines; `rollup` has those by kind, and no sizes.
    fn rows(&self, out: &mut Text, rollup: bool) -> fmt::Result {
        let mut row =
            |name: &str, kib: u64| writeln!(out, "{:<16}{kib:8} kB", alloc::format!("{name}:"));
        if !rollup {
            row("Size", self.size >> 10)?;
            row("KernelPageSize", 4)?;
            row("MMUPageSize", 4)?;
        }
        row("Rss", self.rss >> 10)?;
        row("Pss", self.pss >> 22)?;
        row("Pss_Dirty", self.pss_dirty >> 22)?;
        if rollup {
            row("Pss_Anon", self.pss_anon >> 22)?;
            row("Pss_File", self.pss_file >> 22)?;
            row("Pss_Shmem", self.pss_shmem >> 22)?;
        }
        row("Shared_Clean", self.shared_clean >> 10)?;
        row("Shared_Dirty", self.shared_dirty >> 10)?;
        row("Private_Clean", self.private_clean >> 10)?;
        row("Private_Dirty", self.private_dirty >> 10)?;
        row("Referenced", self.referenced >> 10)?;
        row("Anonymous", self.anonymous >> 10)?;
        row("KSM", 0)?;
        row("LazyFree", self.lazy_free >> 10)?;
        // No page is larger than a page, and none is swapped out.
        for name in [
            "AnonHugePages",
            "ShmemPmdMapped",
            "FilePmdMapped",
            "Shared_Hugetlb",
            "Private_Hugetlb",
            "Swap",
            "SwapPss",
        ] {
            row(name, 0)?;
        }
        row("Locked", self.locked >> 22)
    }
}

/// In the order of their bits.
const LETTERS: [(VmaFlags, &str); 27] = [
    (VmaFlags::READ, "rd"),
    (VmaFlags::WRITE, "wr"),
    (VmaFlags::EXEC, "ex"),
    (VmaFlags::SHARED, "sh"),
    (VmaFlags::MAYREAD, "mr"),
    (VmaFlags::MAYWRITE, "mw"),
    (VmaFlags::MAYEXEC, "me"),
    (VmaFlags::MAYSHARE, "ms"),
    (VmaFlags::GROWSDOWN, "gd"),
    (VmaFlags::PFNMAP, "pf"),
    (VmaFlags::LOCKED, "lo"),
    (VmaFlags::IO, "io"),
    (VmaFlags::SEQ_READ, "sr"),
    (VmaFlags::RAND_READ, "rr"),
    (VmaFlags::DONTCOPY, "dc"),
    (VmaFlags::DONTEXPAND, "de"),
    (VmaFlags::LOCKONFAULT, "lf"),
    (VmaFlags::ACCOUNT, "ac"),
    (VmaFlags::NORESERVE, "nr"),
    (VmaFlags::HUGETLB, "ht"),
    (VmaFlags::WIPEONFORK, "wf"),
    (VmaFlags::DONTDUMP, "dd"),
    (VmaFlags::SOFTDIRTY, "sd"),
    (VmaFlags::MIXEDMAP, "mm"),
    (VmaFlags::HUGEPAGE, "hg"),
    (VmaFlags::NOHUGEPAGE, "nh"),
    (VmaFlags::SHADOW_STACK, "ss"),
];

pub fn smaps(target: &Target, out: &mut Text) -> fmt::Result {
    each(target, |guard, vma| {
        header(out, guard, vma)?;
        tally(guard, vma).rows(out, false)?;
        writeln!(out, "{:<16}{:8}", "THPeligible:", 0)?;
        if X86.has_pkeys() {
            writeln!(out, "{:<16}{:8}", "ProtectionKey:", vma.flags().key())?;
        }
        write!(out, "VmFlags: ")?;
        for (flag, letters) in LETTERS {
            if vma.flags().contains(flag) {
                write!(out, "{letters} ")?;
            }
        }
        writeln!(out)
    })?;
    let before = out.0.len();
    gate(target, out)?;
    if out.0.len() != before {
        let one = Tally {
            size: 4096,
            ..Tally::default()
        };
        one.rows(out, false)?;
        writeln!(out, "{:<16}{:8}", "THPeligible:", 0)?;
        if X86.has_pkeys() {
            writeln!(out, "{:<16}{:8}", "ProtectionKey:", 0)?;
        }
        let read = vsyscall::mode() == Some(true);
        writeln!(out, "VmFlags: {}ex ", if read { "rd " } else { "" })?;
    }
    Ok(())
}

pub fn smaps_rollup(target: &Target, out: &mut Text) -> fmt::Result {
    let mut sum = Tally::default();
    let mut span = (u64::MAX, 0);
    each(target, |guard, vma| {
        sum.add(&tally(guard, vma));
        span = (span.0.min(vma.start()), vma.end());
        Ok(())
    })?;
    let start = span.0.min(span.1);
    let line = out.0.len();
    write!(out, "{start:08x}-{:08x} ---p 00000000 00:00 0 ", span.1)?;
    pad(out, line)?;
    writeln!(out, "[rollup]")?;
    sum.rows(out, true)
}
