//! Rules on source files and documents.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::tree::{Violations, files, read};

const LINES_MAX: usize = 600;
/// Where frames, rings, maps and ioctls live.
const UNSAFE_ALLOWED: [&str; 3] = ["vrouter/afxdp", "vrouter/offload", "vrouter/netdev"];

/// The keyword `unsafe` outside the crates that may use it.
pub(crate) fn unsafe_code(root: &Path) -> Violations {
    let sources = files(root, &["rs"]);
    let checked = sources.iter().filter(|p| !UNSAFE_ALLOWED.iter().any(|dir| p.starts_with(dir)));
    let found = checked.flat_map(|path| {
        let code = code_only(&read(&root.join(path)));
        let lines = code.lines().enumerate().filter(|(_, line)| has_word(line, "unsafe"));
        let name = path.display();
        lines.map(|(i, _)| format!("{name}:{}: unsafe code", i + 1)).collect::<Vec<_>>()
    });
    found.collect()
}

/// Files with more lines than the limit, not counting a trailing test module.
pub(crate) fn file_lengths(root: &Path) -> Violations {
    let found = files(root, &["rs", "c", "h", "proto", "sh"]).into_iter().filter_map(|path| {
        let text = read(&root.join(&path));
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        let name = path.display();
        (lines > LINES_MAX).then(|| format!("{name}: {lines} lines, {LINES_MAX} are the limit"))
    });
    found.collect()
}

/// Decision records are `0001-what-was-decided.md`, begin with `# 0001: `, and have a number of
/// their own. Numbers may be missing: whoever works apart takes a block of them.
pub(crate) fn decisions(root: &Path) -> Violations {
    let directory = PathBuf::from("docs/decisions");
    let records = files(&root.join(&directory), &["md"]);
    let mut last = String::new();
    let violation = |record: PathBuf| {
        let path = directory.join(&record);
        let name = record.to_string_lossy();
        let number = name.get(..4).filter(|n| n.bytes().all(|c| c.is_ascii_digit()));
        let Some(number) = number.filter(|_| name.as_bytes().get(4) == Some(&b'-')) else {
            let path = path.display();
            return Some(format!("{path}: not named like 0001-what-was-decided.md"));
        };
        if number == std::mem::replace(&mut last, number.to_owned()) {
            return Some(format!("{}: another has its number", path.display()));
        }
        let heading = format!("# {number}: ");
        let headed = read(&root.join(&path)).starts_with(&heading);
        (!headed).then(|| format!("{}: does not begin with \"{heading}\"", path.display()))
    };
    records.into_iter().filter_map(violation).collect()
}

/// Every test that `docs/cni.md` names is there. A word in back quotes with five underscores is one.
pub(crate) fn named_tests(root: &Path) -> Violations {
    let document = PathBuf::from("docs/cni.md");
    let text = read(&root.join(&document));
    let is_test = |word: &&str| {
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        word.chars().all(part) && word.matches('_').count() >= 5
    };
    let named: BTreeSet<&str> = text.split('`').skip(1).step_by(2).filter(is_test).collect();
    let sources: Vec<String> =
        files(root, &["rs"]).iter().map(|path| read(&root.join(path))).collect();
    let exists = |name: &str| sources.iter().any(|source| has_word(source, name));
    let missing = named.into_iter().filter(|name| !exists(name));
    missing.map(|name| format!("{}: there is no test {name}", document.display())).collect()
}

/// Rust source with comments and literals blanked, line breaks kept.
fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| literal(rest, code.chars().last()));
        let length = skipped.unwrap_or(first.len_utf8());
        let (token, tail) = rest.split_at(length);
        match skipped {
            Some(_) => code.extend(token.chars().map(|c| if c == '\n' { '\n' } else { ' ' })),
            None => code.push(first),
        }
        rest = tail;
    }
    code
}

/// Length of the comment at the start of `text`. Block comments nest.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    text.starts_with("/*").then_some(())?;
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        let step = match here {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            return Some(at);
        }
    }
    Some(text.len())
}

/// Length of the string or character literal at the start of `text`; `before` is what comes before.
fn literal(text: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with('"') {
        return Some(quoted(text, '"'));
    }
    let hashes = text.strip_prefix('r').map(|t| t.len() - t.trim_start_matches('#').len());
    if let Some(hashes) = hashes.filter(|h| !in_word && text[1 + h..].starts_with('"')) {
        let end = format!("\"{}", "#".repeat(hashes));
        let start = 2 + hashes;
        return Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()));
    }
    // A lifetime has no quote behind its first character.
    let mut characters = text.strip_prefix('\'')?.chars();
    let character = characters.next()?;
    (character == '\\' || characters.next() == Some('\'')).then(|| quoted(text, '\''))
}

/// Length of a literal up to its closing quote, which a backslash can hide.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        if character == quote && !escaped {
            return at + 1;
        }
        escaped = character == '\\' && !escaped;
    }
    text.len()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}
