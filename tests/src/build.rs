//! Builds what the tests run: kernel, loader and test kernel through Cargo, guest programs through gcc, musl-gcc and
//! Cargo. Everything is incremental; nothing is built that no selected test needs.

use crate::catalogue::{Kind, Program};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

pub const BARE: &str = "x86_64-unknown-none";
const HOST: &str = "x86_64-unknown-linux-gnu";

/// What went wrong, to be shown to the user.
pub type Result<T> = std::result::Result<T, String>;

/// Runs a command to its end; what it said becomes the error.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {shown}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Err(format!("{shown} failed ({}):\n{out}{err}", output.status))
}

/// Installs what is missing; quick when nothing is.
pub fn set_up() -> Result<()> {
    run(Command::new("sh")
        .arg("boot/setup.sh")
        .current_dir(crate::root()))
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(crate::root());
    cargo
}

/// The loader and the kernel as `make run` starts it.
pub fn kernel() -> Result<PathBuf> {
    static ONCE: OnceLock<Result<PathBuf>> = OnceLock::new();
    ONCE.get_or_init(|| {
        loader()?;
        run(cargo().args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "kernel",
            "--target",
            BARE,
        ]))?;
        Ok(launcher::cli::built("release", "pinfold"))
    })
    .clone()
}

pub fn loader() -> Result<PathBuf> {
    run(cargo().args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "loader",
        "--target",
        BARE,
    ]))?;
    Ok(launcher::cli::built("release", "loader"))
}

/// The test kernel: poison, lock-order checks, overflow checks, and the in-kernel tests.
pub fn test_kernel() -> Result<PathBuf> {
    static ONCE: OnceLock<Result<PathBuf>> = OnceLock::new();
    ONCE.get_or_init(|| {
        loader()?;
        run(cargo().args([
            "build",
            "--quiet",
            "--profile",
            "checked",
            "--package",
            "test-kernel",
            "--target",
            BARE,
        ]))?;
        Ok(launcher::cli::built("checked", "test-kernel"))
    })
    .clone()
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|data| data.modified()).ok()
}

/// Builds one program.
pub fn program(program: &Program) -> Result<()> {
    match program.kind {
        Kind::Script => Ok(()),
        Kind::Rust => rust_programs(),
        _ => c_program(program),
    }
}

fn c_program(program: &Program) -> Result<()> {
    let sources = crate::root().join("tests/guest/c");
    let source = sources.join(format!("{}.c", program.source));
    let target = program.host_path();
    let headers = ["t.h", "ext4.h"].map(|name| modified(&sources.join(name)));
    let newest = headers.into_iter().fold(modified(&source), Option::max);
    if modified(&target) > newest {
        return Ok(());
    }
    fs::create_dir_all(crate::guest_dir()).map_err(|error| format!("target/guest: {error}"))?;
    let (compiler, flags): (_, &[&str]) = match program.kind {
        Kind::Static => ("gcc", &["-static"]),
        Kind::StaticPie => ("gcc", &["-static-pie", "-fPIE"]),
        Kind::Musl => ("musl-gcc", &["-static"]),
        _ => ("gcc", &[]),
    };
    // Linked under another name first: an interrupted build leaves nothing that looks finished.
    let unfinished = target.with_extension("unfinished");
    run(Command::new(compiler)
        .args(["-O2", "-w", "-pthread", "-std=gnu17"])
        // A failing CHECK names its file as the repository does.
        .arg(format!("-ffile-prefix-map={}/=", crate::root().display()))
        .args(flags)
        .arg("-o")
        .arg(&unfinished)
        .arg(&source)
        .arg("-lm"))?;
    fs::rename(&unfinished, &target).map_err(|error| format!("{}: {error}", target.display()))
}

/// All Rust guest programs, in one call of Cargo.
fn rust_programs() -> Result<()> {
    static ONCE: OnceLock<Result<()>> = OnceLock::new();
    ONCE.get_or_init(|| {
        let built = crate::root().join("target/guest-rust");
        run(cargo()
            .args([
                "build",
                "--quiet",
                "--profile",
                "guest",
                "--package",
                "guest",
                "--target",
                HOST,
            ])
            .arg("--target-dir")
            .arg(&built)
            .env_remove("RUSTFLAGS")
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-C target-feature=+crt-static",
            ))?;
        fs::create_dir_all(crate::guest_dir()).map_err(|error| format!("target/guest: {error}"))?;
        for name in ["rust_threads", "rust_std", "rust_heap"] {
            let from = built.join(HOST).join("guest").join(name);
            let to = crate::guest_dir().join(name);
            if modified(&to) < modified(&from) {
                fs::copy(&from, &to).map_err(|error| format!("{}: {error}", from.display()))?;
            }
        }
        Ok(())
    })
    .clone()
}

/// The interpreter and the libraries of a dynamically linked program: here, and where the guest expects them. With them
/// goes what glibc opens by name when a thread is cancelled.
pub fn libraries(program: &Program) -> Vec<(PathBuf, String)> {
    if program.kind == Kind::Dynamic {
        libraries_of(&program.host_path())
    } else {
        Vec::new()
    }
}

/// The same, of any program.
pub fn libraries_of(program: &Path) -> Vec<(PathBuf, String)> {
    let said = |command: &mut Command| {
        let output = command.output().map(|output| output.stdout);
        String::from_utf8_lossy(&output.unwrap_or_default()).into_owned()
    };
    // `libc.so.6 => /lib/… (0x…)` or `/lib64/ld-… (0x…)`.
    let mut found: Vec<(PathBuf, String)> = said(Command::new("ldd").arg(program))
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .filter_map(|path| Some((fs::canonicalize(path).ok()?, path.to_string())))
        .collect();
    let unwinder = "libgcc_s.so.1";
    let libc = found.iter().find_map(|(_, guest)| {
        let directory = guest.strip_suffix("libc.so.6")?;
        Some(format!("{directory}{unwinder}"))
    });
    let here = said(Command::new("gcc").arg(format!("-print-file-name={unwinder}")));
    if let (Some(guest), Ok(here)) = (libc, fs::canonicalize(here.trim())) {
        found.push((here, guest));
    }
    found
}
