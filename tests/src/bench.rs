//! `make bench`: memory management's cost in guest instructions, beside Linux's; `make bench-linux`: Linux's, of disks.
//!
//! `bench/bench.c` runs under counted instructions, so every run gives the same figures. Beside it `bench/first.c`
//! tells how many instructions lie between reset and user mode. A bar that is missed makes the exit status 1.

mod disks;

use crate::build::{self, Result};
use launcher::{Config, GuestFile, Mode};
use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Every row that runs costs at most a part of Linux's: this, or its own.
const ROW_BAR: f64 = 0.5;
/// Rows with a bar of their own. Of a `vm_readv` 512 instructions are the copy; a reference is given back in 13.
const OWN_BARS: &[(&str, f64)] = &[
    ("gup_fast_b512_get", 0.35),
    ("pin_fast_b512_get", 0.25),
    ("pin_fast_b512_put", 0.25),
    ("gup_slow_b512_get", 0.3),
    ("pin_slow_b512_get", 0.3),
    ("gup_fast_b1_put", 1.0),
    ("gup_fast_b512_put", 1.0),
    ("gup_slow_b512_put", 1.0),
    ("vmsplice_16p_per_page", 0.8),
    ("vm_readv_16p_per_page", 0.65),
    ("vm_readv_512p_per_page", 0.65),
];
/// And all together, as a geometric mean, this.
const MEAN_BAR: f64 = 0.33;
/// From reset to the first user instruction.
const BOOT_BAR: u64 = 40_000_000;

fn tool(name: &str, flags: &[&str]) -> Result<PathBuf> {
    let target = crate::root().join("target/bench").join(name);
    fs::create_dir_all(crate::root().join("target/bench")).map_err(|error| error.to_string())?;
    let source = crate::root().join(format!("tests/bench/{name}.c"));
    build::run(
        Command::new("gcc")
            .arg("-O2")
            .args(flags)
            .arg("-o")
            .arg(&target)
            .arg(&source),
    )?;
    Ok(target)
}

/// Runs `program` under counted instructions; what it printed.
fn count(program: PathBuf) -> Result<String> {
    let mut config = Config::new(build::kernel()?, Mode::Exec);
    let guest = format!(
        "/bin/{}",
        program.file_name().unwrap_or_default().to_string_lossy()
    );
    config.argv = vec![guest.clone()];
    config.files = vec![GuestFile {
        host: program,
        guest,
    }];
    (config.icount, config.smp, config.mem) = (true, 1, "1G".into());
    config.timeout = Some(Duration::from_secs(900));
    let outcome = launcher::run(&config).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    if outcome.status != 0 {
        let why = outcome.message.unwrap_or_default();
        return Err(format!(
            "status {} {why}\n{text}\n{}",
            outcome.status,
            crate::diff::tail(&outcome.log, 40)
        ));
    }
    Ok(text)
}

/// The rows that Linux has in a file of `tests/bench`, in its order, and what is said of each.
fn baseline<const N: usize>(file: &str) -> Result<Vec<(String, [f64; N])>> {
    let path = crate::root().join("tests/bench").join(file);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let rows = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split('\t');
            let name = words.next()?.to_string();
            let figures: Vec<f64> = words.map_while(|word| word.trim().parse().ok()).collect();
            Some((name, figures.try_into().ok()?))
        });
    Ok(rows.collect())
}

fn report() -> Result<bool> {
    let linux = baseline("linux-6.12.tsv")?;
    let bench = tool("bench", &["-static"])?;
    let first = tool("first", &["-static", "-nostdlib"])?;
    let boot = count(first)?;
    let boot: u64 = boot
        .trim()
        .parse()
        .map_err(|_| format!("no count of the boot: {boot:?}"))?;
    let text = count(bench)?;
    if !text.contains("BENCH-END") {
        return Err(format!("the benchmark did not finish:\n{text}"));
    }
    let ours: HashMap<&str, Option<f64>> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("BENCH ")?.split_whitespace();
            Some((words.next()?, words.next()?.parse().ok()))
        })
        .collect();

    let mut good = true;
    let mut file = String::from("row\tpinfold\tlinux_6.12\tratio\n");
    let (mut logs, mut rows) = (0.0, 0);
    println!(
        "{:28} {:>10} {:>10} {:>7}",
        "guest instructions", "Pinfold", "Linux 6.12", "ratio"
    );
    for (name, [theirs]) in &linux {
        match ours.get(name.as_str()) {
            Some(Some(value)) => {
                let ratio = value / theirs;
                let own = OWN_BARS.iter().find(|(row, _)| row == name);
                let bar = own.map_or(ROW_BAR, |(_, bar)| *bar);
                let mark = if ratio > bar { "  over the bar" } else { "" };
                good &= ratio <= bar;
                // A row may cost nothing: the mean needs a number.
                logs += ratio.max(1e-3).ln();
                rows += 1;
                println!("{name:28} {value:>10} {theirs:>10} {ratio:>7.3}{mark}");
                let _ = writeln!(file, "{name}\t{value}\t{theirs}\t{ratio:.4}");
            }
            Some(None) => {
                println!("{name:28} {:>10} {theirs:>10}", "skip");
                let _ = writeln!(file, "{name}\tskip\t{theirs}\t");
            }
            None => return Err(format!("the benchmark has no row {name}")),
        }
    }
    let mean = if rows == 0 {
        f64::NAN
    } else {
        (logs / f64::from(rows)).exp()
    };
    good &= mean <= MEAN_BAR && boot <= BOOT_BAR;
    println!(
        "{:28} {:>10} {:>10} {mean:>7.3}  (bar {MEAN_BAR}, every row {ROW_BAR})",
        "geometric mean", rows, ""
    );
    println!(
        "{:28} {:>10} {:>10}          (bar {BOOT_BAR})",
        "reset to user mode", boot, ""
    );
    let _ = writeln!(
        file,
        "geometric_mean\t\t\t{mean:.4}\nreset_to_user\t{boot}\t\t"
    );
    let path = crate::root().join("target/bench.tsv");
    fs::write(&path, file).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("written to target/bench.tsv");
    Ok(good)
}

pub fn main() -> ExitCode {
    let work = || match std::env::args().nth(1).as_deref() {
        Some("linux") => disks::measure().map(|()| true),
        Some("disks") => disks::report(),
        _ => Ok(report()? & disks::report()?),
    };
    match work() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("a bar was missed");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::from(2)
        }
    }
}
