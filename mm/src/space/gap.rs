//! Gap search: the highest or lowest free range of a length, in O(log n) steps.
//!
//! The descent goes only into subtrees whose largest gap is long enough, in the order in which their gaps lie
//! (from the top or from the bottom), and past a gap only if the bounds cut it. The space above
//! the last node is nobody's gap and is looked at apart.
//!
//! Gaps begin in the order of the nodes, but need not end so: what a stack keeps free below itself may reach past
//! the gaps of its neighbours below. Hence the starts tell where to stop, the gaps' ends do not.

use super::{VmaTree, at, max_gap};
use core::sync::atomic::Ordering::Relaxed;

impl VmaTree {
    /// The highest start of `len` free bytes inside `low..high`. Under the mmap lock.
    pub fn gap_top_down(&self, len: u64, low: u64, high: u64) -> Option<u64> {
        let highest_start = high.checked_sub(len)?;
        let lowest_end = low.checked_add(len)?;
        if len == 0 || highest_start < low {
            return None;
        }
        if self
            .last()
            .is_none_or(|l| at(l.as_ptr()).end() <= highest_start)
        {
            return Some(highest_start);
        }
        let mut p = self.root.load(Relaxed);
        if max_gap(p) < len {
            return None;
        }
        loop {
            // Down: as far right as a gap can be that still begins low enough.
            let mut n = at(p);
            loop {
                let right = n.right.load(Relaxed);
                if n.gap_start() > highest_start || max_gap(right) < len {
                    break;
                }
                p = right;
                n = at(p);
            }
            // Here, then left, then up past the nodes whose right side was tried.
            loop {
                if n.start() < lowest_end {
                    return None;
                }
                let end = n.guarded_start();
                if end >= lowest_end && n.gap_start() <= highest_start && n.gap() >= len {
                    return Some(end.min(high) - len);
                }
                let left = n.left.load(Relaxed);
                if max_gap(left) >= len {
                    p = left;
                    break;
                }
                loop {
                    let child = p;
                    p = n.parent.load(Relaxed);
                    if p.is_null() {
                        return None;
                    }
                    n = at(p);
                    if n.right.load(Relaxed) == child {
                        break;
                    }
                }
            }
        }
    }

    /// The lowest start of `len` free bytes inside `low..high`. Under the mmap lock.
    pub fn gap_bottom_up(&self, len: u64, low: u64, high: u64) -> Option<u64> {
        let highest_start = high.checked_sub(len)?;
        let lowest_end = low.checked_add(len)?;
        if len == 0 || highest_start < low {
            return None;
        }
        let above = |last: u64| {
            let start = last.max(low);
            (start <= highest_start).then_some(start)
        };
        let Some(last) = self.last() else {
            return above(0);
        };
        let mut p = self.root.load(Relaxed);
        if max_gap(p) < len {
            return above(at(last.as_ptr()).end());
        }
        loop {
            // Down: as far left as a gap can be that still ends high enough.
            let mut n = at(p);
            loop {
                let left = n.left.load(Relaxed);
                if n.start() < lowest_end || max_gap(left) < len {
                    break;
                }
                p = left;
                n = at(p);
            }
            loop {
                let begin = n.gap_start();
                if begin > highest_start {
                    return None;
                }
                if n.guarded_start() >= lowest_end && n.gap() >= len {
                    return Some(begin.max(low));
                }
                let right = n.right.load(Relaxed);
                if max_gap(right) >= len {
                    p = right;
                    break;
                }
                loop {
                    let child = p;
                    p = n.parent.load(Relaxed);
                    if p.is_null() {
                        return above(at(last.as_ptr()).end());
                    }
                    n = at(p);
                    if n.left.load(Relaxed) == child {
                        break;
                    }
                }
            }
        }
    }
}
