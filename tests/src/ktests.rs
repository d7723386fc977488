//! Tests inside the kernel: `tests/kernel` registers them with `ktest!`, the test kernel runs them and prints
//! `ktest NAME begin`, then `ktest NAME ok` on the log channel.

use crate::build;
use crate::diff;
use launcher::{Config, Mode};
use libtest_mimic::Failed;
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// How the tests of one machine fared.
#[derive(Debug)]
pub struct Ran {
    /// By name: whether it passed; begun and not ended is no.
    verdicts: HashMap<String, bool>,
    status: u8,
    log: String,
}

pub fn line_name(name: &str, smp: u32) -> String {
    format!("kernel::{name}::smp{smp}")
}

/// The registered tests, read from the sources: `ktest!(` at the beginning of a line.
pub fn names() -> Vec<String> {
    let mut names = Vec::new();
    let entries = fs::read_dir(crate::root().join("tests/kernel/src"))
        .into_iter()
        .flatten()
        .flatten();
    for entry in entries {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        names.extend(registered(&text).map(str::to_string));
    }
    names.sort();
    names
}

/// The names in one source, but for tests that end the machine: those are `machines`' affair.
fn registered(source: &str) -> impl Iterator<Item = &str> {
    source.split("\nktest!(").skip(1).filter_map(|rest| {
        let mut words = rest.split([',', ')']).map(str::trim);
        let name = words.next()?;
        (words.next() != Some("alone")).then_some(name)
    })
}

/// Boots one test kernel for `names`.
pub fn run(smp: u32, names: &[String]) -> Result<Ran, String> {
    if names.is_empty() {
        return Err("none wanted".into());
    }
    let filter = if names.len() == self::names().len() {
        String::new()
    } else {
        format!("test={}", names.join(","))
    };
    machine(smp, &filter)
}

/// Boots a test kernel with these command-line words.
pub fn machine(smp: u32, words: &str) -> Result<Ran, String> {
    machine_with(smp, words, |_| {})
}

/// The same in a machine that has more.
pub fn machine_with(
    smp: u32,
    words: &str,
    change: impl FnOnce(&mut Config),
) -> Result<Ran, String> {
    let mut config = Config::new(build::test_kernel()?, Mode::Test);
    config.smp = smp;
    config.cmdline = words.into();
    config.timeout = Some(Duration::from_secs(120));
    change(&mut config);
    let outcome = launcher::run(&config).map_err(|error| error.to_string())?;
    let mut verdicts = HashMap::new();
    for line in outcome.log.lines() {
        let Some((_, rest)) = line.split_once("ktest ") else {
            continue;
        };
        let mut words = rest.split_whitespace();
        if let (Some(name), Some(state)) = (words.next(), words.next()) {
            verdicts.insert(name.to_string(), state == "ok");
        }
    }
    Ok(Ran {
        verdicts,
        status: outcome.status,
        log: outcome.log,
    })
}

impl Ran {
    pub fn status(&self) -> u8 {
        self.status
    }

    pub fn log(&self) -> &str {
        &self.log
    }
}

/// Whether `name` passed.
pub fn verdict(ran: Option<&Result<Ran, String>>, name: &str, smp: u32) -> Result<(), Failed> {
    let ran = match ran {
        Some(Ok(ran)) => ran,
        Some(Err(why)) => return Err(why.clone().into()),
        None => return Err("its machine was lost".into()),
    };
    let why = match ran.verdicts.get(name) {
        Some(true) => return Ok(()),
        Some(false) => "failed",
        None => "did not run",
    };
    Err(format!(
        "{why}; the machine ended with status {}\nkernel log:\n{}\n\nalone: cargo run -p launcher -- test --smp {smp} target/{}/checked/test-kernel {name}",
        ran.status,
        diff::tail(&ran.log, 40),
        build::BARE,
    )
    .into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_read_however_they_are_broken() {
        let source = "//!\nktest!(one, {\n});\nktest!(\n    two,\n    call()\n);\nktest!(three, alone, {\n});\n";
        assert_eq!(
            super::registered(source).collect::<Vec<_>>(),
            ["one", "two"]
        );
    }
}
