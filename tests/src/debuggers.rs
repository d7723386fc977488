//! Debian's own debuggers in the guest, and a core file from the guest on the host.

use crate::catalogue::Program;
use crate::machines::{ensure, exec, find};
use crate::{build, diff};
use launcher::GuestFile;
use std::path::PathBuf;
use std::process::{Command, Stdio};

type Verdict = Result<(), String>;

/// A program of this machine with its libraries, at the same places in the guest.
fn tool(name: &str) -> Result<Vec<GuestFile>, String> {
    let path = PathBuf::from(format!("/usr/bin/{name}"));
    let here = std::fs::canonicalize(&path)
        .map_err(|error| format!("{}: {error} (boot/setup.sh)", path.display()))?;
    let mut files = vec![GuestFile {
        host: here,
        guest: path.display().to_string(),
    }];
    let libraries = build::libraries_of(&path).into_iter();
    files.extend(libraries.map(|(host, guest)| GuestFile { host, guest }));
    Ok(files)
}

/// What a command of this machine prints.
fn said(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn same(host: &str, guest: &str) -> Verdict {
    match diff::first_difference(host.as_bytes(), guest.as_bytes()) {
        None => Ok(()),
        Some(text) => Err(text),
    }
}

/// `strace -f` of a program that forks says what it says on Linux, but for pids and addresses, process by process.
pub fn strace_follows_a_family() -> Verdict {
    const WORDS: [&str; 9] = [
        "-f",
        "-s",
        "16",
        "-e",
        "trace=!execve,brk,getrandom,readlink,rseq,arch_prctl,prlimit64,mprotect",
        // Whether it comes before or during the wait is nobody's promise.
        "-e",
        "signal=!SIGCHLD",
        "-o",
        "/dev/stdout",
    ];
    let traced = find("traced");
    let host = said(
        Command::new("/usr/bin/strace")
            .args(WORDS)
            .arg(traced.host_path()),
    )?;
    let outcome = exec(traced, &[], |config| {
        let program = std::mem::replace(&mut config.argv, vec!["/usr/bin/strace".into()]);
        config.argv.extend(WORDS.map(String::from));
        config.argv.extend(program);
        config.files.extend(tool("strace").unwrap_or_default());
    })?;
    ensure(
        outcome.status == 5,
        "strace ends as its program does",
        &outcome,
    )?;
    let host = tell_apart(&host);
    if !host.contains("+++ exited with 5 +++") || !host.contains("SIGUSR1") {
        return Err(format!("strace says nothing on this machine:\n{host}"));
    }
    same(
        &host,
        &tell_apart(&String::from_utf8_lossy(&outcome.stdout)),
    )
}

/// A trace by process, in order of appearance, each call whole and without what differs from run to run.
fn tell_apart(trace: &str) -> String {
    let mut processes: Vec<(String, Vec<String>)> = Vec::new();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let at = match processes.iter().position(|(p, _)| p == pid) {
            Some(at) => at,
            None => {
                processes.push((pid.into(), Vec::new()));
                processes.len() - 1
            }
        };
        let lines = &mut processes[at].1;
        let rest = rest.trim_start();
        if let Some((_, end)) = rest.split_once(" resumed>")
            && rest.starts_with("<... ")
            && let Some(begun) = lines.last_mut()
            && let Some(kept) = begun.strip_suffix(" <unfinished ...>")
        {
            *begun = format!("{kept}{end}");
        } else {
            lines.push(rest.into());
        }
    }
    let pids: Vec<String> = processes.iter().map(|(pid, _)| pid.clone()).collect();
    let mut text = String::new();
    for (n, (_, lines)) in processes.iter().enumerate() {
        for line in lines {
            text.push_str(&format!("P{n} {}\n", plain(line, &pids)));
        }
    }
    text
}

/// A line without addresses, pids and the spaces that line columns up.
fn plain(line: &str, pids: &[String]) -> String {
    const GIVE_PIDS: [&str; 5] = ["clone(", "vfork(", "wait4(", "getpid(", "set_tid_address("];
    let gives = GIVE_PIDS.iter().any(|call| line.starts_with(call));
    let mut out = String::new();
    let mut word = String::new();
    for c in line.chars().chain(['\n']) {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        let who = ["wait4(", "kill(", "si_pid="]
            .iter()
            .any(|before| out.ends_with(before))
            || gives && out.ends_with(") = ");
        match pids.iter().position(|pid| *pid == word) {
            Some(n) if who => out.push_str(&format!("P{n}")),
            _ if word.starts_with("0x") => out.push_str("ADDRESS"),
            _ => out.push_str(&word),
        }
        word.clear();
        if !(c == ' ' && out.ends_with(' ')) {
            out.push(c);
        }
    }
    out.trim_end().into()
}

/// gdbserver, spoken to over a pipe, sets a breakpoint, reads and writes registers and memory, steps and sees the end,
/// and answers as it does on Linux.
pub fn gdbserver_debugs() -> Verdict {
    let rsp = find("rsp");
    let host = said(&mut Command::new(rsp.host_path()))?;
    if !host.contains("end: W06") {
        return Err(format!(
            "gdbserver does not answer on this machine:\n{host}"
        ));
    }
    let server = tool("gdbserver")?;
    let outcome = exec(rsp, &[], |config| config.files.extend(server))?;
    ensure(outcome.status == 0, "the driver failed", &outcome)?;
    same(&host, &String::from_utf8_lossy(&outcome.stdout))
}

/// A core file that the guest wrote has, on the host, a backtrace through the functions that were called, for each
/// thread, and the program's memory. (`gdb -batch -ex bt PROG core` reads it as well.)
pub fn a_core_file_has_a_backtrace() -> Verdict {
    let crash = find("crash");
    let outcome = exec(crash, &[], |_| {})?;
    if outcome.status != 0 {
        return ensure(false, "no core file", &outcome);
    }
    let core = Core {
        bytes: outcome.stdout,
        symbols: symbols(crash)?,
    };
    let traces: Vec<Vec<String>> = core
        .threads()?
        .iter()
        .map(|regs| core.backtrace(regs))
        .collect();
    let has = |trace: &[String], names: &[&str]| {
        let mut left = trace.iter();
        names.iter().all(|name| left.any(|at| at == name))
    };
    if traces.len() != 2
        || traces[0].first().map(String::as_str) != Some("innermost")
        || !has(&traces[0], &["innermost", "middle", "outermost", "main"])
        || !has(&traces[1], &["pause", "start_thread"])
    {
        return Err(format!("backtraces: {traces:?}"));
    }
    let marker = core.address("crash_marker").and_then(|at| core.word(at));
    if marker != Some(4711) {
        return Err(format!("crash_marker is {marker:?}"));
    }
    Ok(())
}

/// Functions and variables of a program: address and name, sorted.
fn symbols(program: &Program) -> Result<Vec<(u64, String)>, String> {
    let text = said(Command::new("nm").arg("-n").arg(program.host_path()))?;
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let at = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((at, words.nth(1)?.to_string()))
    };
    Ok(text.lines().filter_map(symbol).collect())
}

/// A core file, read as any debugger would.
struct Core {
    bytes: Vec<u8>,
    symbols: Vec<(u64, String)>,
}

impl Core {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        let bytes = self.bytes.get(at..at + N).ok_or("the core file is cut")?;
        bytes.try_into().map_err(|_| "length".into())
    }

    fn u64(&self, at: usize) -> Result<u64, String> {
        self.get(at).map(u64::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, String> {
        self.get(at).map(u32::from_le_bytes)
    }

    /// Kind, file offset, address and size in the file of each program header.
    fn headers(&self) -> Result<Vec<(u32, usize, u64, u64)>, String> {
        if !self.bytes.starts_with(b"\x7fELF\x02\x01") || self.get(16)? != [4u8, 0] {
            return Err("not an ELF core file".into());
        }
        let (first, count) = (self.u64(32)? as usize, u16::from_le_bytes(self.get(56)?));
        (0..usize::from(count))
            .map(|n| first + 56 * n)
            .map(|h| {
                let offset = self.u64(h + 8)? as usize;
                Ok((self.u32(h)?, offset, self.u64(h + 16)?, self.u64(h + 32)?))
            })
            .collect()
    }

    /// rip and rbp of each thread, from its NT_PRSTATUS.
    fn threads(&self) -> Result<Vec<[u64; 2]>, String> {
        const NT_PRSTATUS: u32 = 1;
        const REGS: usize = 112;
        let headers = self.headers()?;
        let notes = headers.iter().find(|h| h.0 == 4).ok_or("no notes")?;
        let (mut at, end) = (notes.1, notes.1 + notes.3 as usize);
        let mut threads = Vec::new();
        while at < end {
            let (name, len, kind) = (self.u32(at)?, self.u32(at + 4)?, self.u32(at + 8)?);
            let body = at + 12 + (name as usize).next_multiple_of(4);
            if kind == NT_PRSTATUS && len == 336 {
                threads.push([
                    self.u64(body + REGS + 16 * 8)?,
                    self.u64(body + REGS + 4 * 8)?,
                ]);
            }
            at = body + (len as usize).next_multiple_of(4);
        }
        Ok(threads)
    }

    fn address(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|s| s.1 == name).map(|s| s.0)
    }

    /// A word of the program's memory.
    fn word(&self, va: u64) -> Option<u64> {
        let headers = self.headers().ok()?;
        let segment = headers
            .iter()
            .find(|h| h.0 == 1 && va >= h.2 && va + 8 <= h.2 + h.3)?;
        self.u64(segment.1 + (va - segment.2) as usize).ok()
    }

    fn name(&self, at: u64) -> String {
        let after = self.symbols.partition_point(|s| s.0 <= at);
        let symbol = after.checked_sub(1).map(|n| self.symbols[n].1.clone());
        symbol.unwrap_or_else(|| format!("{at:#x}"))
    }

    /// The functions from the innermost out, by frame pointers.
    fn backtrace(&self, &[rip, rbp]: &[u64; 2]) -> Vec<String> {
        let mut trace = vec![self.name(rip)];
        let mut frame = rbp;
        while let (Some(next), Some(back)) = (self.word(frame), self.word(frame + 8)) {
            trace.push(self.name(back - 1));
            if next <= frame || trace.len() > 64 {
                break;
            }
            frame = next;
        }
        trace
    }
}
