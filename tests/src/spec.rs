//! The book's table of requirements: what each asks for, which tests name it, and which planted bug shows that they look.
//!
//! `spec.tsv` lists the requirements (SPEC.md, which the repository does not hold): ID, title, and how it stands. Nothing
//! there: a test names it. Else `waits:` for something that is not built, `dropped:` because there is nothing to build, or
//! `type:` because a program that breaks it does not compile.
//!
//! A Rust test names an ID in its documentation or its body, a guest program anywhere in its source; a scenario of
//! `guest/c/bugs.c` in the comment above it. A planted bug belongs to the test that `planted_bugs_are_caught` pairs it with.

use crate::build::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the table stands.
const PAGE: &str = "docs/src/spec.md";
/// Directories with tests, and whether a file's functions are tests without saying so.
const PLACES: [(&str, bool); 6] = [
    ("mm/src", false),
    ("mm/tests", false),
    ("mm/loom/tests", false),
    ("tests/kernel/src", false),
    ("tests/src", true),
    ("tests/guest/c", true),
];
/// Families of IDs that are not in the list: bugs have a page of their own, K is what the machine must have.
const ELSEWHERE: [&str; 2] = ["BUG", "K"];

struct Item {
    id: String,
    title: String,
    stands: String,
}

/// A place in a test that names requirements.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    file: String,
    name: String,
}

#[derive(Default)]
struct Found {
    names: BTreeMap<String, BTreeSet<Test>>,
    /// Planted bugs by the test that sees them.
    plants: BTreeMap<String, BTreeSet<u32>>,
}

fn items() -> Result<Vec<Item>> {
    let text = include_str!("../spec.tsv");
    text.lines()
        .map(|line| {
            let mut cells = line.split('\t');
            match (cells.next(), cells.next(), cells.next(), cells.next()) {
                (Some(id), Some(title), stands, None) => Ok(Item {
                    id: id.into(),
                    title: title.into(),
                    stands: stands.unwrap_or_default().into(),
                }),
                _ => Err(format!("spec.tsv: {line}")),
            }
        })
        .collect()
}

/// The IDs in a line, `POP-1 to POP-6` as six.
fn ids(line: &str) -> Vec<(String, u32)> {
    let mut all: Vec<(String, u32)> = Vec::new();
    let mut range = false;
    for word in line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        let id = word.split_once('-').and_then(|(family, n)| {
            let good = family
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
            let good = good && family.starts_with(|c: char| c.is_ascii_uppercase());
            Some((family.to_string(), n.parse::<u32>().ok()?)).filter(|_| good)
        });
        match id {
            Some((family, n)) => {
                let from = match all.last() {
                    Some((f, first)) if range && *f == family => first + 1,
                    _ => n,
                };
                all.extend((from..=n).map(|n| (family.clone(), n)));
                range = false;
            }
            None if word.is_empty() => {}
            None => range = word == "to",
        }
    }
    all
}

fn word_after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    let at = line.find(mark)?;
    if at > 0 && !line[..at].ends_with([' ', '(']) {
        return None;
    }
    let rest = &line[at + mark.len()..];
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    Some(&rest[..end]).filter(|name| !name.is_empty())
}

impl Found {
    fn add(&mut self, file: &str, name: &str, line: &str) {
        for (family, n) in ids(line) {
            let test = Test {
                file: file.into(),
                name: name.into(),
            };
            self.names
                .entry(format!("{family}-{n}"))
                .or_default()
                .insert(test);
        }
    }

    fn rust(&mut self, file: &str, text: &str, any: bool) {
        let stem = Path::new(file)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let (mut name, mut is_test, mut marked) = (stem.to_string(), true, false);
        let mut above = String::new();
        for line in text.lines() {
            let code = line.trim_start();
            if code.starts_with("///") {
                above.push_str(code);
                continue;
            }
            if code.starts_with("#[") {
                marked |= code.starts_with("#[test]");
                continue;
            }
            let test = word_after(code, "ktest!(");
            let new = test
                .or_else(|| word_after(code, "fn "))
                .filter(|_| !code.starts_with("//"));
            let module = word_after(code, "mod ").filter(|_| code.ends_with('{'));
            if let Some(new) = new.or(module) {
                name = new.into();
                is_test = marked || any || test.is_some() || module.is_some();
                marked = false;
                if is_test {
                    self.add(file, &name, &above);
                    let words: Vec<&str> = name.split('_').collect();
                    if let [family, n, ..] = words[..] {
                        let id = format!("{}-{n}", family.to_uppercase());
                        self.add(file, &name, &id);
                    }
                }
            }
            above.clear();
            if is_test {
                self.add(file, &name, line);
            }
            // `(7, "the_test_that_sees_it")`
            for pair in code.split('(').skip(1) {
                if let Some((n, seen)) = pair.split_once(", \"")
                    && let (Ok(n), Some((seen, _))) = (n.parse(), seen.split_once('"'))
                {
                    self.plants.entry(seen.into()).or_default().insert(n);
                }
            }
        }
    }

    fn scenarios(&mut self, file: &str, text: &str) {
        for block in text.split("\n\n") {
            let comment: String = block.lines().filter(|l| l.starts_with("//")).collect();
            let Some((_, n)) = ids(&comment)
                .into_iter()
                .find(|(family, _)| family == "BUG")
            else {
                continue;
            };
            let name = format!("bug::{n}");
            self.add(file, &name, &comment);
            if crate::bugs::NUMBERS.contains(&(n as u8)) {
                self.plants.entry(name).or_default().insert(n);
            }
        }
    }
}

fn files(dir: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    let list = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    for entry in list.flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, all)?;
        } else {
            all.push(path);
        }
    }
    all.sort();
    Ok(())
}

/// What the tests of the tree at `root` name.
fn found(root: &Path) -> Result<Found> {
    let mut found = Found::default();
    for (place, any) in PLACES {
        let mut all = Vec::new();
        files(&root.join(place), &mut all)?;
        for path in all {
            let file = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .display()
                .to_string();
            let text = fs::read_to_string(&path).map_err(|error| format!("{file}: {error}"))?;
            let tests = match text.find("#[cfg(test)]") {
                _ if place != "mm/src" || file.ends_with("tests.rs") => &text[..],
                Some(at) => &text[at..],
                None => continue,
            };
            if file.ends_with("/bugs.c") {
                found.scenarios(&file, tests);
            } else if let Some(stem) = file.strip_suffix(".c").and_then(|f| f.rsplit('/').next()) {
                found.add(&file, &format!("guest::{stem}"), tests);
            } else if file.ends_with(".rs") && !file.ends_with("/spec.rs") {
                found.rust(&file, tests, any);
            }
        }
    }
    Ok(found)
}

/// The page, and what is wrong with it: nobody's IDs and unknown ones.
fn page(root: &Path) -> Result<(String, Vec<String>)> {
    let (items, found) = (items()?, found(root)?);
    let mut wrong = Vec::new();
    for (id, tests) in &found.names {
        let family = id.split('-').next().unwrap_or_default();
        let known = ELSEWHERE.contains(&family) || items.iter().any(|item| item.id == *id);
        let ours = items
            .iter()
            .any(|item| item.id.split('-').next() == Some(family));
        if !known && ours {
            let test = tests.first().map(|t| format!("{}: {}", t.file, t.name));
            wrong.push(format!(
                "{id} is no requirement: {}",
                test.unwrap_or_default()
            ));
        }
    }
    let mut page = String::from(HEAD);
    for item in &items {
        let tests = found.names.get(&item.id);
        if item.stands.is_empty() && tests.is_none() {
            wrong.push(format!("{} ({}) is named by no test", item.id, item.title));
        }
        let mut cell: Vec<String> = Vec::new();
        let mut plants: BTreeSet<u32> = BTreeSet::new();
        for test in tests.into_iter().flatten() {
            plants.extend(found.plants.get(&test.name).into_iter().flatten());
            let file = test
                .file
                .strip_prefix("tests/guest/c/")
                .unwrap_or(&test.file);
            cell.push(match test.name.contains("::") {
                true => format!("`{}`", test.name),
                false => format!("`{file}`: `{}`", test.name),
            });
        }
        if !item.stands.is_empty() {
            cell.push(item.stands.clone());
        }
        let plants: Vec<String> = plants.iter().map(|n| format!("[{n}](bugs.md)")).collect();
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} |",
            item.id,
            item.title,
            cell.join("<br>"),
            plants.join(" ")
        );
    }
    Ok((page, wrong))
}

const HEAD: &str = "\
# Requirements and their tests

<!-- Made from tests/spec.tsv and the tests' sources: `BLESS=1 cargo test -p tests --lib spec`. -->

What this kernel's memory management has to do, by the IDs that comments and tests use; which tests name each; and the
[historic bugs](bugs.md) that, planted, one of these tests sees. `guest::NAME` runs a program on 1, 2 and 4 CPUs, `bug::N` a
scenario on 4; both are filters for `cargo test`. *waits*: for what is not built yet. *dropped*: nothing here to build.
*type*: what breaks it does not compile.

| ID | what | tests | planted bugs |
|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_one_by_one_and_in_ranges() {
        let found = ids("/// FAST-3, `POP-1 to POP-3`, VMA-15's; x-86, UTF-8 and PIN-x");
        let shown: Vec<String> = found.iter().map(|(f, n)| format!("{f}-{n}")).collect();
        assert_eq!(
            shown,
            ["FAST-3", "POP-1", "POP-2", "POP-3", "VMA-15", "UTF-8"]
        );
    }

    /// Each requirement in scope has a test, each ID in a test is one, and the book says which.
    #[test]
    fn the_book_has_every_requirement() {
        let root = crate::root();
        let (page, wrong) = page(&root).unwrap();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let path = root.join(PAGE);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, &page).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            there == page,
            "{PAGE} is old: BLESS=1 cargo test -p tests --lib spec"
        );
    }
}
