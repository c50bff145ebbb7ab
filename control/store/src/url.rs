//! The store's name on the command line: `redb:PATH`, `etcd:URL,URL` or `memory`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{AnyStore, EtcdStore, MemoryStore, RedbStore};

/// Which store to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// Lost when the process ends.
    Memory,
    /// A file.
    Redb(PathBuf),
    /// The members of an etcd cluster, `http://HOST:PORT` each.
    Etcd(Vec<String>),
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a store's name.
    #[error("\"{0}\" is not a store; use redb:PATH, etcd:URL,URL or memory")]
    Unknown(String),
    /// Not an address of etcd.
    #[error("\"{0}\" is not an address of etcd; use http://HOST:PORT, several separated by commas")]
    Address(String),
    /// A way to etcd of a later version.
    #[error(
        "\"{0}\": TLS is not in this version; reach etcd over a network only you use, http://HOST:PORT"
    )]
    Tls(String),
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
    /// Opens it. A file is read at once; etcd is connected to in the background, from within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`OpenError::File`].
    pub fn open(&self) -> Result<AnyStore, OpenError> {
        match self {
            Self::Memory => Ok(AnyStore::Memory(MemoryStore::default())),
            Self::Redb(path) => RedbStore::open(path)
                .map(AnyStore::Redb)
                .map_err(|source| OpenError::File { path: path.clone(), source }),
            Self::Etcd(urls) => Ok(AnyStore::Etcd(EtcdStore::open(urls.clone()))),
        }
    }
}

impl FromStr for StoreUrl {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<Self, OpenError> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            Some(("redb", path)) if !path.is_empty() => Ok(Self::Redb(path.into())),
            Some(("etcd", urls)) => {
                urls.split(',').map(etcd_member).collect::<Result<_, _>>().map(Self::Etcd)
            }
            None | Some(_) => Err(OpenError::Unknown(text.to_owned())),
        }
    }
}

fn etcd_member(url: &str) -> Result<String, OpenError> {
    if url.starts_with("https://") {
        return Err(OpenError::Tls(url.to_owned()));
    }
    let bad = || OpenError::Address(url.to_owned());
    let uri: tonic::codegen::http::Uri = url.parse().map_err(|_bad| bad())?;
    let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let has_host = uri.host().is_some_and(|host| !host.is_empty()) && uri.port().is_some();
    let is_right = uri.scheme_str() == Some("http") && is_bare && has_host;
    if is_right { Ok(url.trim_end_matches('/').to_owned()) } else { Err(bad()) }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Redb(path) => write!(f, "redb:{}", path.display()),
            Self::Etcd(urls) => write!(f, "etcd:{}", urls.join(",")),
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
        let etcd: StoreUrl = "etcd:http://10.0.0.1:2379,http://e2:2379/".parse().unwrap();
        assert_eq!(etcd.to_string(), "etcd:http://10.0.0.1:2379,http://e2:2379");
        for (bad, part) in [
            ("etcd:https://127.0.0.1:2379", "TLS is not in this version"),
            ("etcd:", "\"\" is not an address of etcd"),
            ("etcd:http://e1:2379,", "\"\" is not an address of etcd"),
            ("etcd:e1:2379", "\"e1:2379\" is not an address of etcd"),
            ("etcd:http://e1", "\"http://e1\" is not an address of etcd"),
            ("etcd:http://e1:2379/x", "is not an address of etcd"),
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
