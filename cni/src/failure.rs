//! The error object of the CNI specification: `{"cniVersion", "code", "msg", "details"}`.
//!
//! It goes to stdout, because libcni reads stdout first and shows raw stderr otherwise. `msg` is
//! one line that says what to do, since runtimes print it verbatim.

use std::process::ExitCode;

use cni_api::v1::Code;
use serde_json::json;

use crate::command::Output;
use crate::version::Version;

/// Why an operation was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// A [`Code`], or a newer code that netplugin knows and this binary does not.
    pub(crate) code: u32,
    pub(crate) msg: String,
    pub(crate) details: String,
    /// The configuration's version, once that is known to be one of ours.
    pub(crate) version: Version,
}

impl Failure {
    pub(crate) fn new(code: Code, msg: impl Into<String>) -> Self {
        Self {
            code: code as u32,
            msg: msg.into(),
            details: String::new(),
            version: Version::NEWEST,
        }
    }

    pub(crate) fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Adds to the details.
    pub(crate) fn also(mut self, what: &str) -> Self {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(what);
        self
    }

    /// Whether the same call would be refused again, whatever becomes of the daemons.
    pub(crate) fn is_about_input(&self) -> bool {
        [
            Code::IncompatibleVersion,
            Code::UnsupportedField,
            Code::InvalidEnvironment,
            Code::Decode,
            Code::InvalidConfig,
            Code::InvalidNetns,
        ]
        .into_iter()
        .any(|code| code as u32 == self.code)
    }

    pub(crate) const fn in_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    pub(crate) fn unreadable_stdin(error: &std::io::Error) -> Self {
        Self::new(Code::Io, format!("cannot read the network configuration on stdin: {error}"))
    }

    pub(crate) fn long_stdin(bytes_max: u64) -> Self {
        let msg = format!("the network configuration on stdin is longer than {bytes_max} bytes");
        Self::new(Code::Decode, msg)
    }

    /// The error object as one line.
    pub(crate) fn json(&self) -> String {
        let mut object = json!({
            "cniVersion": self.version.text(),
            "code": self.code,
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        format!("{object}\n")
    }

    pub(crate) fn into_output(self) -> Output {
        Output { stdout: self.json(), stderr: String::new(), exit: ExitCode::FAILURE }
    }
}
