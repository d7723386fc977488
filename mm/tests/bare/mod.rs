//! Bare frames in a process, and the entries that show them.
#![allow(dead_code, reason = "each test uses its part")]

use crate::common::P;
use crate::lab::{self, Lab, Space};
use linux_raw_sys::general as sys;
use mm::object::FileObject;
use mm::ops::insert::Shown;
use mm::ops::{self, MmapArgs};
use mm::phys::{Folio, FolioRef, Frame, Hw, Owned, Use};
use mm::sim::Machine;
use mm::table::{Caching, PtGuard, Pte};
use mm::{Errno, Pfn};

/// Past the machine's memory: a device that does not answer.
pub const NOWHERE: u64 = 1 << 30;

pub fn args(lab: &Lab, at: u64, pages: u64, prot: u32, flags: u32) -> MmapArgs<Machine> {
    let object = FileObject::new(lab.sim).unwrap();
    lab::map_args(at, pages, prot, flags, Some(object))
}

pub fn map_at(
    lab: &Lab,
    s: Space,
    at: u64,
    pages: u64,
    prot: u32,
    flags: u32,
    first: Pfn,
) -> Result<u64, Errno> {
    let args = args(lab, at, pages, prot, flags);
    ops::mmap_raw(s, &mut lab.sim.can_wait(), args, first, Caching::Back)
}

pub fn map(lab: &Lab, s: Space, pages: u64, prot: u32, flags: u32, first: Pfn) -> u64 {
    map_at(lab, s, 0, pages, prot, flags, first).unwrap()
}

/// Frames in a row that are nobody's, each beginning with `byte` and its number.
pub fn frames(lab: &Lab, byte: u8) -> Frame<Owned> {
    let order = mm::addr::Order::new(2).unwrap();
    let frames = lab
        .sim
        .phys()
        .alloc_order(lab.sim, order, Use::Movable)
        .unwrap();
    for i in 0..4 {
        lab.poke(Pfn(frames.pfn().0 + i), byte + i as u8);
    }
    frames
}

/// Frees them, and nothing is left.
pub fn done_with(lab: Lab, f: Frame<Owned>) {
    lab.sim.phys().free(lab.sim, f);
    lab.done();
}

/// Puts `e` where nothing is, or in place of what is there, which stays uncounted as it was.
pub fn plant_entry(lab: &Lab, s: Space, va: u64, e: Pte) {
    let guard = s.mmap_read(&mut lab.sim.can_wait());
    let mut pt = s.tables.pte_table_alloc(va, &guard).unwrap();
    let i = PtGuard::<Machine>::index(va);
    pt.take(i);
    pt.install(i, e);
}

pub fn refs(lab: &Lab, first: Pfn) -> Vec<(i32, i32)> {
    (0..4)
        .map(|i| {
            let d = lab.sim.desc(Pfn(first.0 + i));
            (d.ref_count(), d.map_count())
        })
        .collect()
}

pub fn mixed_at(
    lab: &Lab,
    s: Space,
    at: u64,
    pages: u64,
    prot: u32,
    flags: u32,
    shown: &[Shown<'_, Machine>],
) -> Result<u64, Errno> {
    let args = args(lab, at, pages, prot, flags);
    ops::mmap_mixed(s, &mut lab.sim.can_wait(), args, shown)
}

pub fn mixed(
    lab: &Lab,
    s: Space,
    pages: u64,
    prot: u32,
    flags: u32,
    shown: &[Shown<'_, Machine>],
) -> u64 {
    mixed_at(lab, s, 0, pages, prot, flags, shown).unwrap()
}

/// A page of a driver's.
pub fn ring(lab: &Lab, byte: u8) -> FolioRef<Machine> {
    let frame = lab.sim.phys().alloc(lab.sim, Use::Kernel).unwrap();
    let folio = Folio::make_large(lab.sim, frame.zero(lab.sim));
    lab.poke(folio.pfn(), byte);
    folio
}

/// Frame `n` of those, to be shown.
pub fn bare<'a>(f: &Frame<Owned>, n: u64) -> Shown<'a, Machine> {
    Shown::Frame {
        pfn: Pfn(f.pfn().0 + n),
        caching: Caching::Back,
    }
}

/// Moves one page; returns `to`.
pub fn move_page(lab: &Lab, s: Space, from: u64, to: u64) -> u64 {
    let moved = ops::MremapArgs {
        addr: from,
        old_len: P,
        new_len: P,
        flags: sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
        new_addr: to,
    };
    ops::mremap(s, &mut lab.sim.can_wait(), moved).unwrap()
}
