//! The historic bugs, each twice: absent from the kernel, and seen by its scenario once it is planted.
//!
//! `guest/c/bugs.c` has a scenario for each number; the test kernel carries every planted bug and `bug=N` on the
//! command line chooses one. Four CPUs: a thread that stands, the other side of its race, and the script.

use crate::batch;
use crate::build;
use crate::catalogue::ALONE;
use crate::diff;
use crate::machines::{Test, Verdict};
use launcher::{Config, Mode, Outcome};
use std::time::Duration;

macro_rules! bugs {
    ($($n:literal),* $(,)?) => {
        /// Those that a guest program shows.
        pub const NUMBERS: &[u8] = &[$($n),*];
        /// Two tests for each.
        pub const TESTS: &[Test] = &[$(
            Test { name: concat!("bug::", $n, "::is_absent"), run: is_absent::<$n> },
            Test { name: concat!("bug::", $n, "::is_seen_when_planted"), run: is_seen_when_planted::<$n> },
        )*];
    };
}

bugs![1, 4, 5, 6, 7, 9, 14, 17, 18, 19, 25, 26, 29, 30, 31];

fn scenario(n: u8, words: &str) -> Result<Outcome, String> {
    let program = ALONE
        .iter()
        .find(|program| program.name == "bugs")
        .ok_or("no scenarios")?;
    let mut config = Config::new(build::test_kernel()?, Mode::Exec);
    config.smp = 4;
    config.argv = program.guest_command();
    config.argv.push(n.to_string());
    config.files = batch::files([program].into_iter());
    config.cmdline = match n {
        30 => format!("vsyscall=emulate {words}"),
        _ => words.into(),
    };
    config.timeout = Some(Duration::from_secs(60));
    launcher::run(&config).map_err(|error| error.to_string())
}

fn shown(outcome: &Outcome) -> String {
    let console = String::from_utf8_lossy(&outcome.stdout).into_owned();
    format!(
        "status {}\nconsole:\n{console}\nkernel log:\n{}",
        outcome.status,
        diff::tail(&outcome.log, 40)
    )
}

fn is_absent<const N: u8>() -> Verdict {
    let outcome = scenario(N, "")?;
    let said = format!("BUG-{N}: not here\n");
    if outcome.status == 0 && outcome.stdout == said.as_bytes() {
        return Ok(());
    }
    Err(format!("BUG-{N} is here\n{}", shown(&outcome)))
}

/// A claim of the scenario fails, or a check of the kernel; hanging is not seeing.
fn is_seen_when_planted<const N: u8>() -> Verdict {
    let outcome = scenario(N, &format!("bug={N}"))?;
    let failed = outcome.status == 1 && outcome.stdout.starts_with(b"FAILED ");
    let panicked = outcome.status == 125 && outcome.log.contains("kernel panic: ");
    if !outcome.log.contains(&format!("BUG-{N} is planted")) {
        return Err(format!("it was not planted\n{}", shown(&outcome)));
    }
    if failed || panicked {
        return Ok(());
    }
    Err(format!("planted and not seen\n{}", shown(&outcome)))
}

#[cfg(test)]
mod tests {
    use super::NUMBERS;
    use std::fs;

    /// The book's page has a line for each of the 39, and says which are shown here.
    #[test]
    fn the_book_lists_every_bug() {
        let page = fs::read_to_string(crate::root().join("docs/src/bugs.md")).unwrap();
        for n in 1..=39 {
            let row = page
                .lines()
                .find(|line| line.starts_with(&format!("| {n} |")))
                .unwrap_or_else(|| panic!("BUG-{n} has no row"));
            let here = row.contains(&format!("`bug::{n}`"));
            assert_eq!(here, NUMBERS.contains(&n), "{row}");
            let elsewhere = [".rs`", "waits", "not yet"].iter().any(|s| row.contains(s));
            assert!(here || elsewhere, "{row}");
        }
    }

    /// Each has its story there, and what the stories quote is what the scenario claims, at that line.
    #[test]
    fn the_book_tells_every_story() {
        let page = fs::read_to_string(crate::root().join("docs/src/bugs.md")).unwrap();
        for n in NUMBERS {
            assert!(
                page.contains(&format!("\n### BUG-{n}: ")),
                "BUG-{n} has no story"
            );
        }
        let source = fs::read_to_string(crate::root().join("tests/guest/c/bugs.c")).unwrap();
        let mut quotes = 0;
        for quote in page.split("FAILED tests/guest/c/bugs.c:").skip(1) {
            let (n, rest) = quote.split_once(": ").unwrap();
            let claim = rest.split(" (errno").next().unwrap();
            let line = source.lines().nth(n.parse::<usize>().unwrap() - 1).unwrap();
            assert!(line.contains(claim), "bugs.c:{n} is {line}");
            quotes += 1;
        }
        assert!(quotes >= NUMBERS.len(), "{quotes} quotes");
    }
}
