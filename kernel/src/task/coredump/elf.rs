//! The ELF core file: its notes and its segments.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use mm::ops::coredump;
use mm::space::VmaFlags;

use super::super::ptrace::regs;
use super::super::signal::{SigInfo, UNBLOCKABLE};
use super::super::space::can_wait;
use super::super::thread::Thread;
use super::super::time::Timeval;
use super::super::{Space, acct};
use super::{Out, is_dumper};
use crate::arch::TrapFrame;
use crate::arch::fpu::FpuState;
use crate::arch::frame::FRAME_WORDS;
use linux_raw_sys::elf_uapi as elf;

const PAGE: u64 = 4096;
const EHDR: usize = 64;
const PHDR: usize = 56;
/// Names of mapped files beyond this are left out, as on Linux.
const FILES_MAX: usize = 4 << 20;
/// More segments than a header can count.
const SEGMENTS_MAX: usize = 0xfffe;

/// Bits of `coredump_filter`.
const ANON_PRIVATE: u32 = 1;
const ANON_SHARED: u32 = 1 << 1;
const MAPPED_PRIVATE: u32 = 1 << 2;
const MAPPED_SHARED: u32 = 1 << 3;
const ELF_HEADERS: u32 = 1 << 4;

/// A mapping as it was when the writing began.
struct Segment {
    start: u64,
    end: u64,
    flags: VmaFlags,
    pgoff: u64,
    path: Option<alloc::sync::Arc<str>>,
    /// Bytes from the start that the file holds.
    size: u64,
    /// Provided that an ELF header stands there.
    if_elf: bool,
}

/// Writes it all, as far as the limit lets; `None` when that or SIGKILL ended it.
pub(super) fn write(
    me: &Thread,
    frame: &mut TrapFrame,
    info: &SigInfo,
    out: &mut Out,
) -> Option<()> {
    let space = me.space()?.clone();
    let mut segments = segments(me, &space)?;
    let mut scratch = Vec::new();
    scratch.try_reserve_exact(PAGE as usize).ok()?;
    scratch.resize(PAGE as usize, 0);
    for s in segments.iter_mut().filter(|s| s.if_elf) {
        // Only its first page, and only if that is an ELF header's.
        let mut magic = [0; 4];
        let there = coredump::page(&space, &mut can_wait(), s.start, &mut magic);
        if !(there && magic == *b"\x7fELF") {
            s.size = 0;
        }
    }
    let notes = notes(me, frame, info, &space, &segments)?;
    let mut head = Vec::new();
    let count = segments.len() + 1;
    head.try_reserve_exact(EHDR + PHDR * count).ok()?;
    header(&mut head, count as u16);
    let mut offset = (EHDR + PHDR * count) as u64;
    program(
        &mut head,
        elf::PT_NOTE,
        0,
        [offset, 0, notes.len() as u64, 0],
        4,
    );
    offset = (offset + notes.len() as u64).next_multiple_of(PAGE);
    let data = offset;
    for s in &segments {
        let bit = |flag, to: u32| if s.flags.contains(flag) { to } else { 0 };
        let flags = bit(VmaFlags::READ, elf::PF_R)
            | bit(VmaFlags::WRITE, elf::PF_W)
            | bit(VmaFlags::EXEC, elf::PF_X);
        let places = [offset, s.start, s.size, s.end - s.start];
        program(&mut head, elf::PT_LOAD, flags, places, PAGE);
        offset = offset.checked_add(s.size)?;
    }
    out.put(&head)?;
    out.put(&notes)?;
    out.skip(data - out.at)?;
    for s in &segments {
        let (mut at, end) = (s.start, s.start + s.size);
        while at < end {
            if super::super::fatal_signal_pending() {
                return None;
            }
            let next = coredump::next(&space, &mut can_wait(), at, end);
            out.skip(next - at)?;
            at = next;
            if at == end {
                break;
            }
            if coredump::page(&space, &mut can_wait(), at, &mut scratch) {
                out.put(&scratch)?;
            } else {
                out.skip(PAGE)?;
            }
            at += PAGE;
            super::super::cond_resched();
        }
    }
    Some(())
}

/// The mappings, and how much of each is wanted.
fn segments(me: &Thread, space: &Space) -> Option<Vec<Segment>> {
    let filter = me.process.core_filter.load(Ordering::Relaxed);
    let mut all: Vec<Segment> = Vec::new();
    let mut wait = can_wait();
    let guard = space.mmap_read(&mut wait);
    let mut at = guard.find_from(0);
    while let Some(vma) = at {
        let (start, end, flags) = (vma.start(), vma.end(), vma.flags());
        let path = vma.object().and_then(|o| o.label().path);
        let whole = end - start;
        let has = |bit: u32, size: u64| if filter & bit != 0 { size } else { 0 };
        let mut if_elf = false;
        let size = if flags.intersects(VmaFlags::DONTDUMP | VmaFlags::IO) {
            0
        } else if flags.contains(VmaFlags::SHARED) {
            has(
                if path.is_some() {
                    MAPPED_SHARED
                } else {
                    ANON_SHARED
                },
                whole,
            )
        } else if vma.family().is_some() && filter & ANON_PRIVATE != 0 {
            whole
        } else if vma.object().is_none() {
            0
        } else if filter & MAPPED_PRIVATE != 0 {
            whole
        } else if vma.pgoff() == 0 && flags.contains(VmaFlags::READ) {
            if_elf = true;
            has(ELF_HEADERS, PAGE)
        } else {
            0
        };
        if all.len() >= SEGMENTS_MAX {
            return None;
        }
        all.try_reserve(1).ok()?;
        all.push(Segment {
            start,
            end,
            flags,
            pgoff: vma.pgoff(),
            path,
            size,
            if_elf,
        });
        at = guard.next(vma);
    }
    Some(all)
}

fn header(to: &mut Vec<u8>, count: u16) {
    to.extend_from_slice(b"\x7fELF\x02\x01\x01");
    to.resize(16, 0);
    to.extend_from_slice(&(elf::ET_CORE as u16).to_le_bytes());
    to.extend_from_slice(&(elf::EM_X86_64 as u16).to_le_bytes());
    to.extend_from_slice(&1u32.to_le_bytes());
    for word in [0, EHDR as u64, 0] {
        to.extend_from_slice(&word.to_le_bytes());
    }
    to.extend_from_slice(&0u32.to_le_bytes());
    for half in [EHDR as u16, PHDR as u16, count, 0, 0, 0] {
        to.extend_from_slice(&half.to_le_bytes());
    }
}

/// A program header; `places` are file offset, address, size in the file and in memory.
fn program(to: &mut Vec<u8>, kind: u32, flags: u32, places: [u64; 4], align: u64) {
    to.extend_from_slice(&kind.to_le_bytes());
    to.extend_from_slice(&flags.to_le_bytes());
    let [offset, va, size, memory] = places;
    for word in [offset, va, 0, size, memory, align] {
        to.extend_from_slice(&word.to_le_bytes());
    }
}

/// Notes in the making.
struct Notes(Vec<u8>);

impl Notes {
    fn add(&mut self, name: &[u8], kind: u32, body: &[u8]) -> Option<()> {
        let (name_len, len) = (
            name.len().next_multiple_of(4),
            body.len().next_multiple_of(4),
        );
        self.0.try_reserve(12 + name_len + len).ok()?;
        for word in [name.len() as u32, body.len() as u32, kind] {
            self.0.extend_from_slice(&word.to_le_bytes());
        }
        for (bytes, padded) in [(name, name_len), (body, len)] {
            let end = self.0.len() + padded;
            self.0.extend_from_slice(bytes);
            self.0.resize(end, 0);
        }
        Some(())
    }
}

const CORE: &[u8] = b"CORE\0";
const LINUX: &[u8] = b"LINUX\0";

/// The dumping thread's notes with the process's among them, then each other thread's.
fn notes(
    me: &Thread,
    frame: &mut TrapFrame,
    info: &SigInfo,
    space: &Space,
    segments: &[Segment],
) -> Option<Vec<u8>> {
    let mut notes = Notes(Vec::new());
    let mut area = Vec::new();
    area.try_reserve_exact(FpuState::size()).ok()?;
    area.resize(FpuState::size(), 0);
    notes.add(CORE, elf::NT_PRSTATUS, &status(me, Some(frame), info)?)?;
    notes.add(CORE, elf::NT_PRPSINFO, &info_of(me, space))?;
    notes.add(CORE, elf::NT_SIGINFO, &info.bytes())?;
    let auxv = *space.auxv.lock();
    let pairs = auxv.chunks_exact(2).position(|p| p[0] == 0).unwrap_or(0) + 1;
    let mut bytes = [0; super::super::space::AUXV_WORDS * 8];
    for (to, word) in bytes.chunks_exact_mut(8).zip(auxv) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    notes.add(CORE, elf::NT_AUXV, &bytes[..pairs * 16])?;
    if let Some(files) = files(segments) {
        notes.add(CORE, elf::NT_FILE, &files)?;
    }
    floats(&mut notes, me, &mut area)?;
    for t in me.process.threads() {
        if is_dumper(&t) {
            continue;
        }
        notes.add(CORE, elf::NT_PRSTATUS, &status(&t, None, info)?)?;
        floats(&mut notes, &t, &mut area)?;
    }
    Some(notes.0)
}

fn floats(notes: &mut Notes, t: &Thread, area: &mut [u8]) -> Option<()> {
    if is_dumper(t) {
        super::super::switch::with_fpu(|_| ((), false))?;
    }
    regs::show(t, area).ok()?;
    notes.add(CORE, elf::NT_PRFPREG, &area[..regs::FPREGS])?;
    if area.len() > regs::FPREGS {
        notes.add(LINUX, elf::NT_X86_XSTATE, area)?;
    }
    Some(())
}

/// `struct elf_prstatus`: a thread's signal, ids, times and registers.
fn status(t: &Thread, frame: Option<&TrapFrame>, info: &SigInfo) -> Option<[u8; 336]> {
    let p = &*t.process;
    let mut b = [0u8; 336];
    let mut put = |at: usize, v: &[u8]| b[at..at + v.len()].copy_from_slice(v);
    put(0, &info.signo().to_le_bytes());
    put(12, &(info.signo() as u16).to_le_bytes());
    let pending = {
        let _s = p.sig.lock();
        // SAFETY: the signal lock is held.
        unsafe { t.pending.get() }.set
    };
    put(16, &pending.to_le_bytes());
    let held = t.blocked.load(Ordering::Relaxed) & !UNBLOCKABLE;
    put(24, &held.to_le_bytes());
    for (i, id) in [t.tid(), p.ppid(), p.pgid(), p.sid()]
        .into_iter()
        .enumerate()
    {
        put(32 + 4 * i, &id.to_le_bytes());
    }
    let (own, children) = (acct::of_thread(t), p.children_usage());
    let times = [
        own.user_ns,
        own.system_ns,
        children.user_ns,
        children.system_ns,
    ];
    for (i, ns) in times.into_iter().enumerate() {
        let time = Timeval::from_ns(ns);
        put(48 + 16 * i, &time.sec.to_le_bytes());
        put(56 + 16 * i, &time.usec.to_le_bytes());
    }
    let frame = match frame {
        Some(frame) => *frame,
        None => {
            let at = t.user_regs.load(Ordering::Relaxed);
            // SAFETY: the other thread has parked: what it noted lies at the top of its stack.
            *unsafe { at.as_ref() }?
        }
    };
    let mut words = [0u64; regs::REGS];
    words[..FRAME_WORDS].copy_from_slice(frame.words());
    let bases = if is_dumper(t) {
        (crate::arch::fs_base(), crate::arch::user_gs_base())
    } else {
        // SAFETY: it has parked, and left its CPU since, which saved these.
        unsafe { ((*t.private.ptr()).fs_base, (*t.private.ptr()).gs_base) }
    };
    (words[FRAME_WORDS], words[FRAME_WORDS + 1]) = bases;
    for (i, word) in words.into_iter().enumerate() {
        put(112 + 8 * i, &word.to_le_bytes());
    }
    put(328, &1u32.to_le_bytes());
    Some(b)
}

/// `struct elf_prpsinfo`: the process by name.
fn info_of(me: &Thread, space: &Space) -> [u8; 136] {
    let p = &*me.process;
    let creds = p.creds();
    let mut b = [0u8; 136];
    b[1] = b'R';
    b[3] = p.nice.load(Ordering::Relaxed) as u8;
    let ids = [creds.uid, creds.gid, p.pid, p.ppid(), p.pgid(), p.sid()];
    for (i, id) in ids.into_iter().enumerate() {
        b[16 + 4 * i..20 + 4 * i].copy_from_slice(&id.to_le_bytes());
    }
    b[40..56].copy_from_slice(&*me.comm.lock());
    let start = space.layout.arg_start.load(Ordering::Relaxed);
    let len = space
        .layout
        .arg_end
        .load(Ordering::Relaxed)
        .saturating_sub(start)
        .min(79) as usize;
    let args = &mut b[56..56 + len];
    let got = space.peek(start, args).unwrap_or(0);
    args[got..].fill(0);
    for byte in args.iter_mut().filter(|byte| **byte == 0) {
        *byte = b' ';
    }
    b
}

/// `NT_FILE`: which file is mapped where.
fn files(segments: &[Segment]) -> Option<Vec<u8>> {
    let mapped = || {
        segments
            .iter()
            .filter_map(|s| Some((s, s.path.as_deref()?)))
    };
    let (count, names) = mapped().fold((0, 0), |(n, len), (_, path)| (n + 1, len + path.len() + 1));
    if count == 0 || names > FILES_MAX {
        return None;
    }
    let mut b = Vec::new();
    b.try_reserve_exact(16 + 24 * count + names).ok()?;
    let mut word = |v: u64| b.extend_from_slice(&v.to_le_bytes());
    word(count as u64);
    word(PAGE);
    for (s, _) in mapped() {
        word(s.start);
        word(s.end);
        word(s.pgoff);
    }
    for (_, path) in mapped() {
        b.extend_from_slice(path.as_bytes());
        b.push(0);
    }
    Some(b)
}
