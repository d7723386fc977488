//! The launcher: builds the archive, starts QEMU, streams what the guest says, and turns its end into an exit status.
//!
//! ```no_run
//! let config = launcher::Config {
//!     argv: vec!["/bin/echo".into(), "hello".into()],
//!     ..launcher::Config::new("target/x86_64-unknown-none/release/pinfold", launcher::Mode::Exec)
//! };
//! let outcome = launcher::run(&config).unwrap();
//! assert_eq!((outcome.status, &outcome.stdout[..]), (0, &b"hello\n"[..]));
//! ```
//!
//! The initrd is a newc archive: `boot/kernel` (found there by the loader), `boot/cmdline`, `boot/argv`, `boot/env`
//! (found there by the kernel), then the root file system (`rootfs`). COM1 is the console: QEMU's stdin and stdout.
//! COM2 is QEMU's stderr: kernel log lines, and the record `\x1epinfold exit N` that carries the exit status, because
//! the debug-exit device alone has seven bits ([`verdict`]).

pub mod archive;
pub mod cli;
mod elf;
mod machine;
mod qemu;
mod rootfs;
mod terminal;
pub mod verdict;
mod words;

pub use machine::run;
pub use words::split;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the guest is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A tty on the console, until the machine powers off.
    Shell,
    /// One program, its output byte for byte.
    Exec,
    /// A test kernel.
    Test,
}

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Mode::Shell => "shell",
            Mode::Exec => "exec",
            Mode::Test => "test",
        }
    }
}

/// Where the console and the log go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Into the [`Outcome`].
    Capture,
    /// To this process's stdout and stderr, as they come.
    Stream,
}

/// A file for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// Where it is here; a directory is copied with all that is in it.
    pub host: PathBuf,
    /// Where it goes; with a slash at the end, into that directory under its own name.
    pub guest: String,
}

/// One machine. [`Config::new`] gives the defaults that each field names.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel's ELF file. Its debug sections do not travel, its symbols do.
    pub kernel: PathBuf,
    /// The loader's ELF file; `None`: built by Cargo where it is not up to date.
    pub loader: Option<PathBuf>,
    pub mode: Mode,
    /// The first program and its arguments; its path is the first of them. Empty: none, or `/bin/sh` in shell mode.
    pub argv: Vec<String>,
    /// Added to (or replacing in) the environment `PATH`, `HOME`, `USER`, `TERM`, as `NAME=value`.
    pub env: Vec<String>,
    pub files: Vec<GuestFile>,
    /// A static busybox for `/bin`; `None`: `$BUSYBOX`, else the one in `PATH` if there is one.
    pub busybox: Option<PathBuf>,
    /// Command-line words besides `mode=`.
    pub cmdline: String,
    /// CPUs (2).
    pub smp: u32,
    /// Memory, as QEMU's `-m` takes it (1G).
    pub mem: String,
    /// CPU model; `None`: `max`, without the features that hide work from the count when `icount` is set.
    pub cpu: Option<String>,
    /// Status 124 after this long (none).
    pub timeout: Option<Duration>,
    /// Counted instructions: one CPU, a nanosecond each.
    pub icount: bool,
    /// Further QEMU arguments.
    pub qemu_args: Vec<String>,
    pub output: Output,
    /// Wait for a debugger on this TCP port before the first instruction.
    pub gdb: Option<u16>,
}

impl Config {
    /// A machine of the default size that captures its output.
    pub fn new(kernel: impl AsRef<Path>, mode: Mode) -> Self {
        Self {
            kernel: kernel.as_ref().into(),
            loader: None,
            mode,
            argv: Vec::new(),
            env: Vec::new(),
            files: Vec::new(),
            busybox: None,
            cmdline: String::new(),
            smp: 2,
            mem: "1G".into(),
            cpu: None,
            timeout: None,
            icount: false,
            qemu_args: Vec::new(),
            output: Output::Capture,
            gdb: None,
        }
    }
}

/// How a machine ended.
#[derive(Debug)]
pub struct Outcome {
    /// As a shell shows it: the program's, 128+n when a signal killed it, 124 on the time limit, 125 when the kernel
    /// panicked or there was none.
    pub status: u8,
    /// What came on the console, when captured.
    pub stdout: Vec<u8>,
    /// The kernel log and what QEMU said, without control records, when captured.
    pub log: String,
    /// What the launcher has to say about the end, when it is not the program's own.
    pub message: Option<String>,
}

/// Why a machine was not started.
#[derive(Debug)]
pub struct Error(pub String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// An `Error` that says what could not be done to what.
fn failed(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let what = format!("cannot {what} {}", path.display());
    move |error| Error(format!("{what}: {error}"))
}
