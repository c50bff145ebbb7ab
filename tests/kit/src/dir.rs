//! A directory for one topology: run directories, state, logs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cleanup::{held, remove_dir};
use crate::netns::{Purpose, unique};

/// A directory that is removed with everything in and mounted on it. With `WEIR_KEEP` set it
/// stays, for reading the logs of a failed run.
#[derive(Debug)]
pub struct DirGuard {
    path: PathBuf,
}

impl DirGuard {
    /// Makes an empty directory in the system's place for temporary files.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(purpose: Purpose, label: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(unique(purpose, label));
        held().dirs.insert(path.clone());
        let made = Self { path };
        fs::create_dir(&made.path).with_context(|| format!("making {}", made.path.display()))?;
        Ok(made)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DirGuard {
    fn drop(&mut self) {
        if std::env::var_os("WEIR_KEEP").is_none() && self.path.exists() {
            // A destructor has nobody to tell; what stays is found by `remove_leftovers`.
            drop(remove_dir(&self.path));
        }
        held().dirs.remove(&self.path);
    }
}
