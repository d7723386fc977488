//! Counts guest instructions per kernel function, exactly.
//!
//! ```text
//! profile [OPTIONS] ROW COUNT       a row of tests/bench/rows.c, instructions per operation
//! profile [OPTIONS] PROGRAM [ARGS]  a whole run, from the kernel's first instruction
//!
//!   --kernel ELF   not the release build        --smp N       CPUs, which take turns
//!   --least N      the least that is shown      --atomics 1   atomic read-modify-writes alone
//!   --per N        divides a run's counts
//!   --mark NAME    counts between two calls of that function of PROGRAM   --qemu ARG   an argument for QEMU
//! ```
//!
//! The machine runs with counted instructions, and QEMU writes down each translation block of the kernel's text that it
//! executes, and each block's instructions when it translates it. Of a row only what lies between the program's two
//! looks at its clock is counted; what that clock counted beside the kernel is `user mode`. Under each function stand
//! the functions inlined into it; `--least` (default 1) is the least that is shown. Needs binutils (nm, addr2line).
//!
//! One inexactness is left: a block is counted whole, also when a page fault of a user copy ends it early.

use launcher::{Config, GuestFile, Mode, cli};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

type Result<T> = std::result::Result<T, String>;

/// Executions of each instruction.
type Counts = HashMap<u64, i64>;

#[derive(Default)]
struct Block {
    instructions: Vec<u64>,
    executed: i64,
}

/// Reads QEMU's log as it is written.
#[derive(Default)]
struct Log {
    blocks: Vec<Block>,
    /// The block that lies at a place of QEMU's code buffer.
    at: HashMap<u64, usize>,
    /// The block being listed, and whether only its atomic instructions are wanted.
    listed: Option<Vec<u64>>,
    atomics: bool,
    /// Where counting starts, then stops; without it, everything counts.
    mark: Option<u64>,
    off: bool,
}

impl Log {
    fn line(&mut self, line: &[u8]) {
        if let Some(rest) = line.strip_prefix(b"Trace ") {
            // Trace CPU: HOST [cs_base/pc/flags/cflags]
            let Some(host) = rest
                .iter()
                .position(|&b| b == b'x')
                .map(|i| hex(&rest[i + 1..]))
            else {
                return;
            };
            if let Some(instructions) = self.listed.take() {
                self.at.insert(host, self.blocks.len());
                self.blocks.push(Block {
                    instructions,
                    executed: 0,
                });
            }
            let pc = || rest.splitn(3, |&b| b == b'/').nth(1).map(hex);
            if self.mark.is_some() && self.mark == pc() {
                self.off = !self.off;
            } else if let Some(&block) = self.at.get(&host).filter(|_| !self.off) {
                self.blocks[block].executed += 1;
            }
        } else if let Some(rest) = line.strip_prefix(b"Stopped execution of TB chain before 0x") {
            if let Some(&block) = self.at.get(&hex(rest)).filter(|_| !self.off) {
                self.blocks[block].executed -= 1;
            }
        } else if line.starts_with(b"IN:") {
            self.listed = Some(Vec::new());
        } else if let Some(rest) = line.strip_prefix(b"0x") {
            // A long instruction goes on in a second line, without a mnemonic.
            let words = line
                .split(|b| b.is_ascii_whitespace())
                .filter(|word| !word.is_empty());
            let text: Vec<&[u8]> = words
                .skip(1)
                .skip_while(|word| word.len() == 2 && word.iter().all(u8::is_ascii_hexdigit))
                .collect();
            let wanted = match text.first() {
                Some(first) if self.atomics => {
                    let memory = || text.iter().any(|word| word.contains(&b'('));
                    *first == b"lock" || first.starts_with(b"xchg") && memory()
                }
                first => first.is_some(),
            };
            if let Some(listed) = self.listed.as_mut().filter(|_| wanted) {
                listed.push(hex(rest));
            }
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for block in self.blocks.iter().filter(|block| block.executed != 0) {
            for &address in &block.instructions {
                *counts.entry(address).or_default() += block.executed;
            }
        }
        counts
    }
}

fn hex(text: &[u8]) -> u64 {
    let digit = |b: &u8| (*b as char).to_digit(16);
    text.iter()
        .map_while(digit)
        .fold(0, |value, digit| value << 4 | u64::from(digit))
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name}: {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn kernel() -> Result<PathBuf> {
    let target = ["--target", "x86_64-unknown-none"];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    output(
        cargo
            .current_dir(cli::workspace())
            .args(["build", "-q", "--release", "-p", "kernel"])
            .args(target),
    )?;
    Ok(cli::built("release", "pinfold"))
}

/// The kernel's functions: address and name, in order.
fn symbols(kernel: &Path) -> Result<Vec<(u64, String)>> {
    let text = output(
        Command::new("nm")
            .args(["-C", "-n", "--defined-only"])
            .arg(kernel),
    )?;
    let symbols = text.lines().filter_map(|line| {
        let mut words = line.splitn(3, ' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        matches!(words.next()?, "t" | "T" | "W" | "w").then_some(())?;
        Some((address, short(words.next()?)))
    });
    Ok(symbols.collect())
}

/// Where a function of a program is.
fn address(program: &Path, name: &str) -> Result<u64> {
    symbols(program)?
        .into_iter()
        .find_map(|(address, symbol)| (symbol == name).then_some(address))
        .ok_or(format!("{}: no {name}", program.display()))
}

/// A demangled name without its hash and its type parameters' length.
fn short(name: &str) -> String {
    let name = match name.rsplit_once("::h") {
        Some((head, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            head
        }
        _ => name,
    };
    name.replace("kernel::arch::hw::X86", "X86")
}

struct Options {
    kernel: PathBuf,
    least: f64,
    smp: u32,
    atomics: bool,
    per: i64,
    mark: Option<String>,
    qemu: Vec<String>,
}

/// Runs the machine; what it executed between two visits of `mark`, and what the program printed.
fn run(
    options: &Options,
    program: &Path,
    arguments: &[String],
    mark: Option<u64>,
) -> Result<(Counts, String)> {
    let kernel = &*options.kernel;
    let atomics = options.atomics;
    let fifo = std::env::temp_dir().join(format!("pinfold-profile-{}", std::process::id()));
    let _ = std::fs::remove_file(&fifo);
    output(Command::new("mkfifo").arg(&fifo))?;
    // Open for writing here too: the reader ends when we say so, not when QEMU is not yet there or already gone.
    let keep = File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .map_err(|error| error.to_string())?;
    let pipe = File::open(&fifo).map_err(|error| error.to_string())?;
    let reader = std::thread::spawn(move || {
        let mut log = Log {
            mark,
            off: mark.is_some(),
            atomics,
            ..Log::default()
        };
        let mut reader = BufReader::with_capacity(1 << 20, pipe);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            log.line(line.trim_ascii_end());
            line.clear();
        }
        log.counts()
    });

    let text = symbols(kernel)?;
    let (first, last) = (
        text.first().map_or(0, |s| s.0),
        text.last().map_or(u64::MAX, |s| s.0 + 4095),
    );
    let mut config = Config::new(kernel, Mode::Exec);
    let guest = format!(
        "/root/{}",
        program.file_name().unwrap_or_default().to_string_lossy()
    );
    config.argv = std::iter::once(guest.clone())
        .chain(arguments.iter().cloned())
        .collect();
    config.files = vec![GuestFile {
        host: program.into(),
        guest,
    }];
    (config.icount, config.smp) = (true, 1);
    config.timeout = Some(Duration::from_secs(900));
    let mut filter = format!("0x{first:x}..0x{last:x}");
    if let Some(mark) = mark {
        filter += &format!(",0x{mark:x}..0x{mark:x}");
    }
    let words = ["-d", "exec,nochain,in_asm", "-dfilter", &filter, "-D"];
    config.qemu_args = words.iter().map(|word| word.to_string()).collect();
    config.qemu_args.push(fifo.display().to_string());
    config
        .qemu_args
        .extend(["-smp".into(), options.smp.to_string()]);
    config.qemu_args.extend(options.qemu.iter().cloned());
    let outcome = launcher::run(&config).map_err(|error| error.0);
    drop(keep);
    let _ = std::fs::remove_file(&fifo);
    let outcome = outcome?;
    let counts = reader.join().map_err(|_| "the reader died")?;
    let printed = String::from_utf8_lossy(&outcome.stdout).into_owned();
    if outcome.status != 0 {
        let why = outcome.message.unwrap_or_default();
        return Err(format!(
            "status {} {why}\n{printed}{}",
            outcome.status, outcome.log
        ));
    }
    Ok((counts, printed))
}

/// For each address the functions inlined there, the innermost first, the function itself left out.
fn inlined(kernel: &Path, addresses: &[u64]) -> Result<HashMap<u64, Vec<String>>> {
    let mut command = Command::new("addr2line");
    command
        .args(["-a", "-f", "-i", "-C", "-e"])
        .arg(kernel)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| format!("addr2line: {error}"))?;
    let mut input = child.stdin.take().ok_or("addr2line: no stdin")?;
    let asked: String = addresses
        .iter()
        .map(|address| format!("0x{address:x}\n"))
        .collect();
    let writer = std::thread::spawn(move || input.write_all(asked.as_bytes()));
    let answer = child
        .wait_with_output()
        .map_err(|error| format!("addr2line: {error}"))?;
    writer
        .join()
        .map_err(|_| "the writer died")?
        .map_err(|error| format!("addr2line: {error}"))?;
    let mut chains: HashMap<u64, Vec<String>> = HashMap::new();
    let text = String::from_utf8_lossy(&answer.stdout);
    let mut lines = text.lines().peekable();
    while let Some(address) = lines.next() {
        let address = hex(address.trim_start_matches("0x").as_bytes());
        let chain = chains.entry(address).or_default();
        while lines.peek().is_some_and(|line| !line.starts_with("0x")) {
            chain.push(short(lines.next().unwrap_or_default()));
            lines.next();
        }
        chain.pop();
    }
    Ok(chains)
}

fn table(options: &Options, counts: &Counts, operations: i64, ticks: Option<i64>) -> Result<()> {
    let (kernel, least) = (&*options.kernel, options.least);
    let symbols = symbols(kernel)?;
    let mut addresses: Vec<u64> = counts
        .iter()
        .filter(|(_, count)| **count != 0)
        .map(|(address, _)| *address)
        .collect();
    addresses.sort_unstable();
    let chains = inlined(kernel, &addresses)?;
    let mut functions: HashMap<&str, (i64, HashMap<String, i64>)> = HashMap::new();
    for address in addresses {
        let count = counts[&address];
        let name = symbols[..symbols.partition_point(|symbol| symbol.0 <= address)]
            .last()
            .map_or("?", |s| &s.1);
        let function = functions.entry(name).or_default();
        function.0 += count;
        // The innermost one of our own crates; the caller's own lines under its name.
        let chain = chains.get(&address).map_or(&[][..], |chain| chain);
        let own = |name: &&String| name.contains("mm::") || name.contains("kernel::");
        let inner = chain.iter().find(own).or(chain.last());
        *function
            .1
            .entry(inner.cloned().unwrap_or_default())
            .or_default() += count;
    }
    let kernel_total: i64 = functions.values().map(|function| function.0).sum();
    let total = ticks.unwrap_or(kernel_total);
    let per = |count: i64| count as f64 / operations as f64;
    let show = |count: i64, indent: &str, name: &str| {
        println!(
            "{:>12.3} {:>6.2}%  {indent}{name}",
            per(count),
            100.0 * count as f64 / total as f64
        );
    };
    if ticks.is_some() {
        show(total, "", "whole operation");
        show(total - kernel_total, "", "user mode");
    }
    show(kernel_total, "", "kernel");
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|(name, (count, _))| (-count, *name));
    for (name, (count, inner)) in functions {
        if per(count) < least {
            continue;
        }
        show(count, "", name);
        let mut inner: Vec<_> = inner
            .into_iter()
            .filter(|(_, count)| per(*count) >= least)
            .collect();
        inner.sort_by_key(|(name, count)| (-count, name.clone()));
        if inner.iter().any(|(name, _)| !name.is_empty()) {
            for (name, count) in inner {
                show(
                    count,
                    "    ",
                    if name.is_empty() { "(itself)" } else { &name },
                );
            }
        }
    }
    Ok(())
}

fn ticks(printed: &str) -> Option<i64> {
    printed.lines().find_map(|line| {
        line.strip_prefix("PROFILE ")?
            .split(' ')
            .nth(1)?
            .parse()
            .ok()
    })
}

fn work() -> Result<()> {
    let mut words = std::env::args().skip(1).peekable();
    let mut options = Options {
        kernel: PathBuf::new(),
        least: 1.0,
        smp: 1,
        atomics: false,
        per: 1,
        mark: None,
        qemu: Vec::new(),
    };
    while let Some(option) = words.next_if(|word| word.starts_with("--")) {
        let value = words.next().ok_or(format!("{option} needs a value"))?;
        let wrong = |_| format!("{value} is not a number");
        match option.as_str() {
            "--kernel" => options.kernel = value.into(),
            "--least" => options.least = value.parse().map_err(|_| wrong(()))?,
            "--smp" => options.smp = value.parse().map_err(|_| wrong(()))?,
            "--atomics" => options.atomics = value.parse::<u8>().map_err(|_| wrong(()))? != 0,
            "--mark" => options.mark = Some(value),
            "--qemu" => options.qemu.push(value),
            "--per" => options.per = value.parse().map_err(|_| wrong(()))?,
            _ => return Err(format!("unknown option {option}")),
        }
    }
    let program = words
        .next()
        .ok_or("usage: profile [OPTIONS] ROW COUNT | PROGRAM [ARGUMENTS]")?;
    let arguments: Vec<String> = words.collect();
    if options.kernel.as_os_str().is_empty() {
        options.kernel = kernel()?;
    }
    if Path::new(&program).is_file() {
        let program = Path::new(&program);
        let mark = match &options.mark {
            Some(name) => Some(address(program, name)?),
            None => None,
        };
        let (counts, printed) = run(&options, program, &arguments, mark)?;
        print!("{printed}");
        return table(&options, &counts, options.per, None);
    }
    let count: i64 = arguments
        .first()
        .and_then(|count| count.parse().ok())
        .ok_or(format!("{program}: how many?"))?;
    let directory = cli::workspace().join("target/bench");
    std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let rows = directory.join("rows");
    let source = cli::workspace().join("tests/bench/rows.c");
    output(
        Command::new("gcc")
            .args(["-O2", "-static", "-o"])
            .arg(&rows)
            .arg(source),
    )?;
    let mark = address(&rows, "ticks")?;
    let (counts, printed) = run(
        &options,
        &rows,
        &[program.clone(), count.to_string()],
        Some(mark),
    )?;
    println!("{program}: instructions per operation, the mean of {count}");
    table(&options, &counts, count, ticks(&printed))
}

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("profile: {why}");
            ExitCode::FAILURE
        }
    }
}
