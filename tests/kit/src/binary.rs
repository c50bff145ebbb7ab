//! Finding the programs under test.

use std::env;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Result, bail};

/// Path of a built program of this workspace: in the directory that `WEIR_BIN_DIR` names, else the
/// newer of target/release and target/debug, so that a stale build of the other profile is never
/// what gets tested.
///
/// # Errors
/// When it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(dir) = env::var_os("WEIR_BIN_DIR") {
        let path = Path::new(&dir).join(name);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{} is not there (WEIR_BIN_DIR)", path.display());
    }
    let mut built: Vec<(SystemTime, PathBuf)> = target_dirs()
        .iter()
        .flat_map(|dir| ["release", "debug"].map(|profile| dir.join(profile).join(name)))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .collect();
    built.sort();
    match built.pop() {
        Some((_, path)) => Ok(path),
        None => bail!("{name} is not built: run `make build`"),
    }
}

/// The target directory this program itself lies in (target/PROFILE or target/PROFILE/deps), and
/// the workspace's own.
fn target_dirs() -> Vec<PathBuf> {
    let own = env::current_exe().unwrap_or_default();
    let above = own.ancestors().skip(2).take(2).map(Path::to_path_buf);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    above.chain([workspace]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_built_is_named() {
        let error = binary("no-such-program").unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
