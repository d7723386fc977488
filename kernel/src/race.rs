//! A program's hand on `mm::race`, in test kernels: `bug=N` on the command line plants BUG-N, and the file
//! `/sys/kernel/race` takes `arm POINT` and `release POINT`, and tells where threads stand. `entry ADDRESS BITS` puts a page
//! table entry that nobody made where the writer has none (PFN-8).
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use mm::Errno;
use mm::race::{Point, script};
use mm::table::{PtGuard, Pte};

use crate::arch::X86;
use crate::fs::pseudo::{Source, Text};
use crate::memory::cmdline;
use crate::task::current;
use crate::task::space::can_wait;

/// Plants what the command line asks for.
pub fn init() {
    if let Some(n) = cmdline("bug").and_then(|n| n.parse().ok()) {
        crate::info!("BUG-{n} is planted");
        script::plant(n);
    }
}

/// A number as C's `%#lx` writes it.
fn hex(word: &str) -> Result<u64, Errno> {
    let digits = word.strip_prefix("0x").ok_or(Errno::EINVAL)?;
    u64::from_str_radix(digits, 16).map_err(|_| Errno::EINVAL)
}

/// Makes an entry of the writer's, where it maps something (`EFAULT`) and has no entry (`EBUSY`).
fn plant_entry(va: u64, bits: u64) -> Result<(), Errno> {
    let space = current().space().ok_or(Errno::EFAULT)?;
    let guard = space.mmap_read(&mut can_wait());
    guard.find(va).ok_or(Errno::EFAULT)?;
    let mut table = space.tables.pte_table_alloc(va, &guard)?;
    let i = PtGuard::<X86>::index(va);
    if !table.get(i).is_empty() {
        return Err(Errno::EBUSY);
    }
    table.install(i, Pte(bits));
    Ok(())
}

/// The file.
pub struct Script;

impl Source for Script {
    fn make(&self, out: &mut Text) -> fmt::Result {
        for &at in Point::ALL {
            let stands = if script::standing(at) { "stands" } else { "-" };
            writeln!(out, "{} {stands}", at.name())?;
        }
        Ok(())
    }

    fn write(&self, text: &[u8]) -> Result<(), Errno> {
        let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let (verb, name) = text.trim().split_once(' ').ok_or(Errno::EINVAL)?;
        if verb == "entry" {
            let (va, bits) = name.split_once(' ').ok_or(Errno::EINVAL)?;
            return plant_entry(hex(va)?, hex(bits)?);
        }
        let at = Point::by_name(name).ok_or(Errno::EINVAL)?;
        match verb {
            "arm" => script::arm(at).then_some(()).ok_or(Errno::EBUSY),
            "release" => script::release(at).then_some(()).ok_or(Errno::ESRCH),
            _ => Err(Errno::EINVAL),
        }
    }
}
