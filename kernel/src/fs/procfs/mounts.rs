//! mounts and mountinfo: the mount table as the caller's root sees it.
#![forbid(unsafe_code)]

use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;
use linux_raw_sys::general as sys;

use super::super::attr::{major, minor};
use super::super::path::Path;
use super::super::pseudo::Text;
use super::super::{caller, mount};
use super::process::Target;

/// A path in a mount table: blanks and backslashes in octal.
fn escaped(out: &mut Text, text: &[u8]) -> fmt::Result {
    for &c in text {
        match c {
            b' ' | b'\t' | b'\n' | b'\\' => write!(out, "\\{c:03o}")?,
            _ => out.bytes(&[c])?,
        }
    }
    Ok(())
}

fn options(flags: u32) -> String {
    let mut s = String::from(if flags & sys::MS_RDONLY != 0 {
        "ro"
    } else {
        "rw"
    });
    for (bit, name) in [
        (sys::MS_NOSUID, ",nosuid"),
        (sys::MS_NODEV, ",nodev"),
        (sys::MS_NOEXEC, ",noexec"),
        (sys::MS_NOATIME, ",noatime"),
    ] {
        if flags & bit != 0 {
            s.push_str(name);
        }
    }
    s.push_str(if flags & sys::MS_NOATIME == 0 {
        ",relatime"
    } else {
        ""
    });
    s
}

pub fn mounts(_: &Target, out: &mut Text) -> fmt::Result {
    let root = caller::fs().root();
    for m in mount::all() {
        let top = Path {
            mnt: m.clone(),
            dentry: m.root.clone(),
        };
        let (at, reached) = top.text(&root);
        if !reached {
            continue;
        }
        escaped(out, m.source.as_bytes())?;
        out.bytes(b" ")?;
        escaped(out, &at)?;
        let flags = m.flags.load(Relaxed);
        writeln!(out, " {} {} 0 0", m.fstype, options(flags))?;
    }
    Ok(())
}

pub fn mountinfo(_: &Target, out: &mut Text) -> fmt::Result {
    let root = caller::fs().root();
    for m in mount::all() {
        let top = Path {
            mnt: m.clone(),
            dentry: m.root.clone(),
        };
        let (at, reached) = top.text(&root);
        if !reached {
            continue;
        }
        let dev = m.root.inode().attr().dev;
        let parent = m.at().map_or(m.id, |p| p.mnt.id);
        let (major, minor) = (major(dev), minor(dev));
        write!(out, "{} {parent} {major}:{minor} / ", m.id)?;
        escaped(out, &at)?;
        let flags = m.flags.load(Relaxed);
        write!(out, " {} - {} ", options(flags), m.fstype)?;
        escaped(out, m.source.as_bytes())?;
        writeln!(out, " {}", options(flags).get(..2).unwrap_or("rw"))?;
    }
    Ok(())
}
