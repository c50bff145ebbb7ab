//! The store's name on the command line: `redb:PATH` or `memory`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{AnyStore, MemoryStore, RedbStore};

/// Which store to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// Lost when the process ends.
    Memory,
    /// A file.
    Redb(PathBuf),
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a store's name.
    #[error("\"{0}\" is not a store; use redb:PATH or memory")]
    Unknown(String),
    /// A store of a later version.
    #[error("\"{0}\": etcd is not built in this version; use redb:PATH or memory")]
    EtcdNotBuilt(String),
    /// The file.
    #[error("can't open the store {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
}

impl StoreUrl {
    /// Opens it.
    ///
    /// # Errors
    /// [`OpenError::File`].
    pub fn open(&self) -> Result<AnyStore, OpenError> {
        match self {
            Self::Memory => Ok(AnyStore::Memory(MemoryStore::default())),
            Self::Redb(path) => RedbStore::open(path)
                .map(AnyStore::Redb)
                .map_err(|source| OpenError::File { path: path.clone(), source }),
        }
    }
}

impl FromStr for StoreUrl {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<Self, OpenError> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            Some(("redb", path)) if !path.is_empty() => Ok(Self::Redb(path.into())),
            Some(("etcd", _)) => Err(OpenError::EtcdNotBuilt(text.to_owned())),
            None | Some(_) => Err(OpenError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Redb(path) => write!(f, "redb:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_stores_are_read_and_others_refused_by_name() {
        assert_eq!("memory".parse::<StoreUrl>().unwrap(), StoreUrl::Memory);
        let redb: StoreUrl = "redb:/var/lib/weir/x.redb".parse().unwrap();
        assert_eq!(redb.to_string(), "redb:/var/lib/weir/x.redb");
        for (bad, part) in [
            ("etcd:http://127.0.0.1:2379", "etcd is not built"),
            ("consul:x", "consul:x"),
            ("redb:", "redb:"),
            ("", "is not a store"),
        ] {
            let error = bad.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        std::fs::write(&path, "this is not a database").unwrap();
        let error = StoreUrl::Redb(path).open().unwrap_err();
        assert!(error.to_string().contains("text"), "{error}");
    }
}
