//! Runs guest programs on the host's Linux: the oracle.

use crate::build::Result;
use crate::catalogue::{Kind, Program};
use rustix::io::FdFlags;
use std::collections::HashMap;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// A program's status where the machine lacks what the program is about: there is nothing to compare with.
pub const LACKING: u8 = 77;

/// What a program said (stdout and stderr together) and its status as a shell shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub output: Vec<u8>,
    pub status: u8,
}

/// Runs `program` here, once for the whole run; later callers get what it said then.
pub fn said(program: &Program) -> Result<Said> {
    static KNOWN: OnceLock<Mutex<HashMap<&'static str, Result<Said>>>> = OnceLock::new();
    // One at a time: they share names in /tmp.
    let mut known = KNOWN
        .get_or_init(Default::default)
        .lock()
        .unwrap_or_else(|poison| poison.into_inner());
    known
        .entry(program.name)
        .or_insert_with(|| run(program))
        .clone()
}

fn run(program: &Program) -> Result<Said> {
    let path = program.host_path();
    // Whoever runs tests under nohup or in a background job has signals ignored, and the program would inherit that.
    let mut command = Command::new("/usr/bin/env");
    command.arg("--default-signal");
    match program.kind {
        Kind::Script => {
            command.args(["busybox", "sh"]).arg(&path);
            command.env("PATH", busybox_links()?);
        }
        _ => {
            command.arg(&path).env_clear().env("PATH", "/bin:/usr/bin");
        }
    }
    for arg in program.args {
        // What an argument names in the guest is here in target/guest.
        match arg.strip_prefix("/tests/bin/") {
            Some(name) => command.arg(crate::guest_dir().join(name)),
            None => command.arg(arg),
        };
    }
    let output = crate::guest_dir().join(format!("{}.host", program.name));
    fs::write(&output, "").map_err(|error| format!("{}: {error}", output.display()))?;
    let status = command
        .env("HOME", "/root")
        .env("USER", "root")
        .env("TERM", "dumb")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(append(&output)?)
        .stderr(append(&output)?)
        .process_group(0)
        .status()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let status = status.code().unwrap_or(128 + status.signal().unwrap_or(0)) as u8;
    let output = fs::read(&output).map_err(|error| error.to_string())?;
    Ok(Said { output, status })
}

/// What our caller left open stays out of the programs that run here: they would number their own descriptors after it,
/// and the guest's start at 3.
pub fn keep_descriptors() {
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for number in numbers.filter(|number: &i32| *number > 2) {
        // SAFETY: borrowed for one fcntl only; a number that is closed by now answers EBADF.
        let open = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(open, FdFlags::CLOEXEC);
    }
}

/// Both streams append: processes that open nothing themselves must not overwrite each other.
fn append(path: &std::path::Path) -> Result<fs::File> {
    let file = fs::File::options().append(true).open(path);
    file.map_err(|error| error.to_string())
}

/// A directory in which every applet is a link to busybox, as in the guest.
fn busybox_links() -> Result<String> {
    let dir = crate::guest_dir().join("applets");
    let list = Command::new("busybox")
        .arg("--list")
        .output()
        .map_err(|error| format!("busybox: {error}"))?;
    fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    let busybox = Command::new("sh")
        .args(["-c", "command -v busybox"])
        .output()
        .map_err(|error| error.to_string())?;
    let busybox = String::from_utf8_lossy(&busybox.stdout).trim().to_string();
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        let _ = std::os::unix::fs::symlink(&busybox, dir.join(applet));
    }
    Ok(dir.display().to_string())
}
