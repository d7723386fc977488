//! The command line.
//!
//! ```text
//! launcher run   [OPTIONS] [-- PROGRAM ARGUMENTS…]   a shell (or PROGRAM) on the console; ctrl-a x ends the machine
//! launcher exec  [OPTIONS] PROGRAM [ARGUMENTS…]      copies the host's PROGRAM into the guest and runs it
//! launcher test  [OPTIONS] KERNEL [FILTER]           runs a test kernel
//! launcher debug [OPTIONS] [PROGRAM [ARGUMENTS…]]    as run or exec, waiting for gdb
//! launcher KERNEL [ARGUMENTS…]                       Cargo's runner: `pinfold` is run, any other kernel tested
//!
//! --kernel PATH  --loader PATH  --busybox PATH  --file HOST:GUEST  --append WORDS  --env NAME=VALUE
//! --smp N  --mem SIZE  --cpu MODEL  --timeout SECONDS  --icount  --qemu-arg ARGUMENT  --gdb-port PORT
//! --make-variables   take PROG ARGS FILES SMP MEM CPU TIMEOUT ICOUNT APPEND QEMU_ARGS KERNEL from the environment,
//!                    where make puts them; lists are split into words with a shell's quotes
//! ```
//!
//! Without `--kernel` and `--loader` Cargo builds both. The exit status is the guest's; 124 means the time limit and
//! 125 that there is no verdict, with the reason on stderr.

use crate::{Config, Error, GuestFile, Mode, Output, run, words};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a program may run when nobody says.
const EXEC_LIMIT: u64 = 600;
const DEFAULT_PORT: u16 = 1234;

/// The root of the workspace that this launcher was built in.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).into()
}

/// Where Cargo puts what it builds for the bare machine.
pub fn built(profile: &str, name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or(workspace().join("target"), PathBuf::from);
    target.join("x86_64-unknown-none").join(profile).join(name)
}

/// A command line, understood.
#[derive(Debug)]
struct Request {
    config: Config,
    /// Whether the kernel is still to be built.
    build_kernel: bool,
    /// The program cannot be run: why, and a shell's status for it.
    refusal: Option<(u8, String)>,
}

/// Runs the command; `variable` reads the environment. The result is the exit status.
pub fn main(
    arguments: Vec<String>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<u8, Error> {
    if matches!(
        arguments.first().map(String::as_str),
        None | Some("help" | "-h" | "--help")
    ) {
        eprintln!(
            "usage: launcher run|exec|test|debug [OPTIONS] [PROGRAM [ARGUMENTS]]; see boot/launcher/src/cli.rs"
        );
        return Ok(if arguments.is_empty() {
            crate::verdict::NO_VERDICT
        } else {
            0
        });
    }
    let mut request = parse(arguments, variable)?;
    if let Some((status, why)) = request.refusal {
        eprintln!("launcher: {why}");
        return Ok(status);
    }
    if request.build_kernel {
        build_kernel()?;
    }
    let config = &mut request.config;
    if let Some(port) = config.gdb {
        tell_how_to_attach(config, port);
    }
    let outcome = run(config)?;
    if let Some(message) = outcome.message {
        eprintln!("launcher: {message}");
    }
    Ok(outcome.status)
}

fn parse(
    arguments: Vec<String>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Request, Error> {
    let mut words = arguments.into_iter();
    let verb = words.next().unwrap_or_default();
    let mut config = Config::new("", Mode::Shell);
    config.output = Output::Stream;
    let mut timeout = None;
    let mut port = DEFAULT_PORT;
    let mut rest = Vec::new();
    let is_verb = matches!(verb.as_str(), "run" | "exec" | "test" | "debug");
    if !is_verb {
        rest.push(verb.clone());
        rest.extend(words);
    } else {
        while let Some(word) = words.next() {
            if !word.starts_with("--") {
                rest.push(word);
                rest.extend(words);
                break;
            }
            let mut value = || {
                words
                    .next()
                    .ok_or_else(|| Error(format!("{word} needs a value")))
            };
            match word.as_str() {
                "--" => {
                    rest.extend(words);
                    break;
                }
                "--kernel" => config.kernel = value()?.into(),
                "--loader" => config.loader = Some(value()?.into()),
                "--busybox" => config.busybox = Some(value()?.into()),
                "--file" => config.files.push(guest_file(&value()?)?),
                "--append" => append(&mut config, &value()?),
                "--env" => config.env.push(value()?),
                "--smp" => config.smp = number("--smp", &value()?)?,
                "--mem" => config.mem = value()?,
                "--cpu" => config.cpu = Some(value()?),
                "--timeout" => timeout = Some(seconds(&value()?)?),
                "--icount" => config.icount = true,
                "--qemu-arg" => config.qemu_args.push(value()?),
                "--gdb-port" => port = number("--gdb-port", &value()?)?,
                "--make-variables" => {
                    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
                    if let Some(program) = set("PROG").filter(|_| verb != "run") {
                        rest.push(program);
                        rest.extend(words::split(&set("ARGS").unwrap_or_default())?);
                    } else if verb == "exec" {
                        return Err(Error("which program? make exec PROG=path".into()));
                    }
                    config.kernel = set("KERNEL").map_or(config.kernel, PathBuf::from);
                    for file in words::split(&set("FILES").unwrap_or_default())? {
                        config.files.push(guest_file(&file)?);
                    }
                    if let Some(smp) = set("SMP") {
                        config.smp = number("SMP", &smp)?;
                    }
                    config.mem = set("MEM").unwrap_or(config.mem);
                    config.cpu = set("CPU").or(config.cpu);
                    if let Some(limit) = set("TIMEOUT") {
                        timeout = Some(seconds(&limit)?);
                    }
                    config.icount |= set("ICOUNT").is_some_and(|value| value.trim() != "0");
                    append(&mut config, &set("APPEND").unwrap_or_default());
                    config
                        .qemu_args
                        .extend(words::split(&set("QEMU_ARGS").unwrap_or_default())?);
                }
                _ => return Err(Error(format!("unknown option {word}"))),
            }
        }
    }
    if !(1..=255).contains(&config.smp) {
        return Err(Error(format!("{} CPUs cannot be", config.smp)));
    }

    let mut build_kernel = config.kernel.as_os_str().is_empty();
    let mut rest = rest.into_iter();
    let mut limit = Duration::ZERO;
    let mut refusal = None;
    match verb.as_str() {
        "exec" => {
            let program = rest
                .next()
                .ok_or_else(|| Error("exec needs a program".into()))?;
            limit = Duration::from_secs(EXEC_LIMIT);
            refusal = refuse(&program);
            run_program(&mut config, &program, rest.collect());
        }
        "debug" => {
            config.gdb = Some(port);
            if let Some(program) = rest.next() {
                refusal = refuse(&program);
                run_program(&mut config, &program, rest.collect());
            }
        }
        "run" => config.argv = rest.collect(),
        _ => {
            config.kernel = rest
                .next()
                .ok_or_else(|| Error("test needs a kernel".into()))?
                .into();
            build_kernel = false;
            if is_verb
                || config
                    .kernel
                    .file_stem()
                    .is_some_and(|name| name != "pinfold")
            {
                config.mode = Mode::Test;
                limit = Duration::from_secs(EXEC_LIMIT);
                for filter in rest {
                    append(&mut config, &format!("test={filter}"));
                }
            } else {
                config.argv = rest.collect();
            }
        }
    }
    // A limit of nothing is none.
    config.timeout = Some(timeout.unwrap_or(limit)).filter(|limit| !limit.is_zero());
    if build_kernel {
        config.kernel = built("release", "pinfold");
    }
    Ok(Request {
        config,
        build_kernel,
        refusal,
    })
}

/// Why the host has no such program to copy, and what a shell's status for that is.
fn refuse(program: &str) -> Option<(u8, String)> {
    match std::fs::metadata(program) {
        Err(error) => Some((127, format!("cannot find the program {program}: {error}"))),
        Ok(found) if !found.is_file() => Some((126, format!("{program} is not a file"))),
        Ok(_) => None,
    }
}

/// The host's `program`, copied to the guest's `/root` and run there.
fn run_program(config: &mut Config, program: &str, arguments: Vec<String>) {
    let host = PathBuf::from(program);
    let name = host.file_name().unwrap_or_default().to_string_lossy();
    let guest = format!("/root/{name}");
    config.mode = Mode::Exec;
    config.argv = std::iter::once(guest.clone()).chain(arguments).collect();
    config.files.push(GuestFile { host, guest });
}

/// `HOST:GUEST`; the guest's path has no colon.
fn guest_file(text: &str) -> Result<GuestFile, Error> {
    match text.rsplit_once(':') {
        Some((host, guest)) if !host.is_empty() => Ok(GuestFile {
            host: host.into(),
            guest: guest.into(),
        }),
        _ => Err(Error(format!("{text}: a file is named as host:guest"))),
    }
}

fn append(config: &mut Config, words: &str) {
    config.cmdline.push(' ');
    config.cmdline.push_str(words);
}

fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, Error> {
    text.trim()
        .parse()
        .map_err(|_| Error(format!("{what}: {text} is not a number")))
}

fn seconds(text: &str) -> Result<Duration, Error> {
    let seconds: f64 = number("time limit", text)?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Error(format!("time limit: {text} is no time")))
}

fn build_kernel() -> Result<(), Error> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(workspace())
        .stdout(Stdio::null())
        .stdin(Stdio::null());
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "kernel",
        "--target",
        "x86_64-unknown-none",
    ]);
    match cargo.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Error("the kernel does not build".into())),
        Err(error) => Err(Error(format!("cannot run cargo: {error}"))),
    }
}

/// The gdb commands, on stderr before the machine waits.
fn tell_how_to_attach(config: &Config, port: u16) {
    let attach = format!("-ex 'target remote localhost:{port}'");
    eprintln!("The machine waits for gdb. For the kernel, in another terminal:");
    eprintln!(
        "  gdb {} {attach} -ex 'hbreak _start'",
        config.kernel.display()
    );
    let guest = config
        .files
        .last()
        .map(|file| file.host.display().to_string());
    let guest = guest.unwrap_or("PROGRAM".into());
    eprintln!("for a guest program (static, with symbols):");
    eprintln!("  gdb {guest} {attach} -ex 'hbreak main'");
    eprintln!("for both:");
    eprintln!(
        "  gdb {} {attach} -ex 'add-symbol-file {guest}' -ex 'hbreak main'",
        config.kernel.display()
    );
    eprintln!(
        "Then `continue`. A static-PIE program lies where /proc/PID/maps says: `add-symbol-file {guest} -o BASE`."
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Request, Error> {
        let arguments = arguments.iter().map(|word| word.to_string()).collect();
        let find = |name: &str| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value.to_string())
        };
        parse(arguments, &find)
    }

    #[test]
    fn make_variables_become_a_machine() {
        let variables = [
            ("PROG", "/bin/sh"),
            ("ARGS", "-c 'echo a  b' ''"),
            ("FILES", "/etc/passwd:/etc/x '/a b:c':/d"),
            ("SMP", "4"),
            ("MEM", "64M"),
            ("CPU", "qemu64"),
            ("TIMEOUT", "1.5"),
            ("APPEND", "log=debug movable=1M"),
            ("QEMU_ARGS", "-machine q35 -name 'a b'"),
        ];
        let config = parsed(&["exec", "--make-variables"], &variables)
            .unwrap()
            .config;
        assert_eq!(config.argv, ["/root/sh", "-c", "echo a  b", ""]);
        let file = |host: &str, guest: &str| GuestFile {
            host: host.into(),
            guest: guest.into(),
        };
        assert_eq!(
            config.files,
            [
                file("/etc/passwd", "/etc/x"),
                file("/a b:c", "/d"),
                file("/bin/sh", "/root/sh")
            ]
        );
        assert_eq!(
            (config.smp, config.mem.as_str(), config.cpu.as_deref()),
            (4, "64M", Some("qemu64"))
        );
        assert_eq!(config.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(config.cmdline.trim(), "log=debug movable=1M");
        assert_eq!(config.qemu_args, ["-machine", "q35", "-name", "a b"]);
        assert_eq!((config.mode, config.icount), (Mode::Exec, false));
    }

    #[test]
    fn empty_variables_mean_the_defaults() {
        let variables = [
            ("PROG", "/bin/sh"),
            ("SMP", ""),
            ("MEM", " "),
            ("ICOUNT", "1"),
            ("TIMEOUT", ""),
        ];
        let config = parsed(&["exec", "--make-variables"], &variables)
            .unwrap()
            .config;
        assert_eq!(
            (config.smp, config.mem.as_str(), config.icount),
            (2, "1G", true)
        );
        assert_eq!(config.timeout, Some(Duration::from_secs(EXEC_LIMIT)));
        let config = parsed(&["run", "--make-variables"], &[]).unwrap().config;
        assert_eq!(
            (config.mode, config.timeout, config.argv.len()),
            (Mode::Shell, None, 0)
        );
    }

    #[test]
    fn the_runner_tells_kernels_from_tests() {
        let config = parsed(&["target/release/pinfold", "/bin/ls"], &[])
            .unwrap()
            .config;
        assert_eq!(
            (config.mode, config.argv.as_slice()),
            (Mode::Shell, &["/bin/ls".to_string()][..])
        );
        let request = parsed(&["target/debug/deps/tlb-0123", "flush"], &[]).unwrap();
        assert_eq!(
            (request.config.mode, request.config.cmdline.trim()),
            (Mode::Test, "test=flush")
        );
        assert!(!request.build_kernel);
        let config = parsed(&["test", "--smp", "4", "pinfold", "--timeout"], &[])
            .unwrap()
            .config;
        assert_eq!(
            (config.mode, config.smp, config.cmdline.trim()),
            (Mode::Test, 4, "test=--timeout")
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parsed(&["exec", "--make-variables"], &[]).is_err());
        assert!(parsed(&["run", "--smp", "0"], &[]).is_err());
        assert!(parsed(&["run", "--smp"], &[]).is_err());
        assert!(parsed(&["run", "--fast"], &[]).is_err());
        assert!(parsed(&["run", "--file", "x"], &[]).is_err());
        assert!(parsed(&["exec", "--timeout", "-1", "/bin/sh"], &[]).is_err());
    }

    #[test]
    fn a_program_that_cannot_run_has_a_shells_status() {
        for verb in ["exec", "debug"] {
            let refusal = |program| parsed(&[verb, program], &[]).unwrap().refusal;
            assert_eq!(
                refusal("/no/such/program").map(|(status, _)| status),
                Some(127)
            );
            assert_eq!(refusal("/").map(|(status, _)| status), Some(126));
            assert_eq!(refusal("/bin/sh"), None);
        }
    }
}
