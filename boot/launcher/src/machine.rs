//! One machine from archive to verdict.
//!
//! QEMU is our child: its stdout is the console, its stderr the log, its stdin (in shell mode) the keyboard. One thread
//! reads each; this one waits for the child, the clock or the user, whichever comes first, and ends nothing but that
//! child. The kernel makes QEMU end should we die first.

use crate::archive::Archive;
use crate::rootfs::{self, RootFs};
use crate::terminal::{Keys, Raw};
use crate::verdict::{self, End, LogReader};
use crate::{Config, Error, Mode, Outcome, Output, elf, failed, qemu};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

/// Room that the loader and a kernel need besides the archive.
const LEAST_MEMORY: u64 = 16 << 20;

/// Runs one machine to its end.
pub fn run(config: &Config) -> Result<Outcome, Error> {
    let started = Instant::now();
    let archive = build_archive(config)?;
    if let Some(memory) =
        qemu::memory_size(&config.mem).filter(|m| *m < archive.len() as u64 + LEAST_MEMORY)
    {
        let (archive, memory) = (archive.len() >> 20, memory >> 20);
        return Err(Error(format!(
            "too little memory: the archive has {archive} MiB, the machine {memory} MiB"
        )));
    }
    let loader = match &config.loader {
        Some(path) => path.clone(),
        None => build_loader()?,
    };
    let archive = in_memory(&archive)
        .map_err(|error| Error(format!("cannot keep the archive in memory: {error}")))?;
    let mut child = spawn(config, &loader, &archive)?;
    drop(archive);

    let raw = (config.mode == Mode::Shell).then(Raw::enter).flatten();
    let line_end: &[u8] = if raw.is_some() { b"\r\n" } else { b"\n" };
    let spoken = Arc::new(AtomicBool::new(false));
    let console = child
        .stdout
        .take()
        .map(|pipe| read_console(pipe, config.output, spoken.clone()));
    let log = child
        .stderr
        .take()
        .map(|pipe| read_log(pipe, config.output, line_end));
    let quit = child.stdin.take().map(|pipe| forward_keys(pipe, spoken));
    let end = wait(&mut child, config, started, quit.as_ref())?;

    // QEMU is gone, so both pipes end.
    let stdout = console
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default();
    let (log, record) = log
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default();
    drop(raw);
    let (status, message) = verdict::of(end, record, config.mode);
    Ok(Outcome {
        status,
        stdout,
        log,
        message,
    })
}

fn build_archive(config: &Config) -> Result<Vec<u8>, Error> {
    let kernel = fs::read(&config.kernel).map_err(failed("read", &config.kernel))?;
    let mut archive = Archive::default();
    archive.file("boot/kernel", 0o644, &elf::without_debug(kernel));

    let mut words = format!("mode={}", config.mode.word());
    for word in config.cmdline.split_whitespace() {
        words.push(' ');
        words.push_str(word);
    }
    archive.file("boot/cmdline", 0o644, words.as_bytes());

    let mut argv = config.argv.clone();
    if argv.is_empty() && config.mode == Mode::Shell {
        argv = vec!["/bin/sh".into(), "-l".into()];
    }
    let term = match config.mode {
        Mode::Shell => std::env::var("TERM").unwrap_or("vt100".into()),
        _ => "dumb".into(),
    };
    let mut env: Vec<String> = [
        "PATH=/bin:/sbin:/usr/bin:/usr/sbin",
        "HOME=/root",
        "USER=root",
    ]
    .map(Into::into)
    .into();
    env.push(format!("TERM={term}"));
    for setting in &config.env {
        let name = setting.split('=').next().unwrap_or_default();
        env.retain(|other| other.split('=').next() != Some(name));
        env.push(setting.clone());
    }
    if argv.iter().chain(&env).any(|text| text.contains('\0')) {
        return Err(Error("an argument contains a NUL".into()));
    }
    archive.file("boot/argv", 0o644, terminated(&argv).as_bytes());
    archive.file("boot/env", 0o644, terminated(&env).as_bytes());

    let mut root = RootFs::new();
    match rootfs::find_busybox(config.busybox.as_deref())? {
        Some(busybox) => root.add_busybox(&busybox)?,
        None if config.mode == Mode::Shell => {
            return Err(Error(
                "there is no static busybox: run `make setup`, or set BUSYBOX=path".into(),
            ));
        }
        None => {}
    }
    for file in &config.files {
        root.add_host(file)?;
    }
    root.write(&mut archive);
    Ok(archive.finish())
}

/// Each string with a NUL behind it: the last one may be empty.
fn terminated(strings: &[String]) -> String {
    strings.iter().flat_map(|text| [text, "\0"]).collect()
}

/// Asks Cargo for the loader.
fn build_loader() -> Result<PathBuf, Error> {
    let root = crate::cli::workspace();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(&root)
        .stdout(Stdio::null())
        .stdin(Stdio::null());
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "loader",
        "--target",
        "x86_64-unknown-none",
    ]);
    match cargo.status() {
        Ok(status) if status.success() => Ok(crate::cli::built("release", "loader")),
        Ok(_) => Err(Error("the loader does not build".into())),
        Err(error) => Err(Error(format!("cannot run cargo: {error}"))),
    }
}

/// A file without a name, which no crash can leave behind.
fn in_memory(content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("initrd", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    Ok(file.into())
}

fn spawn(config: &Config, loader: &Path, archive: &OwnedFd) -> Result<Child, Error> {
    let path = format!("/proc/self/fd/{}", archive.as_raw_fd());
    let loader = loader
        .to_str()
        .ok_or_else(|| Error("the loader's path is not UTF-8".into()))?;
    let arguments = qemu::arguments(config, loader, &path);
    if std::env::var_os("PINFOLD_TRACE").is_some() {
        eprintln!("launcher: {} {}", qemu::QEMU, arguments.join(" "));
    }
    let mut command = Command::new(qemu::QEMU);
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.stdin(if config.mode == Mode::Shell {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let fd = archive.as_raw_fd();
    // SAFETY: between fork and exec only two system calls are made; `archive` stays open until `spawn` returns.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(fd), rustix::io::FdFlags::empty())?;
            Ok(())
        });
    }
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error(format!("{} is not installed: run `make setup`", qemu::QEMU))
        }
        _ => Error(format!("cannot start {}: {error}", qemu::QEMU)),
    })
}

/// Waits until QEMU ends by itself, or ends it.
fn wait(
    child: &mut Child,
    config: &Config,
    started: Instant,
    quit: Option<&mpsc::Receiver<()>>,
) -> Result<End, Error> {
    let lost = |error: io::Error| Error(format!("lost QEMU: {error}"));
    let pid = rustix::process::Pid::from_child(child);
    let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| lost(error.into()))?;
    let end = loop {
        let left = config
            .timeout
            .map(|limit| limit.saturating_sub(started.elapsed()));
        let nap = if quit.is_some() { 50 } else { 60_000 };
        let nap = left.map_or(nap, |left| nap.min(left.as_millis() as u64 + 1));
        let nap = Timespec {
            tv_sec: (nap / 1000) as i64,
            tv_nsec: (nap % 1000 * 1_000_000) as i64,
        };
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&nap)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return child.wait().map(End::from).map_err(lost),
            Err(error) => return Err(lost(error.into())),
        }
        if config
            .timeout
            .is_some_and(|limit| started.elapsed() >= limit)
        {
            break End::TimedOut;
        }
        if quit.is_some_and(|quit| quit.try_recv().is_ok()) {
            break End::Quit;
        }
    };
    child.kill().and_then(|()| child.wait()).map_err(lost)?;
    Ok(end)
}

type Reader<T> = thread::JoinHandle<T>;

/// Calls `take` with each piece of `pipe` until it ends.
fn each_piece(mut pipe: impl Read, mut take: impl FnMut(&[u8])) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => take(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn read_console(
    pipe: impl Read + Send + 'static,
    output: Output,
    spoken: Arc<AtomicBool>,
) -> Reader<Vec<u8>> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        each_piece(pipe, |bytes| {
            spoken.store(true, Relaxed);
            match output {
                Output::Capture => kept.extend_from_slice(bytes),
                // Nobody may be listening any more; the guest runs to its end all the same.
                Output::Stream => drop(
                    io::stdout()
                        .write_all(bytes)
                        .and_then(|()| io::stdout().flush()),
                ),
            }
        });
        kept
    })
}

fn read_log(
    pipe: impl Read + Send + 'static,
    output: Output,
    line_end: &'static [u8],
) -> Reader<(String, Option<u8>)> {
    thread::spawn(move || {
        let mut reader = LogReader::default();
        let mut kept = Vec::new();
        let mut show = |lines: Vec<u8>| match output {
            Output::Capture => kept.extend_from_slice(&lines),
            Output::Stream => {
                for line in lines.split_inclusive(|&byte| byte == b'\n') {
                    let text = line.strip_suffix(b"\n").unwrap_or(line);
                    let _ = io::stderr().write_all(&[text, line_end].concat());
                }
            }
        };
        each_piece(pipe, |bytes| show(reader.push(bytes)));
        show(reader.finish());
        (String::from_utf8_lossy(&kept).into_owned(), reader.record)
    })
}

/// Sends what is typed to the guest, from its first word on: before that no one there listens. The receiver hears when
/// the user wants to end the machine. At the end of input the guest gets a ctrl-d.
fn forward_keys(
    mut pipe: impl Write + Send + 'static,
    spoken: Arc<AtomicBool>,
) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut keys = Keys::default();
        each_piece(io::stdin(), |typed| {
            let (sent, quit) = keys.filter(typed);
            if quit {
                let _ = sender.send(());
            }
            while !spoken.load(Relaxed) && !quit {
                thread::sleep(std::time::Duration::from_millis(10));
            }
            let _ = pipe.write_all(&sent);
        });
        let _ = pipe.write_all(b"\x04");
        // QEMU would take the closed pipe for a hang-up; it stays open as long as we run.
        std::mem::forget(pipe);
        thread::park();
    });
    receiver
}
