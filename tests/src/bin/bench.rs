//! `make bench`.

fn main() -> std::process::ExitCode {
    tests::bench::main()
}
