//! The guest programs, one line each.

use std::path::PathBuf;

/// How a program is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `guest/c/SOURCE.c`, static, glibc.
    Static,
    /// The same, static and position-independent.
    StaticPie,
    /// The same with musl.
    Musl,
    /// The same, dynamically linked: interpreter and libraries travel along.
    Dynamic,
    /// `guest/rust/src/bin/SOURCE.rs`, static, std.
    Rust,
    /// `guest/sh/SOURCE.sh`, run by busybox.
    Script,
}

/// One guest program and how it is run.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub name: &'static str,
    pub kind: Kind,
    pub source: &'static str,
    pub args: &'static [&'static str],
    /// Time limit in the guest.
    pub seconds: u32,
    /// Whether the host's Linux runs it too and must say the same; else it only has to succeed.
    pub compare: bool,
}

const fn program(name: &'static str, kind: Kind, source: &'static str) -> Program {
    Program {
        name,
        kind,
        source,
        args: &[],
        seconds: 60,
        compare: true,
    }
}

const fn c(name: &'static str) -> Program {
    program(name, Kind::Static, name)
}

/// A program that checks itself: the host's Linux may lack what it is about.
const fn alone(name: &'static str) -> Program {
    Program {
        compare: false,
        ..c(name)
    }
}

/// Everything that runs in the batches.
pub const PROGRAMS: &[Program] = &[
    c("mm_errno"),
    c("mm_map"),
    c("mlock"),
    c("cow"),
    c("shared"),
    c("segv"),
    c("signals"),
    c("ptrace"),
    Program {
        args: &["exitkill"],
        compare: false,
        ..program("ptrace_exit", Kind::Static, "ptrace")
    },
    c("coredump"),
    Program {
        args: &["patterns"],
        compare: false,
        ..program("coredump_patterns", Kind::Static, "coredump")
    },
    c("futex"),
    c("threads"),
    c("proc"),
    c("exec"),
    c("elf_bad"),
    c("sigframe"),
    c("limits"),
    c("pipes"),
    c("splice"),
    c("packets"),
    c("vmsplice"),
    c("process_vm"),
    c("debugfs"),
    Program {
        compare: false,
        ..c("gup_device")
    },
    Program {
        compare: false,
        ..c("compound")
    },
    c("fs"),
    c("procfs"),
    c("pagemap"),
    alone("softdirty"),
    c("pkeys"),
    c("uring"),
    program("aio_file", Kind::Static, "aio"),
    c("vsyscall"),
    c("secretmem"),
    c("clock"),
    c("avx"),
    c("crowd"),
    c("storm"),
    program("segv_pie", Kind::StaticPie, "segv"),
    program("exec_pie", Kind::StaticPie, "exec"),
    program("cow_musl", Kind::Musl, "cow"),
    program("threads_musl", Kind::Musl, "threads"),
    program("signals_musl", Kind::Musl, "signals"),
    program("pipes_musl", Kind::Musl, "pipes"),
    program("storm_musl", Kind::Musl, "storm"),
    program("dynamic", Kind::Dynamic, "dynamic"),
    program("threads_dynamic", Kind::Dynamic, "threads"),
    program("rust_threads", Kind::Rust, "rust_threads"),
    program("rust_std", Kind::Rust, "rust_std"),
    program("rust_heap", Kind::Rust, "rust_heap"),
    Program {
        args: &["/tests/bin/rust_threads"],
        ..program("tour", Kind::Script, "tour")
    },
    Program {
        args: &["1", "4000", "6"],
        seconds: 300,
        compare: false,
        ..program("fuzz", Kind::Static, "fuzz")
    },
    Program {
        args: &["20261121", "4000", "6"],
        seconds: 300,
        compare: false,
        ..program("fuzz_again", Kind::Static, "fuzz")
    },
];

/// Programs that tests with a machine of their own run.
pub const ALONE: &[Program] = &[
    c("oom"),
    c("init"),
    c("status"),
    c("traced"),
    c("rsp"),
    c("crash"),
    c("bugs"),
    c("pinners"),
    c("direct"),
    c("cached"),
    c("ext4"),
    c("calls"),
    c("flights"),
    c("meanwhile"),
    c("aio"),
    c("edu"),
    c("stray"),
    c("devmem"),
    c("bare"),
    c("fb"),
    c("unplug"),
];

impl Program {
    /// Where the built program is; for a script, the script.
    pub fn host_path(&self) -> PathBuf {
        match self.kind {
            Kind::Script => crate::root().join(format!("tests/guest/sh/{}.sh", self.source)),
            Kind::Rust => crate::guest_dir().join(self.source),
            _ => crate::guest_dir().join(self.file_name()),
        }
    }

    fn file_name(&self) -> String {
        let suffix = match self.kind {
            Kind::Static | Kind::Rust | Kind::Script => "",
            Kind::StaticPie => "_pie",
            Kind::Musl => "_musl",
            Kind::Dynamic => "_dynamic",
        };
        format!("{}{suffix}", self.source)
    }

    /// Where it is in the guest.
    pub fn guest_path(&self) -> String {
        let path = self.host_path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("/tests/bin/{name}")
    }

    /// The words that run it in the guest.
    pub fn guest_command(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        if self.kind == Kind::Script {
            words.extend(["/bin/busybox".into(), "sh".into()]);
        }
        words.push(self.guest_path());
        words.extend(self.args.iter().map(|arg| arg.to_string()));
        words
    }

    /// The command that runs it alone.
    pub fn make_command(&self, smp: u32) -> String {
        let local = |path: PathBuf| {
            let short = path.strip_prefix(crate::root()).map(PathBuf::from);
            short.unwrap_or(path).display().to_string()
        };
        let mut files: Vec<String> = crate::build::libraries(self)
            .iter()
            .map(|(host, guest)| format!("{}:{guest}", host.display()))
            .collect();
        let (program, mut args) = match self.kind {
            Kind::Script => {
                files.push(format!("{}:{}", local(self.host_path()), self.guest_path()));
                files.push("target/guest/rust_threads:/tests/bin/rust_threads".into());
                (
                    "/bin/busybox".to_string(),
                    format!("sh {} ", self.guest_path()),
                )
            }
            _ => (local(self.host_path()), String::new()),
        };
        args.push_str(&self.args.join(" "));
        let mut command = format!("make exec PROG={program} SMP={smp}");
        if !args.trim().is_empty() {
            command.push_str(&format!(" ARGS=\"{}\"", args.trim()));
        }
        if !files.is_empty() {
            command.push_str(&format!(" FILES=\"{}\"", files.join(" ")));
        }
        command
    }
}
