//! `version`: of this program, and of the netmaster that answers.

use std::io;
use std::time::Duration;

use serde::Serialize;

use super::{Done, Runner};
use crate::args::Format;
use crate::data::DataError;
use crate::failure::Failure;
use crate::out;
use crate::page::page;
use crate::target::Target;

/// What this program speaks.
pub(super) const API: &str = "control.v1";
/// Its own version.
pub(super) const CLIENT: &str = env!("CARGO_PKG_VERSION");

/// Both, as programs read them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions<'a> {
    client_version: &'static str,
    api: &'static str,
    /// Empty when no netmaster says it.
    server_version: &'a str,
}

impl Runner {
    pub(super) fn version(&self, format: Format) -> Done {
        match first_of(&self.global.netmaster, self.global.timeout) {
            Ok(server) => Ok(text(format, Some(&server))?.into()),
            Err(failure) => {
                // The program's own is asked for most when there is no netmaster yet.
                out::write(&text(format, None)?).map_err(Failure::Io)?;
                Err(failure)
            }
        }
    }
}

fn text(format: Format, server: Option<&str>) -> Result<String, DataError> {
    match format {
        Format::Table => {
            let server = server.map(|server| format!("Server Version: {server}\n"));
            let server = server.unwrap_or_default();
            Ok(format!("Client Version: {CLIENT}\nAPI: {API}\n{server}"))
        }
        Format::Data(data) => data.text(&Versions {
            client_version: CLIENT,
            api: API,
            server_version: server.unwrap_or_default(),
        }),
    }
}

/// The version of the first that answers, like a connection to it.
pub(super) fn first_of(target: &Target, timeout: Duration) -> Result<String, Failure> {
    let mut refused: io::Error = io::ErrorKind::NotFound.into();
    for one in target.each() {
        match page(&one, "version", timeout) {
            Ok(page) => return page.version().ok_or(Failure::Reply("version")),
            Err(error) => refused = error,
        }
    }
    Err(Failure::Unreachable { target: target.clone(), source: Box::new(refused) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Data;
    use crate::page::stand_in::daemon;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn cli_1_the_version_of_the_first_netmaster_that_answers_is_told() {
        let (address, served) = daemon(vec!["200 OK\r\n\r\n{\"Version\":\"9.8.7\"}\n"]);
        let target: Target = format!("http://127.0.0.1:1,{address}").parse().unwrap();
        let server = first_of(&target, TIMEOUT).unwrap();
        assert_eq!(served.join().unwrap(), ["GET /version HTTP/1.0"]);
        assert_eq!(
            text(Format::Table, Some(&server)).unwrap(),
            format!("Client Version: {CLIENT}\nAPI: control.v1\nServer Version: 9.8.7\n")
        );
        let json = text(Format::Data(Data::Json), Some(&server)).unwrap();
        assert!(json.contains("\"serverVersion\": \"9.8.7\""), "{json}");
    }

    #[test]
    fn cli_1_without_netmaster_the_code_is_that_of_status_and_the_client_is_told() {
        let nobody: Target = "http://127.0.0.1:1".parse().unwrap();
        let failure = first_of(&nobody, TIMEOUT).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        let report = failure.report();
        assert!(report.contains("cannot reach netmaster at http://127.0.0.1:1: "), "{report}");
        assert_eq!(
            text(Format::Table, None).unwrap(),
            format!("Client Version: {CLIENT}\nAPI: control.v1\n")
        );
        let json = text(Format::Data(Data::Json), None).unwrap();
        assert!(json.contains("\"serverVersion\": \"\""), "{json}");
    }

    #[test]
    fn something_else_that_answers_is_no_netmaster() {
        let (address, served) = daemon(vec!["404 Not Found\r\n\r\nno"]);
        let failure = first_of(&address.parse().unwrap(), TIMEOUT).unwrap_err();
        served.join().unwrap();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.report().contains("no version"), "{}", failure.report());
    }
}
