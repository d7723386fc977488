//! The search for a free pid. Pure.

/// The first free pid after `last`, cyclic; pure.
pub fn next_free(last: u32, max: u32, reserved: u32, free: impl Fn(u32) -> bool) -> Option<u32> {
    let start = last + 1;
    (start..max)
        .chain(reserved.min(start)..start.min(max))
        .find(|&p| p != 0 && free(p))
}
