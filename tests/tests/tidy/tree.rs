//! Source trees: walking one, and planting one for a check to fail on.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// What a check found, one sentence each, sorted.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Violations(Vec<String>);

impl Violations {
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn one(text: &str) -> Self {
        Self(vec![text.to_owned()])
    }
}

impl FromIterator<String> for Violations {
    fn from_iter<I: IntoIterator<Item = String>>(found: I) -> Self {
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort();
        Self(found)
    }
}

impl fmt::Debug for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no violation");
        }
        self.0.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

/// All files under `root` with one of the extensions, as paths relative to it, sorted. Build
/// products and hidden directories are left out. A directory that is not there is empty.
pub(crate) fn files(root: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        if !directory.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&directory).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                directories.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path.strip_prefix(root).expect("it is under root").to_path_buf());
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A source tree in a directory of its own, removed with this value.
pub(crate) struct Planted(tempfile::TempDir);

impl Planted {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.root().join(path)).expect("the file is there");
    }
}
