//! Where things go on the first stack. Pure.

/// AT_PLATFORM's string.
pub const PLATFORM: &[u8] = b"x86_64\0";

/// Where everything goes, from the top of the stack downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The executable's path.
    pub execfn: u64,
    pub env_strings: u64,
    pub arg_strings: u64,
    pub platform: u64,
    pub random: u64,
    /// The first stack pointer: argc.
    pub sp: u64,
}

/// Sizes that determine the layout.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub argc: usize,
    pub envc: usize,
    pub arg_bytes: usize,
    pub env_bytes: usize,
    /// With NUL.
    pub execfn_bytes: usize,
    /// Pairs, AT_NULL included.
    pub auxv: usize,
}

/// Computes the layout below `top`; `None` if it does not fit above `bottom`.
pub fn layout(top: u64, bottom: u64, s: &Sizes) -> Option<Layout> {
    let mut at = top - 8;
    let mut take = |n: u64, align: u64| {
        at = at.checked_sub(n)? & !(align - 1);
        (at >= bottom).then_some(at)
    };
    let execfn = take(s.execfn_bytes as u64, 1)?;
    let env_strings = take(s.env_bytes as u64, 1)?;
    let arg_strings = take(s.arg_bytes as u64, 1)?;
    let platform = take(PLATFORM.len() as u64, 16)?;
    let random = take(16, 16)?;
    let words = 1 + (s.argc + 1) + (s.envc + 1) + 2 * s.auxv;
    let sp = take(words as u64 * 8, 16)?;
    Some(Layout {
        execfn,
        env_strings,
        arg_strings,
        platform,
        random,
        sp,
    })
}
