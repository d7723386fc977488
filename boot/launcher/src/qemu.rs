//! QEMU's command line.

use crate::{Config, Mode};
use std::fs::{self, File};

pub const QEMU: &str = "qemu-system-x86_64";

/// The arguments for one machine. `loader` and `archive` are paths that QEMU can open.
pub fn arguments(config: &Config, loader: &str, archive: &str) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(|word| word.to_string()));
    add(&[
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-kernel",
        loader,
        "-initrd",
        archive,
    ]);
    add(&["-m", &config.mem]);
    // The firmware takes memory, where the archive is, for each disk that it might boot from.
    add(&["-boot", "strict=on"]);
    add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    let console = match config.mode {
        Mode::Shell => "stdio,id=console,signal=off",
        _ => "file,id=console,path=/dev/stdout,append=on",
    };
    add(&["-chardev", console, "-serial", "chardev:console"]);
    add(&[
        "-chardev",
        "file,id=log,path=/dev/stderr,append=on",
        "-serial",
        "chardev:log",
    ]);

    let kvm = !config.icount && has_kvm();
    let cpu = match (&config.cpu, config.icount) {
        (Some(model), _) => model,
        (None, true) => "max,-erms,-fsrm",
        (None, false) => "max",
    };
    add(&["-cpu", cpu]);
    if config.icount {
        add(&[
            "-smp",
            "1",
            "-icount",
            "shift=0,sleep=off",
            "-accel",
            "tcg,thread=single",
        ]);
    } else {
        add(&[
            "-smp",
            &config.smp.to_string(),
            "-accel",
            if kvm { "kvm" } else { "tcg,thread=multi" },
        ]);
    }
    if let Some(port) = config.gdb {
        add(&["-gdb", &format!("tcp:localhost:{port}"), "-S"]);
    }
    list.extend(config.qemu_args.iter().cloned());
    list
}

/// A `/dev/kvm` that opens is no proof: on some machines that have one, guests hang. The CPU must say so too.
fn has_kvm() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm")
        && File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

/// Bytes that a `-m` argument means; `None` when it is not a plain size.
pub fn memory_size(mem: &str) -> Option<u64> {
    let mem = mem.trim_start_matches("size=");
    let digits = mem.find(|c: char| !c.is_ascii_digit()).unwrap_or(mem.len());
    let shift = match &mem[digits..] {
        "" | "M" | "m" => 20,
        "K" | "k" => 10,
        "G" | "g" => 30,
        _ => return None,
    };
    mem[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::new("k", Mode::Exec);
        change(&mut config);
        arguments(&config, "l", "a").join(" ")
    }

    #[test]
    fn counting_means_one_plain_cpu() {
        let line = line(|config| (config.icount, config.smp) = (true, 4));
        assert!(
            line.contains("-smp 1 -icount shift=0,sleep=off -accel tcg,thread=single"),
            "{line}"
        );
        assert!(line.contains("-cpu max,-erms,-fsrm"), "{line}");
    }

    #[test]
    fn options_reach_qemu() {
        let line = line(|config| {
            (config.smp, config.mem) = (4, "64M".into());
            config.cpu = Some("qemu64".into());
            config.qemu_args = vec!["-machine".into(), "q35".into()];
        });
        assert!(
            line.contains("-m 64M") && line.contains("-smp 4") && line.contains("-cpu qemu64"),
            "{line}"
        );
        assert!(line.ends_with("-machine q35"), "{line}");
    }

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        assert_eq!(memory_size("64"), Some(64 << 20));
        assert_eq!(memory_size("64M"), Some(64 << 20));
        assert_eq!(memory_size("2G"), Some(2 << 30));
        assert_eq!(memory_size("1G,slots=2"), None);
    }
}
