//! The archive that came with the kernel: `boot/*` is for the kernel, the rest is the root file system.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use bootloader_api::BootInfo;

static START: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static LEN: AtomicUsize = AtomicUsize::new(0);

pub(super) fn init(info: &BootInfo) {
    if let Some(at) = info.ramdisk_addr.into_option() {
        START.store(at as *mut u8, Ordering::Relaxed);
        LEN.store(info.ramdisk_len as usize, Ordering::Relaxed);
    }
}

/// The whole archive; empty without one.
pub fn ramdisk() -> &'static [u8] {
    let start = START.load(Ordering::Relaxed);
    if start.is_null() {
        return &[];
    }
    // SAFETY: the loader mapped it there and reported its frames as taken, so nobody writes to them.
    unsafe { core::slice::from_raw_parts(start, LEN.load(Ordering::Relaxed)) }
}

/// The bytes of an archive entry (newc), by its whole name.
pub fn boot_file(name: &str) -> Option<&'static [u8]> {
    let mut rest = ramdisk();
    loop {
        let header = rest.get(..110).filter(|h| h.starts_with(b"07070"))?;
        let field = |n: usize| {
            let text = core::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).ok()?;
            usize::from_str_radix(text, 16).ok()
        };
        let (size, name_len) = (field(6)?, field(11)?);
        let this = rest.get(110..110usize.checked_add(name_len)?.checked_sub(1)?)?;
        let data = (110 + name_len).next_multiple_of(4);
        let end = data.checked_add(size)?;
        if this == name.as_bytes() {
            return rest.get(data..end);
        }
        if this == b"TRAILER!!!" {
            return None;
        }
        rest = rest.get(end.next_multiple_of(4)..)?;
    }
}

/// Value of the word `key=value` on the command line.
pub fn cmdline(key: &str) -> Option<&'static str> {
    let text = core::str::from_utf8(boot_file("boot/cmdline")?).ok()?;
    text.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}
