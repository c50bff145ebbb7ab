//! `support-bundle`: what somebody who helps needs to see, in one tar file. It goes on when a part
//! cannot be had, since that is when it is needed; what is missing is said in it and on stderr.
//!
//! Nothing secret goes in: objects have no secrets, and files that are asked for are cleaned.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use control_api::v1;
use serde_json::json;
use tar::{Builder, Header};

use super::version::{API, CLIENT, first_of};
use super::{Done, Outcome, Runner};
use crate::args::{BundleArgs, KindName};
use crate::cleaned::cleaned;
use crate::data::{Data, DataError};
use crate::failure::Failure;
use crate::ip::{self, Which};
use crate::manifest;
use crate::page::{Page, page};
use crate::session::Session;
use crate::target::Target;

/// Of longer files the end is taken: it is what happened last.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The directory in the archive.
const TOP: &str = "weir-support";

const ABOUT: &str = "\
Made by `netctl support-bundle`.

versions.json    this netctl and each netmaster named with --netmaster
status.json      nodes, their versions and how far they are behind
objects.yaml     the configuration, as `netctl get -o yaml` prints it
endpoints.yaml   attached containers
leases.yaml      reserved addresses
addresses.yaml   addresses that are not free, as `netctl ip ls -a -o yaml` prints them
leaks.yaml       those that look leaked, as `netctl ip leaks -a -o yaml` prints them
netmaster/       pages of each netmaster named with --netmaster: metrics and readiness
metrics/         pages of the daemons named with --metrics
files/           files named with --include, cleaned: values of what looks like a
                 password, secret, token or key, private keys, and user names and
                 passwords in URLs are replaced
missing.txt      what could not be had, and why
";

/// A file in the archive: its name, and what is in it or why it can't be had.
type Part = (String, Result<String, Failure>);

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
    async fn parts(&self, args: &BundleArgs) -> Vec<Part> {
        let timeout = self.global.timeout;
        let mut parts = of_each_netmaster(&self.global.netmaster, timeout);
        match Session::open(&self.global).await {
            Ok(mut session) => parts.extend(self.of_netmaster(&mut session).await),
            Err(failure) => parts.push(("status.json".to_owned(), Err(failure))),
        }
        parts.extend(args.metrics.iter().map(|target| {
            (format!("metrics/{}", file_name(target)), shown(target, "metrics", timeout))
        }));
        parts.extend(args.include.iter().enumerate().map(|(index, path)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let failed = |source| Failure::File { name: path.display().to_string(), source };
            (format!("files/{index}-{name}"), end_of(path).map(|t| cleaned(&t)).map_err(failed))
        }));
        parts
    }

    async fn of_netmaster(&self, session: &mut Session) -> Vec<Part> {
        let status = self.look(session).await.and_then(|status| own(Data::Json.text(&status)));
        let mut parts = vec![("status.json".to_owned(), status)];
        for (name, kinds) in [
            ("objects.yaml", &KindName::CONFIGURATION[..]),
            ("endpoints.yaml", &[KindName::Endpoint]),
            ("leases.yaml", &[KindName::Lease]),
        ] {
            parts.push((name.to_owned(), dump(session, kinds).await));
        }
        for (name, which) in [("addresses.yaml", Which::All), ("leaks.yaml", Which::Leaks)] {
            parts.push((name.to_owned(), ip::everything(session, which).await));
        }
        parts
    }
}

/// Versions and pages: each netmaster has its own, also while another leads.
fn of_each_netmaster(target: &Target, timeout: Duration) -> Vec<Part> {
    let mut netmasters = Vec::new();
    let mut parts = Vec::new();
    for one in target.each() {
        let address = one.to_string();
        netmasters.push(match first_of(&one, timeout) {
            Ok(version) => json!({ "address": address, "version": version }),
            Err(failure) => json!({ "address": address, "error": failure.to_string() }),
        });
        for page in ["metrics", "readyz"] {
            let name = format!("netmaster/{}/{page}", file_name(&one));
            parts.push((name, shown(&one, page, timeout)));
        }
    }
    let versions = json!({ "netctl": CLIENT, "api": API, "netmasters": netmasters });
    parts.push(("versions.json".to_owned(), own(Data::Json.text(&versions))));
    parts
}

fn shown(target: &Target, name: &str, timeout: Duration) -> Result<String, Failure> {
    page(target, name, timeout).map(Page::text).map_err(Failure::Io)
}

/// An address as the name of a file.
fn file_name(target: &Target) -> String {
    target.to_string().replace([':', '/'], "_")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::stand_in::daemon;

    #[test]
    fn cli_1_every_netmaster_has_its_version_and_its_pages_in_a_bundle() {
        let answers = |version, metrics, ready| vec![version, metrics, ready];
        let (first, of_first) = daemon(answers(
            "200 OK\r\n\r\n{\"Version\":\"0.1.0\"}\n",
            "200 OK\r\n\r\nleader 1\n",
            "200 OK\r\n\r\nready\n",
        ));
        let (second, of_second) = daemon(answers(
            "200 OK\r\n\r\n{\"Version\":\"0.2.0\"}\n",
            "200 OK\r\n\r\nleader 0\n",
            "503 Service Unavailable\r\n\r\nnobody leads\n",
        ));
        let gone = "http://127.0.0.1:1";
        let target: Target = format!("{first},{second},{gone}").parse().unwrap();
        let parts = of_each_netmaster(&target, Duration::from_secs(5));
        drop((of_first.join().unwrap(), of_second.join().unwrap()));
        let part = |name: &str| parts.iter().find(|(part, _)| part == name).unwrap().1.as_ref();
        let versions: serde_json::Value =
            serde_json::from_str(part("versions.json").unwrap()).unwrap();
        let masters = &versions["netmasters"];
        assert_eq!(masters[0], json!({ "address": first, "version": "0.1.0" }));
        assert_eq!(masters[1], json!({ "address": second, "version": "0.2.0" }));
        let error = masters[2]["error"].as_str().unwrap();
        assert!(error.starts_with("cannot reach netmaster at http://127.0.0.1:1: "), "{error}");
        let page = |address: &str, name: &str| {
            part(&format!("netmaster/{}/{name}", address.replace([':', '/'], "_")))
        };
        assert_eq!(page(&first, "metrics").unwrap(), "HTTP/1.0 200 OK\nleader 1\n");
        let not_ready = "HTTP/1.0 503 Service Unavailable\nnobody leads\n";
        assert_eq!(page(&second, "readyz").unwrap(), not_ready);
        assert!(page(gone, "readyz").is_err(), "it is said to be missing");
    }
}
