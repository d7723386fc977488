//! The loader in QEMU, given what it must refuse: one line that says why, and an exit code of its own.

use bootloader_api::BootloaderConfig;
use launcher::{Config, Mode, Outcome, run};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

const BASE: u64 = 0xffff_ffff_8000_0000;

/// What a kernel's ELF file says; the default is one that loads (and would then fault).
struct Kernel {
    machine: u16,
    kind: u16,
    entry: u64,
    address: u64,
    memory: u64,
    permissions: u32,
    config: Vec<u8>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            machine: 62,
            kind: 2,
            entry: BASE,
            address: BASE,
            memory: 4096,
            permissions: 5,
            config: BootloaderConfig::new_default().serialize().to_vec(),
        }
    }
}

impl Kernel {
    /// One segment over the file's first bytes, and the sections `.bootloader-config` and `.shstrtab`.
    fn bytes(&self) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.bootloader-config\0.shstrtab\0";
        let config_at = 64 + 56;
        let names_at = config_at + self.config.len();
        let sections_at = (names_at + NAMES.len()).next_multiple_of(8);
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let half = |file: &mut Vec<u8>, n: u16| file.extend(n.to_le_bytes());
        let word = |file: &mut Vec<u8>, n: u32| file.extend(n.to_le_bytes());
        let long = |file: &mut Vec<u8>, n: u64| file.extend(n.to_le_bytes());
        half(&mut file, self.kind);
        half(&mut file, self.machine);
        word(&mut file, 1);
        for n in [self.entry, 64, sections_at as u64] {
            long(&mut file, n);
        }
        word(&mut file, 0);
        for n in [64, 56, 1, 64, 3, 2] {
            half(&mut file, n);
        }
        word(&mut file, 1);
        word(&mut file, self.permissions);
        for n in [0, self.address, self.address, 64, self.memory, 4096] {
            long(&mut file, n);
        }
        file.extend(&self.config);
        file.extend(NAMES);
        file.resize(sections_at + 64, 0);
        for (name, kind, at, len) in [
            (1, 1, config_at, self.config.len()),
            (20, 3, names_at, NAMES.len()),
        ] {
            word(&mut file, name);
            word(&mut file, kind);
            for n in [2, 0, at as u64, len as u64, 0, 1, 0] {
                long(&mut file, n);
            }
            file.resize(file.len().next_multiple_of(8), 0);
        }
        file
    }
}

/// Boots `kernel` on a machine that `change` has changed.
fn boot(name: &str, kernel: &[u8], change: impl FnOnce(&mut Config)) -> Outcome {
    static SETUP: Once = Once::new();
    SETUP.call_once(|| {
        let script = launcher::cli::workspace().join("boot/setup.sh");
        assert!(Command::new("sh").arg(script).status().unwrap().success());
    });
    let path: PathBuf =
        std::env::temp_dir().join(format!("pinfold-loader-{name}-{}", std::process::id()));
    std::fs::write(&path, kernel).unwrap();
    let mut config = Config::new(&path, Mode::Exec);
    config.mem = "128M".into();
    config.timeout = Some(Duration::from_secs(60));
    change(&mut config);
    let outcome = run(&config);
    std::fs::remove_file(&path).unwrap();
    outcome.unwrap()
}

/// The loader refused with `code`, and its only line contains `why`.
#[track_caller]
fn assert_refused(outcome: &Outcome, code: u32, why: &str) {
    assert_eq!(outcome.status, 125, "{outcome:?}");
    assert_eq!(
        outcome.message.as_deref(),
        Some(&*format!("the loader gave up (code {code:#x})")),
        "{outcome:?}"
    );
    assert!(
        outcome.log.starts_with("pinfold loader: ") && outcome.log.contains(why),
        "{outcome:?}"
    );
    assert_eq!(
        (outcome.log.lines().count(), outcome.stdout.len()),
        (1, 0),
        "{outcome:?}"
    );
}

#[test]
fn an_archive_without_a_kernel_is_refused() {
    let archive =
        std::env::temp_dir().join(format!("pinfold-loader-archive-{}", std::process::id()));
    for content in [&b"no archive at all"[..], &[0; 4096]] {
        std::fs::write(&archive, content).unwrap();
        let outcome = boot("none", b"", |config| {
            config.qemu_args = vec!["-initrd".into(), archive.display().to_string()];
        });
        assert_refused(&outcome, 0x20, "no boot/kernel");
    }
    std::fs::remove_file(&archive).unwrap();
}

#[test]
fn a_malformed_kernel_is_refused() {
    let good = Kernel::default().bytes();
    let bad = |change: fn(&mut Kernel)| {
        let mut kernel = Kernel::default();
        change(&mut kernel);
        kernel.bytes()
    };
    let cases = [
        ("empty", vec![], "malformed kernel"),
        ("text", b"this is not a kernel".to_vec(), "malformed kernel"),
        ("short", good[..100].to_vec(), "malformed kernel"),
        (
            "shorter",
            good[..good.len() - 1].to_vec(),
            "malformed kernel",
        ),
        ("machine", bad(|k| k.machine = 3), "not for x86-64"),
        ("pie", bad(|k| k.kind = 3), "fixed address"),
        ("entry", bad(|k| k.entry = BASE + 4096), "entry"),
        ("data", bad(|k| k.permissions = 4), "entry"),
        ("wx", bad(|k| k.permissions = 7), "writable and executable"),
        (
            "low",
            bad(|k| (k.address, k.entry) = (0x20_0000, 0x20_0000)),
            "upper half",
        ),
        ("wrap", bad(|k| k.memory = u64::MAX), "wraps"),
        ("small", bad(|k| k.memory = 8), "outside the file"),
        ("config", bad(|k| k.config[0] ^= 1), "UUID"),
        ("length", bad(|k| k.config.truncate(100)), "len"),
    ];
    for (name, kernel, why) in cases {
        assert_refused(&boot(name, &kernel, |_| {}), 0x21, why);
    }
}

#[test]
fn too_little_memory_is_said() {
    let kernel = Kernel {
        memory: 256 << 20,
        ..Kernel::default()
    };
    assert_refused(
        &boot("memory", &kernel.bytes(), |_| {}),
        0x22,
        "too little memory",
    );
}

#[test]
fn a_cpu_without_a_needed_feature_is_refused() {
    let cases = [
        ("qemu32", "long mode"),
        ("qemu64,-nx", "NX"),
        ("qemu64,-syscall", "SYSCALL"),
        ("qemu64,-sse2", "SSE2"),
        ("qemu64,-pge", "PGE"),
    ];
    for (cpu, feature) in cases {
        let outcome = boot("cpu", &Kernel::default().bytes(), |config| {
            config.cpu = Some(cpu.into())
        });
        assert_refused(&outcome, 0x23, feature);
    }
}

#[test]
fn a_kernel_that_faults_at_once_is_no_silence() {
    let outcome = boot("fault", &Kernel::default().bytes(), |_| {});
    assert_eq!(outcome.status, 125);
    assert!(outcome.message.unwrap().contains("triple fault"));
}

#[test]
fn the_time_limit_strikes() {
    // Stopped before its first instruction.
    let outcome = boot("limit", &Kernel::default().bytes(), |config| {
        config.timeout = Some(Duration::from_secs(1));
        config.qemu_args = vec!["-S".into()];
    });
    assert_eq!(outcome.status, 124);
}
