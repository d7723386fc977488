//! A driver's memory in the model: windows onto bare frames, and areas of frames and pages side by side.

use super::{Back, Bytes, P, Page, World, opened, say, still_mapped};
use linux_raw_sys::general as sys;
use mm::addr::Order;
use mm::ops::insert::Shown;
use mm::ops::{self, MmapArgs};
use mm::phys::{Folio, FolioRef, Frame, Hw, Owned, Use};
use mm::sim::Machine;
use mm::table::Caching;
use mm::{Errno, FileObject, Pfn};

/// What drivers show: bare frames in a row, and pages of their own, whose numbers follow.
pub(super) struct Device {
    bare: Frame<Owned>,
    pages: Vec<FolioRef<Machine>>,
    pub(super) data: Vec<Bytes>,
}

impl Device {
    pub(super) const BARE: usize = 64;

    pub(super) fn new(sim: Machine) -> Self {
        let order = Order::new(6).unwrap();
        let frames = sim.phys().alloc_order(sim, order, Use::Kernel);
        let bare = frames.expect("memory");
        for n in 0..Self::BARE as u64 {
            let page = sim.frame_ptr(Pfn(bare.pfn().0 + n));
            // SAFETY: 4096 bytes of a frame that is nobody else's yet.
            unsafe { page.write_bytes(0, P as usize) };
        }
        let page = || {
            let frame = sim.phys().alloc(sim, Use::Kernel).expect("memory");
            Folio::make_large(sim, frame.zero(sim))
        };
        let pages: Vec<_> = (0..8).map(|_| page()).collect();
        let data = vec![[0; 4]; Self::BARE + pages.len()];
        Self { bare, pages, data }
    }
    fn first(&self) -> u64 {
        self.bare.pfn().0
    }
}

pub(super) fn in_window(m: &Page) -> bool {
    matches!(m.back, Back::Driver { window: true, .. })
}

impl World {
    pub(super) fn device(&self) -> &Device {
        self.device.as_ref().expect("not the end yet")
    }

    /// A driver's memory is mapped: a window, or frames and pages side by side.
    pub(super) fn op_driver(&mut self, c: usize, p: u32) {
        let page = self.any_page();
        let prot = self.any_prot();
        let (window, shared) = (self.rng.one_in(2), self.rng.one_in(2));
        let bare = Device::BARE as u64;
        let first = self.rng.below(bare);
        let most = if window { bare - first } else { 40 };
        let len = self.any_len(page).min(most);
        self.warm(p, page, len);
        let space = self.enter(c, p);
        let shows: Vec<Option<usize>> = (0..len)
            .map(|n| match (window, self.rng.below(4)) {
                (true, _) => Some((first + n) as usize),
                (_, 0) => None,
                _ => Some(self.rng.below(bare + 8) as usize),
            })
            .collect();
        say!(
            self,
            "cpu {c} proc {p}: driver's {:#x} +{len} prot {prot} window {window} shared {shared} {shows:?}",
            page * P
        );
        let device = self.device.take().expect("not the end yet");
        let (base, pgoff) = (device.first(), 3);
        let shown = |n: &Option<usize>| match *n {
            None => Shown::Hole,
            Some(n) if n < Device::BARE => Shown::Frame {
                pfn: Pfn(base + n as u64),
                caching: Caching::Back,
            },
            Some(n) => Shown::Page(&device.pages[n - Device::BARE], 0),
        };
        let all: Vec<_> = shows.iter().map(shown).collect();
        let sim = self.sim;
        let kind = if shared {
            sys::MAP_SHARED
        } else {
            sys::MAP_PRIVATE
        };
        let (r, starved) = self.attempt("driver", |w| {
            let args = MmapArgs {
                addr: page * P,
                len: len * P,
                prot,
                flags: kind | sys::MAP_FIXED,
                file: Some(opened(FileObject::new(sim).ok_or(Errno::ENOMEM)?, pgoff)),
            };
            match window {
                true => ops::mmap_raw(&space, w, args, Pfn(base + first), Caching::Back),
                false => ops::mmap_mixed(&space, w, args, &all),
            }
        });
        drop(all);
        self.device = Some(device);
        let pages = &mut self.procs.get_mut(&p).unwrap().pages;
        match r {
            Ok(at) if at == page * P => {
                let start = if window && !shared {
                    base + first
                } else {
                    pgoff
                };
                for (at, shows) in (0..).zip(shows) {
                    let back = Back::Driver {
                        window,
                        shows,
                        index: start + at,
                        shared,
                        copy: None,
                    };
                    pages.insert(page + at, Page::new(prot, back));
                }
            }
            // What was there may be gone by then.
            Err(Errno::ENOMEM) if starved => {
                let here = page..page + len;
                pages.retain(|at, _| !here.contains(at) || still_mapped(sim, &space, *at));
            }
            other => self.fail(&format!("a driver's memory: {other:?}")),
        }
        self.check_vmas(p);
        self.warm(p, page, len);
    }

    /// Nobody holds what it showed, and every entry was believed.
    pub(super) fn end_device(&mut self) {
        if let Some(device) = self.device.take() {
            let counts = device.pages.iter().map(|page| page.desc().ref_count());
            if counts.clone().any(|n| n != 1) {
                self.fail(&format!("references: {:?}", counts.collect::<Vec<_>>()));
            }
            self.sim.phys().free(self.sim, device.bare);
        }
        if self.sim.phys().bad_entries() != 0 {
            self.fail("an entry was not believed");
        }
    }
}
