//! Writing the first stack: strings, vectors, auxv.

use mm::Errno;

use super::layout::{Layout, PLATFORM};
use crate::arch::uaccess::copy_to_user;

pub use linux_raw_sys::general::{
    AT_BASE, AT_CLKTCK, AT_EGID, AT_ENTRY, AT_EUID, AT_EXECFN, AT_FLAGS, AT_GID, AT_HWCAP,
    AT_HWCAP2, AT_MINSIGSTKSZ, AT_NULL, AT_PAGESZ, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PLATFORM,
    AT_RANDOM, AT_SECURE, AT_UID,
};

/// Writes words to consecutive addresses through a small buffer.
struct Words {
    at: u64,
    buf: [u64; 32],
    n: usize,
}

impl Words {
    fn put(&mut self, w: u64) -> Result<(), Errno> {
        self.buf[self.n] = w;
        self.n += 1;
        if self.n == self.buf.len() {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let bytes = self.n * 8;
        // SAFETY: integers as bytes, the part that was filled.
        let b = unsafe { core::slice::from_raw_parts(self.buf.as_ptr().cast::<u8>(), bytes) };
        copy_to_user(self.at, b)?;
        self.at += bytes as u64;
        self.n = 0;
        Ok(())
    }
}

/// Writes argc, argv, envp and auxv at `l.sp`, the platform string and the random bytes. The strings
/// are written by the caller.
pub fn write(
    l: &Layout,
    arg_lengths: &[u32],
    env_lengths: &[u32],
    auxv: &[(u64, u64)],
    random: &[u8; 16],
) -> Result<(), Errno> {
    copy_to_user(l.platform, PLATFORM)?;
    copy_to_user(l.random, random)?;
    let mut w = Words {
        at: l.sp,
        buf: [0; 32],
        n: 0,
    };
    w.put(arg_lengths.len() as u64)?;
    for (start, lengths) in [(l.arg_strings, arg_lengths), (l.env_strings, env_lengths)] {
        let mut at = start;
        for &n in lengths {
            w.put(at)?;
            at += n as u64;
        }
        w.put(0)?;
    }
    for &(tag, value) in auxv {
        w.put(tag)?;
        w.put(value)?;
    }
    w.flush()
}
