//! Many guest programs in one machine.
//!
//! `guest/c/init.c` is the first program: it runs what `/tests/list` names, one after another, each with a time limit,
//! and frames what each says with lines that begin with RS (0x1e). A program that takes the machine down is charged
//! for it, and the rest goes on in a new machine.

use crate::build::{self, Result};
use crate::catalogue::{ALONE, Program};
use launcher::{Config, GuestFile, Mode};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// How a program fared.
#[derive(Clone, Debug)]
pub struct Fared {
    pub output: Vec<u8>,
    /// The shell's status; `None` when the machine ended first.
    pub status: Option<u8>,
    /// From when to when it ran, in microseconds of its machine's time.
    pub time: (u64, u64),
    /// What the kernel logged meanwhile.
    pub log: String,
    /// Pins that it left behind, and frames that it took and did not give back.
    pub left: (i64, i64),
    /// How the machine ended, when it ended badly.
    pub machine: Option<String>,
}

/// So many machines may die in one batch before the rest is given up.
const MACHINES: usize = 6;

/// Runs `programs` on `smp` CPUs under `kernel`.
pub fn run(kernel: &Path, smp: u32, programs: &[Program]) -> HashMap<&'static str, Result<Fared>> {
    let mut results = HashMap::new();
    let mut left: Vec<Program> = programs.to_vec();
    for _ in 0..MACHINES {
        if left.is_empty() {
            break;
        }
        match boot(kernel, smp, &left) {
            Ok(fared) => {
                if fared.is_empty() {
                    break;
                }
                left.retain(|program| !fared.iter().any(|(name, _)| name == program.name));
                for (name, result) in fared {
                    if let Some(program) = programs.iter().find(|program| program.name == name) {
                        results.insert(program.name, Ok(result));
                    }
                }
            }
            Err(why) => {
                for program in left.drain(..) {
                    results.insert(program.name, Err(why.clone()));
                }
            }
        }
    }
    for program in left {
        results.insert(
            program.name,
            Err("not run: too many machines died before".into()),
        );
    }
    results
}

fn boot(kernel: &Path, smp: u32, programs: &[Program]) -> Result<Vec<(String, Fared)>> {
    let init = ALONE
        .iter()
        .find(|program| program.name == "init")
        .ok_or("no init")?;
    let list = crate::guest_dir().join(format!("list.{smp}"));
    let lines: Vec<String> = programs
        .iter()
        .map(|program| {
            format!(
                "{} {} {}\n",
                program.name,
                program.seconds,
                program.guest_command().join(" ")
            )
        })
        .collect();
    std::fs::write(&list, lines.concat()).map_err(|error| error.to_string())?;
    let mut config = Config::new(kernel, Mode::Exec);
    config.smp = smp;
    config.argv = vec![init.guest_path()];
    config.files = files(programs.iter().chain([init]));
    config.files.push(GuestFile {
        host: list,
        guest: "/tests/list".into(),
    });
    let seconds: u64 = programs
        .iter()
        .map(|program| u64::from(program.seconds))
        .sum();
    // Each program has its own limit; this one is for a machine that stands still, however slow its host may be.
    config.timeout = Some(Duration::from_secs(seconds.min(900) + 20));
    let outcome = launcher::run(&config).map_err(|error| error.to_string())?;
    let ended = match (outcome.status, &outcome.message) {
        (0, None) => None,
        (status, message) => Some(format!(
            "the machine ended with status {status}{}",
            message
                .as_ref()
                .map(|m| format!(": {m}"))
                .unwrap_or_default()
        )),
    };
    let mut fared = frames(&outcome.stdout);
    if fared.is_empty() {
        let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
        let log = crate::diff::tail(&outcome.log, 40);
        return Err(format!(
            "no program ran; {}\nconsole:\n{said}\nlog:\n{log}",
            ended.unwrap_or_default()
        ));
    }
    for (_, result) in &mut fared {
        result.log = meanwhile(&outcome.log, result.time);
        if result.status.is_none() {
            result.machine = Some(ended.clone().unwrap_or("the machine ended early".into()));
        }
    }
    Ok(fared)
}

/// Everything that `programs` need in the guest.
pub fn files<'a>(programs: impl Iterator<Item = &'a Program>) -> Vec<GuestFile> {
    let mut files: Vec<GuestFile> = Vec::new();
    for program in programs {
        files.push(GuestFile {
            host: program.host_path(),
            guest: program.guest_path(),
        });
        let libraries = build::libraries(program).into_iter();
        files.extend(libraries.map(|(host, guest)| GuestFile { host, guest }));
        for name in program
            .args
            .iter()
            .filter_map(|arg| arg.strip_prefix("/tests/bin/"))
        {
            files.push(GuestFile {
                host: crate::guest_dir().join(name),
                guest: format!("/tests/bin/{name}"),
            });
        }
    }
    files.sort_by(|a, b| a.guest.cmp(&b.guest));
    files.dedup();
    files
}

/// Takes the console apart. The last program may have no end.
fn frames(console: &[u8]) -> Vec<(String, Fared)> {
    let mut fared = Vec::new();
    for piece in console.split(|byte| *byte == 0x1e).skip(1) {
        let end = piece
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(piece.len());
        let head = String::from_utf8_lossy(&piece[..end]).into_owned();
        let rest = piece.get(end + 1..).unwrap_or_default();
        let mut words = head.split_whitespace();
        let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
        match (words.next(), words.next()) {
            (Some("begin"), Some(name)) => fared.push((
                name.to_string(),
                Fared {
                    output: rest.to_vec(),
                    status: None,
                    time: (number(words.next()).unwrap_or(0), u64::MAX),
                    log: String::new(),
                    left: (0, 0),
                    machine: None,
                },
            )),
            (Some("end"), Some(name)) => {
                if let Some((_, result)) = fared.iter_mut().find(|(known, _)| known == name) {
                    result.status = words.next().and_then(|word| word.parse().ok());
                    result.time.1 = number(words.next()).unwrap_or(u64::MAX);
                    let mut count = || words.next().and_then(|word| word.parse().ok());
                    result.left = (count().unwrap_or(0), count().unwrap_or(0));
                }
            }
            _ => {}
        }
    }
    fared
}

/// The lines of `log` from `first` to `last`. A line without a time (a panic's report) goes with the one before it.
fn meanwhile(log: &str, (first, last): (u64, u64)) -> String {
    let mut at = 0;
    let mut kept = String::new();
    for line in log.lines() {
        at = stamp(line).unwrap_or(at);
        if (first..=last).contains(&at) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The time in microseconds of a line that begins as `[    1.234567 0]`.
fn stamp(line: &str) -> Option<u64> {
    let (seconds, rest) = line.strip_prefix('[')?.trim_start().split_once('.')?;
    let micros = rest.split_once(' ')?.0;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::{frames, meanwhile};

    #[test]
    fn frames_are_taken_apart() {
        let fared = frames(
            b"noise\x1ebegin a 5\nhello\nno newline\x1eend a 3 12 1 -2\n\x1ebegin b 13\nhalf",
        );
        assert_eq!(fared.len(), 2);
        assert_eq!(
            (&fared[0].1.output[..], fared[0].1.status),
            (&b"hello\nno newline"[..], Some(3))
        );
        assert_eq!(
            (&fared[1].1.output[..], fared[1].1.status),
            (&b"half"[..], None)
        );
        assert_eq!(
            (fared[0].1.time, fared[1].1.time),
            ((5, 12), (13, u64::MAX))
        );
        assert_eq!((fared[0].1.left, fared[1].1.left), ((1, -2), (0, 0)));
    }

    #[test]
    fn the_log_of_a_time_is_cut_out() {
        let log =
            "[    0.000009 0] a\n[    1.000002 1] b\nno time\n[   12.000000 0] c\nkernel panic\n";
        assert_eq!(meanwhile(log, (0, 9)), "[    0.000009 0] a\n");
        assert_eq!(
            meanwhile(log, (10, 2_000_000)),
            "[    1.000002 1] b\nno time\n"
        );
        assert_eq!(
            meanwhile(log, (12_000_000, u64::MAX)),
            "[   12.000000 0] c\nkernel panic\n"
        );
    }
}
