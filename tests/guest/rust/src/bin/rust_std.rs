//! Files, processes, pipes and the environment through Rust's std.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

fn files(root: &Path) -> io::Result<()> {
    let path = root.join("a.txt");
    fs::write(&path, "one\ntwo\nthree\n")?;
    let lines: Vec<String> = BufReader::new(File::open(&path)?)
        .lines()
        .collect::<Result<_, _>>()?;
    println!("lines {lines:?}");
    let mut file = OpenOptions::new().read(true).append(true).open(&path)?;
    writeln!(file, "four")?;
    file.seek(SeekFrom::Start(4))?;
    let mut rest = String::new();
    file.read_to_string(&mut rest)?;
    println!("rest {rest:?}");
    println!("length {}", fs::metadata(&path)?.len());
    fs::copy(&path, root.join("b.txt"))?;
    fs::rename(root.join("b.txt"), root.join("c.txt"))?;
    fs::hard_link(&path, root.join("d.txt"))?;
    std::os::unix::fs::symlink("a.txt", root.join("link"))?;
    fs::create_dir_all(root.join("x/y/z"))?;
    let mut names: Vec<_> = fs::read_dir(root)?
        .map(|entry| {
            entry.map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    entry.file_type().unwrap().is_dir(),
                )
            })
        })
        .collect::<Result<_, _>>()?;
    names.sort();
    println!("names {names:?}");
    println!("link {:?}", fs::read_link(root.join("link"))?);
    println!(
        "real {}",
        fs::canonicalize(root.join("x/../link"))?.ends_with("a.txt")
    );
    println!(
        "missing {:?}",
        File::open(root.join("none")).unwrap_err().kind()
    );
    println!(
        "is a directory {:?}",
        fs::write(root, "x").unwrap_err().kind()
    );
    println!(
        "not empty {:?}",
        fs::remove_dir(root.join("x")).unwrap_err().kind()
    );
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    fs::write(root.join("large"), &large)?;
    println!("large {}", fs::read(root.join("large"))? == large);
    Ok(())
}

fn processes() -> io::Result<()> {
    let me = std::env::current_exe()?;
    let output = Command::new(&me)
        .arg("child")
        .arg("spaced word")
        .env_clear()
        .env("K", "v")
        .output()?;
    print!("child said: {}", String::from_utf8_lossy(&output.stdout));
    println!(
        "status {:?}, stderr {:?}",
        output.status.code(),
        String::from_utf8_lossy(&output.stderr)
    );
    let mut echo = Command::new(&me)
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut to = echo.stdin.take().unwrap();
    let feeder =
        std::thread::spawn(move || (0..2000).for_each(|i| writeln!(to, "line {i}").unwrap()));
    let mut text = String::new();
    echo.stdout.take().unwrap().read_to_string(&mut text)?;
    feeder.join().unwrap();
    println!(
        "echoed {} lines, {}",
        text.lines().count(),
        echo.wait()?.success()
    );
    println!(
        "missing program {:?}",
        Command::new("/no/such").spawn().unwrap_err().kind()
    );
    let mut sleeper = Command::new(&me).arg("sleep").spawn()?;
    println!("still running {}", sleeper.try_wait()?.is_none());
    sleeper.kill()?;
    use std::os::unix::process::ExitStatusExt;
    println!("killed by {:?}", sleeper.wait()?.signal());
    println!(
        "aborted by {:?}",
        Command::new(&me).arg("abort").status()?.signal()
    );
    Ok(())
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => {
            println!(
                "{:?} {:?}",
                &arguments[2..],
                std::env::vars().collect::<Vec<_>>()
            );
            eprint!("to stderr");
            std::process::exit(41);
        }
        Some("cat") => {
            return io::copy(&mut io::stdin().lock(), &mut io::stdout().lock()).map(drop);
        }
        Some("sleep") => std::thread::sleep(std::time::Duration::from_secs(1000)),
        Some("abort") => std::process::abort(),
        _ => {}
    }
    let root = std::env::temp_dir().join("rust_std");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root)?;
    files(&root)?;
    fs::remove_dir_all(&root)?;
    println!("gone {}", !root.exists());
    processes()
}
