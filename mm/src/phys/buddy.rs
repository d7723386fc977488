//! The frame allocator's lower half: free blocks of 2^n frames, a list for each order.
//!
//! A free block is known by its first frame: BUDDY set, order in the flags, linked by `prev`/`next`.
//! The flags of free frames are written under the zone's lock only. Blocks of different zones never merge.

use super::Hw;
use super::frame::flag;
use super::zone::Zone;
use crate::addr::{Order, Pfn};
use crate::sync::atomic::Ordering::Relaxed;

const ORDERS: usize = Order::MAX.get() as usize + 1;

/// Free lists of one zone; lives under the zone's lock.
pub(super) struct Buddy {
    heads: [u32; ORDERS],
    /// Orders with a block on the list.
    nonempty: u32,
    zone: Zone,
    pub(super) free: u64,
    pub(super) managed: u64,
}

impl Buddy {
    pub(super) const fn new(zone: Zone) -> Self {
        Self {
            heads: [0; ORDERS],
            nonempty: 0,
            zone,
            free: 0,
            managed: 0,
        }
    }

    fn fixed<H: Hw>(&self, hw: H, pfn: u64) -> u64 {
        hw.desc(Pfn(pfn)).flags.load(Relaxed) & flag::FIXED
    }

    fn link<H: Hw>(&mut self, hw: H, pfn: u64, order: u32) {
        let d = hw.desc(Pfn(pfn));
        let head = self.heads[order as usize];
        let fixed = self.fixed(hw, pfn);
        d.flags.store(
            fixed | flag::BUDDY | (order as u64) << flag::ORDER_SHIFT,
            Relaxed,
        );
        d.prev.store(0, Relaxed);
        d.next.store(head, Relaxed);
        if head != 0 {
            hw.desc(Pfn(head as u64)).prev.store(pfn as u32, Relaxed);
        }
        self.heads[order as usize] = pfn as u32;
        self.nonempty |= 1 << order;
    }

    fn unlink<H: Hw>(&mut self, hw: H, pfn: u64, order: u32) {
        let d = hw.desc(Pfn(pfn));
        let (prev, next) = (d.prev.load(Relaxed), d.next.load(Relaxed));
        if prev == 0 {
            self.heads[order as usize] = next;
            if next == 0 {
                self.nonempty &= !(1 << order);
            }
        } else {
            hw.desc(Pfn(prev as u64)).next.store(next, Relaxed);
        }
        if next != 0 {
            hw.desc(Pfn(next as u64)).prev.store(prev, Relaxed);
        }
        d.flags.store(self.fixed(hw, pfn), Relaxed);
    }

    /// A block of exactly `order`, split off a larger one if need be.
    pub(super) fn take<H: Hw>(&mut self, hw: H, order: Order) -> Option<Pfn> {
        let fit = self.nonempty >> order.get();
        if fit == 0 {
            return None;
        }
        let mut o = order.get() + fit.trailing_zeros();
        let pfn = self.heads[o as usize] as u64;
        self.unlink(hw, pfn, o);
        while o > order.get() {
            o -= 1;
            self.link(hw, pfn + (1 << o), o);
        }
        self.free -= order.pages();
        Some(Pfn(pfn))
    }

    /// The largest block of at most `most`, or of more if there is no smaller one: for filling caches.
    pub(super) fn take_up_to<H: Hw>(&mut self, hw: H, most: Order) -> Option<(Pfn, Order)> {
        let small = self.nonempty & ((2 << most.get()) - 1);
        let order = if self.nonempty >> most.get() != 0 {
            most
        } else if small != 0 {
            Order::new(31 - small.leading_zeros() as u8)?
        } else {
            return None;
        };
        Some((self.take(hw, order)?, order))
    }

    /// Takes a block back and merges it with its free buddies.
    pub(super) fn give<H: Hw>(&mut self, hw: H, pfn: Pfn, order: Order) {
        self.free += order.pages();
        let (mut pfn, mut o) = (pfn.0, order.get());
        while o < Order::MAX.get() {
            let buddy = pfn ^ (1 << o);
            if buddy >= hw.frames_end() {
                break;
            }
            let f = hw.desc(Pfn(buddy)).flags.load(Relaxed);
            let want = flag::MANAGED
                | flag::BUDDY
                | (o as u64) << flag::ORDER_SHIFT
                | (self.zone as u64) << flag::ZONE_SHIFT;
            if f & (flag::MANAGED | flag::BUDDY | flag::ORDER_MASK | flag::ZONE_MASK) != want {
                break;
            }
            self.unlink(hw, buddy, o);
            pfn &= buddy;
            o += 1;
        }
        self.link(hw, pfn, o);
    }
}
