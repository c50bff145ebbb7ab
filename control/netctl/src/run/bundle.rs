//! `support-bundle`: what somebody who helps needs to see, in one tar file. It goes on when a part
//! cannot be had, since that is when it is needed; what is missing is said in it and on stderr.
//!
//! Nothing secret goes in: objects have no secrets, and files that are asked for are cleaned.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use control_api::v1;
use tar::{Builder, Header};

use super::{Done, Outcome, Runner};
use crate::args::{BundleArgs, KindName};
use crate::cleaned::cleaned;
use crate::data::{Data, DataError};
use crate::failure::Failure;
use crate::manifest;
use crate::page::{Page, page};
use crate::session::Session;

/// Of longer files the end is taken: it is what happened last.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The directory in the archive.
const TOP: &str = "weir-support";

const ABOUT: &str = "\
Made by `netctl support-bundle`.

versions.json    this netctl and the netmaster it asked
status.json      nodes and how far they are behind
objects.yaml     the configuration, as `netctl get -o yaml` prints it
endpoints.yaml   attached containers
leases.yaml      reserved addresses
netmaster/       its pages: metrics and readiness
metrics/         pages of the daemons named with --metrics
files/           files named with --include, cleaned: values of what looks like a
                 password, secret, token or key, private keys, and user names and
                 passwords in URLs are replaced
missing.txt      what could not be had, and why
";

impl Runner {
    pub(super) async fn bundle(&self, args: BundleArgs) -> Done {
        let failed = |source| Failure::Write { name: args.filename.display().to_string(), source };
        let mut options = OpenOptions::new();
        // It tells much of a network: for its owner alone, and never over another file.
        let file = options.write(true).create_new(true).mode(0o600).open(&args.filename);
        let mut archive = Archive::new(file.map_err(failed)?);
        archive.add("about.txt", ABOUT.as_bytes()).map_err(failed)?;
        for (name, part) in self.parts(&args).await {
            archive.take(&name, part).map_err(failed)?;
        }
        let missing = archive.finish().map_err(failed)?;
        let text = format!("Wrote {}\n", args.filename.display());
        Ok(Outcome { text, warnings: missing })
    }

    /// Everything that goes in, or why it can't.
    async fn parts(&self, args: &BundleArgs) -> Vec<(String, Result<String, Failure>)> {
        let versions = serde_json::json!({
            "netctl": env!("CARGO_PKG_VERSION"),
            "api": "control.v1",
            "netmaster": self.global.netmaster.to_string(),
        });
        let mut parts = vec![("versions.json".to_owned(), own(Data::Json.text(&versions)))];
        match Session::open(&self.global).await {
            Ok(mut session) => parts.extend(self.of_netmaster(&mut session).await),
            Err(failure) => parts.push(("status.json".to_owned(), Err(failure))),
        }
        let timeout = self.global.timeout;
        let pages = ["metrics", "readyz"].map(|name| {
            let page =
                page(&self.global.netmaster, name, timeout).map(Page::text).map_err(Failure::Io);
            (format!("netmaster/{name}"), page)
        });
        parts.extend(pages);
        parts.extend(args.metrics.iter().map(|target| {
            let name = target.to_string().replace([':', '/'], "_");
            (
                format!("metrics/{name}"),
                page(target, "metrics", timeout).map(Page::text).map_err(Failure::Io),
            )
        }));
        parts.extend(args.include.iter().enumerate().map(|(index, path)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let failed = |source| Failure::File { name: path.display().to_string(), source };
            (format!("files/{index}-{name}"), end_of(path).map(|t| cleaned(&t)).map_err(failed))
        }));
        parts
    }

    async fn of_netmaster(&self, session: &mut Session) -> Vec<(String, Result<String, Failure>)> {
        let status = self.look(session).await.and_then(|status| own(Data::Json.text(&status)));
        let mut parts = vec![("status.json".to_owned(), status)];
        for (name, kinds) in [
            ("objects.yaml", &KindName::CONFIGURATION[..]),
            ("endpoints.yaml", &[KindName::Endpoint]),
            ("leases.yaml", &[KindName::Lease]),
        ] {
            parts.push((name.to_owned(), dump(session, kinds).await));
        }
        parts
    }
}

async fn dump(session: &mut Session, kinds: &[KindName]) -> Result<String, Failure> {
    let mut objects: Vec<v1::Object> = Vec::new();
    for kind in kinds {
        objects.extend(session.objects(kind.kind(), None).await?);
    }
    own(manifest::write(&objects, Data::Yaml))
}

fn own(text: Result<String, DataError>) -> Result<String, Failure> {
    text.map_err(Failure::Data)
}

/// A file, or its end.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(FILE_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Archive {
    tar: Builder<File>,
    missing: Vec<String>,
}

impl Archive {
    fn new(file: File) -> Self {
        Self { tar: Builder::new(file), missing: Vec::new() }
    }

    /// Adds a part, or notes why it is missing.
    fn take(&mut self, name: &str, part: Result<String, Failure>) -> io::Result<()> {
        match part {
            Ok(text) => self.add(name, text.as_bytes()),
            Err(failure) => {
                self.missing.push(format!("{name} is missing: {failure}"));
                Ok(())
            }
        }
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        #[expect(clippy::disallowed_methods, reason = "the age of a file, for people")]
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        header.set_mtime(since.map_or(0, |since| since.as_secs()));
        self.tar.append_data(&mut header, format!("{TOP}/{name}"), bytes)
    }

    /// Ends the file; what is missing in it.
    fn finish(mut self) -> io::Result<Vec<String>> {
        if !self.missing.is_empty() {
            let text = self.missing.join("\n") + "\n";
            self.add("missing.txt", text.as_bytes())?;
        }
        self.tar.into_inner()?.sync_all()?;
        Ok(self.missing)
    }
}
