//! A program's hand on `mm::race`, in test kernels: `bug=N` on the command line plants BUG-N, and the file
//! `/sys/kernel/race` takes `arm POINT` and `release POINT`, and tells where threads stand.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use mm::Errno;
use mm::race::{Point, script};

use crate::fs::pseudo::{Source, Text};
use crate::memory::cmdline;

/// Plants what the command line asks for.
pub fn init() {
    if let Some(n) = cmdline("bug").and_then(|n| n.parse().ok()) {
        crate::info!("BUG-{n} is planted");
        script::plant(n);
    }
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
        let at = Point::by_name(name).ok_or(Errno::EINVAL)?;
        match verb {
            "arm" => script::arm(at).then_some(()).ok_or(Errno::EBUSY),
            "release" => script::release(at).then_some(()).ok_or(Errno::ESRCH),
            _ => Err(Errno::EINVAL),
        }
    }
}
