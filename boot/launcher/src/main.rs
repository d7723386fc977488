//! The command: see [`launcher::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = std::env::args().skip(1).collect();
    match launcher::cli::main(arguments, &|name| std::env::var(name).ok()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("launcher: {error}");
            ExitCode::from(launcher::verdict::NO_VERDICT)
        }
    }
}
