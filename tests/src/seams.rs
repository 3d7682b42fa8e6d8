//! Where the code may depend on the operating system: in seams, and nowhere else.
//!
//! A seam is a module that chooses between two halves with the same names. What it chooses
//! by condition are modules and their names, and no item of its own. A program that needs
//! one system to be of any use may say so in its first lines, for all of itself.

use std::fs;
use std::path::{Path, PathBuf};

/// The seams.
const SEAMS: [&str; 10] = [
    "backend/src/demo/mod.rs",
    "backend/src/engine/kernel/mod.rs",
    "backend/src/port/netmap/os/mod.rs",
    "backend/src/port/tap/mod.rs",
    "backend/src/port/xdp/mod.rs",
    "backend/src/sys/mod.rs",
    "bench/src/bin/paste-bench/main.rs",
    "guest-driver/src/transport/machine/mod.rs",
    "pmem-dev/src/sys/mod.rs",
    "tests/src/lib.rs",
];

/// Libraries of programs that are of one system as a whole.
const WHOLE: [&str; 2] = ["bench/src/lib.rs", "tests/packetdrill/src/lib.rs"];

/// What a condition by operating system is made of.
const NAMES: [&str; 6] =
    ["target_os", "target_family", "target_vendor", "target_env", "unix", "windows"];

/// A condition by operating system in a source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition<'a> {
    line: usize,
    /// Of the whole file or module that it stands in: `#![cfg(...)]`.
    is_inner: bool,
    /// What stands behind its attribute; empty if it is none.
    item: &'a str,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The length of what ends with the bracket that closes the one at its start.
fn bracketed(text: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

/// The same lines, with those that are comments emptied.
fn without_comments(text: &str) -> String {
    let code = |line: &'_ str| !line.trim_start().starts_with("//");
    text.lines().map(|line| if code(line) { line } else { "" }.to_owned() + "\n").collect()
}

/// The conditions by operating system in source text without comments.
fn conditions(text: &str) -> Vec<Condition<'_>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("cfg") {
        let (before, after) = text.split_at(at);
        let name = after.bytes().take_while(|&byte| is_word(byte)).count();
        let arguments = after[name..].trim_start_matches('!').trim_start();
        if before.bytes().last().is_some_and(is_word)
            || !["cfg", "cfg_attr"].contains(&&after[..name])
            || !arguments.starts_with('(')
        {
            continue;
        }
        let (condition, rest) = arguments.split_at(bracketed(arguments));
        let words = condition.split(|c: char| !c.is_ascii() || !is_word(c as u8));
        if !words.into_iter().any(|word| NAMES.contains(&word)) {
            continue;
        }
        let is_attribute = before.ends_with('[') && rest.starts_with(']');
        let mut item = if is_attribute { rest[1..].trim_start() } else { "" };
        while let Some(attribute) = item.strip_prefix('#') {
            item = attribute[bracketed(attribute)..].trim_start();
        }
        let line = before.lines().count().max(1);
        found.push(Condition { line, is_inner: before.ends_with("#!["), item });
    }
    found
}

/// Whether a seam may have an item by condition: a module's file, or names from one.
fn is_choice(item: &str) -> bool {
    let item = match item.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest[bracketed(rest)..].trim_start(),
        Some(rest) => rest.trim_start(),
        None => item,
    };
    let is_file = item.find(['{', ';']).is_some_and(|at| item[at..].starts_with(';'));
    item.starts_with("use ") || (item.starts_with("mod ") && is_file)
}

/// Whether a test program of a crate begins in this file: `tests/NAME.rs` or
/// `tests/NAME/main.rs`.
fn is_test_program(path: &str) -> bool {
    let Some((krate, inside)) = path.rsplit_once("tests/") else { return false };
    let is_first = match inside.split_once('/') {
        None => true,
        Some((_, file)) => file == "main.rs",
    };
    is_first && !krate.split('/').any(|folder| folder == "src")
}

/// What is wrong with the file at this path, line by line.
fn judge(path: &str, text: &str) -> Vec<String> {
    let text = without_comments(text);
    let may_be_whole = WHOLE.contains(&path) || is_test_program(path);
    let is_right = |condition: &Condition<'_>| match condition.is_inner {
        true => may_be_whole,
        false => SEAMS.contains(&path) && is_choice(condition.item),
    };
    let wrong = conditions(&text).into_iter().filter(|condition| !is_right(condition));
    wrong.map(|condition| format!("{path}:{}", condition.line)).collect()
}

/// Every source file below `dir`.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let is_ours = !name.as_encoded_bytes().starts_with(b".") && name != "target";
        if entry.file_type().unwrap().is_dir() && is_ours {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn systems_differ_in_the_seams_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    sources(root, &mut files);
    let mut wrong = Vec::new();
    let mut without: Vec<_> = SEAMS.into_iter().chain(WHOLE).collect();
    for file in &files {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap();
        let text = fs::read_to_string(file).unwrap();
        wrong.extend(judge(path, &text));
        if !conditions(&without_comments(&text)).is_empty() {
            without.retain(|seam| *seam != path);
        }
    }
    assert!(
        wrong.is_empty(),
        "conditions by operating system outside of seams: move what differs behind one, or a \
         new one into the list here:\n{}",
        wrong.join("\n")
    );
    assert!(without.is_empty(), "no seams any more, and still in the list: {without:?}");
}

#[test]
fn a_condition_is_found_wherever_it_stands() {
    // Put together, or they would be found here.
    let with = |text: &str| text.replace('C', "cfg").replace('O', "target_os = \"linux\"");
    let line = |text: &str| judge("backend/src/worker/mod.rs", &with(text));
    let at = |number| vec![format!("backend/src/worker/mod.rs:{number}")];
    assert_eq!(line("#[C(O)]\nmod linux;"), at(1));
    assert_eq!(line("//! #[C(O)]\n\n    #[C(all(test, not(O)))]\n    fn f() {}"), at(3));
    assert_eq!(line("let x = 1;\n#[C_attr(\n    not(O),\n    expect(dead_code)\n)]"), at(2));
    assert_eq!(line("if C!(unix) {}"), at(1));
    assert_eq!(line("#![C(O)]"), at(1));
    for other in ["#[C(test)]", "#[C(feature = \"unix_sockets\")]", "cfg_type(unix)", "// C(O)"] {
        assert!(line(other).is_empty(), "{other}");
    }

    let seam = |text: &str| judge("backend/src/sys/mod.rs", &with(text));
    assert!(
        seam("#[C(O)]\nmod linux;\n#[C(O)]\n#[doc(hidden)]\npub(crate) use linux::f;").is_empty()
    );
    for item in ["fn f() {}", "mod linux {}", "static X: u8 = 0;"] {
        let text = format!("mod linux;\n#[C(O)]\n{item}");
        assert_eq!(seam(&text), ["backend/src/sys/mod.rs:2"], "{item}");
    }
    assert_eq!(seam("#![C(O)]"), ["backend/src/sys/mod.rs:1"]);

    for (path, is_program) in [
        ("tests/tests/vm.rs", true),
        ("tests/tests/xdp/main.rs", true),
        ("tests/tests/xdp/times.rs", false),
        ("backend/tests/vhost_peer.rs", true),
        ("backend/src/lanes/tests.rs", false),
        ("backend/src/port/xdp/tests/main.rs", false),
        ("tests/src/sim/run.rs", false),
    ] {
        assert_eq!(judge(path, &with("#![C(O)]")).is_empty(), is_program, "{path}");
        assert_eq!(judge(path, &with("#[C(O)]\nmod linux;")).len(), 1, "{path}");
    }
}
