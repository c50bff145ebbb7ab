//! The packet a trace is asked for: flow text, bytes in hexadecimal, or frames of a capture.

use std::io;
use std::path::{Path, PathBuf};

use datapath_api::v1;
use datapath_api::v1::trace_request::Packet;

use crate::args::TraceArgs;
use crate::pcap::{self, PcapError};

/// Why there is nothing to trace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PacketError {
    #[error("want one of FLOW, --hex and --pcap")]
    Nothing,
    #[error("--{0} needs --in-port: name or id of the port that receives the packet")]
    InPort(&'static str),
    #[error("--hex: {0:?} at byte {1} is not hexadecimal")]
    HexDigit(char, usize),
    #[error("--hex: half a byte is left over")]
    HexOdd,
    #[error("cannot read {}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    #[error("{} {source}", .path.display())]
    Pcap {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PcapError,
    },
}

/// The requests of one `vrctl trace`: one, or one per packet of a capture.
pub(crate) fn requests(args: TraceArgs) -> Result<Vec<v1::TraceRequest>, PacketError> {
    if let Some(flow) = args.flow {
        let in_port = args.in_port.unwrap_or_default();
        return Ok(vec![v1::TraceRequest { packet: Some(Packet::Flow(flow)), in_port }]);
    }
    let (option, frames) = match (&args.hex, &args.pcap) {
        (Some(hex), _) => ("hex", vec![parse_hex(hex)?]),
        (None, Some(path)) => ("pcap", read_pcap(path, if args.all { usize::MAX } else { 1 })?),
        (None, None) => return Err(PacketError::Nothing),
    };
    let in_port = args.in_port.ok_or(PacketError::InPort(option))?;
    let request =
        |frame| v1::TraceRequest { packet: Some(Packet::Frame(frame)), in_port: in_port.clone() };
    Ok(frames.into_iter().map(request).collect())
}

fn read_pcap(path: &Path, limit: usize) -> Result<Vec<Vec<u8>>, PacketError> {
    let file = std::fs::read(path)
        .map_err(|source| PacketError::Open { path: path.to_owned(), source })?;
    pcap::frames(&file, limit).map_err(|source| PacketError::Pcap { path: path.to_owned(), source })
}

/// Hexadecimal digits in pairs; blanks, colons and dots between digits are skipped, as tcpdump and
/// Wireshark print them.
fn parse_hex(text: &str) -> Result<Vec<u8>, PacketError> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let mut high = None;
    for (at, c) in text.char_indices() {
        if c.is_ascii_whitespace() || matches!(c, ':' | '.') {
            continue;
        }
        let digit = c.to_digit(16).ok_or(PacketError::HexDigit(c, at))? as u8;
        match high.take() {
            None => high = Some(digit),
            Some(high) => bytes.push(high << 4 | digit),
        }
    }
    if high.is_some() { Err(PacketError::HexOdd) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::Parser as _;
    use datapath_api::v1::trace_request::Packet;

    use super::{parse_hex, requests};
    use crate::args::{Cli, Command};

    fn trace(line: &str) -> Result<Vec<datapath_api::v1::TraceRequest>, String> {
        let cli = Cli::try_parse_from(format!("vrctl trace {line}").split(' ')).unwrap();
        let Command::Trace(args) = cli.command else { panic!() };
        requests(args).map_err(|e| e.to_string())
    }

    #[test]
    fn flow_text_goes_to_the_engine_as_it_is() {
        let requests = trace("in_port=3,arp").unwrap();
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].packet, Some(Packet::Flow("in_port=3,arp".into())));
        assert_eq!(requests[0].in_port, "");
    }

    #[test]
    fn bytes_need_a_port() {
        let requests = trace("--hex ffff.0011:22 --in-port web").unwrap();
        assert_eq!(requests[0].packet, Some(Packet::Frame(vec![0xff, 0xff, 0x00, 0x11, 0x22])));
        assert_eq!(requests[0].in_port, "web");
        let error = trace("--hex 00").unwrap_err();
        assert_eq!(error, "--hex needs --in-port: name or id of the port that receives the packet");
    }

    #[test]
    fn bad_hexadecimal_is_named_by_position() {
        assert_eq!(
            parse_hex("00 0g").unwrap_err().to_string(),
            "--hex: 'g' at byte 4 is not hexadecimal"
        );
        assert_eq!(parse_hex("000").unwrap_err().to_string(), "--hex: half a byte is left over");
        assert_eq!(parse_hex("").unwrap(), Vec::<u8>::new());
    }

    #[test]
    fn a_capture_that_is_not_there_is_named() {
        let error = trace("--pcap /nonexistent/x.pcap --in-port 1").unwrap_err();
        assert!(error.starts_with("cannot read /nonexistent/x.pcap: "), "{error}");
    }

    #[test]
    fn a_capture_gives_its_first_packet_or_all() {
        let mut bytes = vec![0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4];
        bytes.extend([0; 12]);
        bytes.extend([0, 0, 0, 1]);
        for frame in [[7u8; 14], [8u8; 14]] {
            bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 14, 0, 0, 0, 14]);
            bytes.extend(frame);
        }
        let path = std::env::temp_dir().join(format!("vrctl-test-{}.pcap", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        let count =
            |flags: &str| trace(&format!("--pcap {}{flags}", path.display())).unwrap().len();
        let counts = (count(" --in-port 1"), count(" --all --in-port 1"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(counts, (1, 2));
    }
}
