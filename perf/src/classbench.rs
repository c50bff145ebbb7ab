//! Rule sets in the text format of `ClassBench`: one rule a line, the best first.
//!
//! `@src/len dst/len lo : hi lo : hi protocol/mask flags/mask`, fields apart by blanks: prefixes of
//! IPv4, source and destination ports, the IP protocol, and flags. The high byte of the flags holds
//! TCP's for protocol 6 and the type for protocol 1, whose low byte holds the code; those of other
//! protocols mean nothing. A line without the last field has no flags.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr as _;

/// What a line looks like, for those who wrote another one.
const FORM: &str = "@SRC/LEN DST/LEN LO : HI LO : HI PROTOCOL/MASK FLAGS/MASK, \
                    like @10.0.0.0/8 0.0.0.0/0 0 : 65535 80 : 80 0x06/0xFF 0x0200/0x1200";

/// An IPv4 prefix; no bits beyond its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) address: u32,
    pub(crate) len: u8,
}

impl Block {
    pub(crate) const fn mask(self) -> u32 {
        if self.len == 0 { 0 } else { u32::MAX << (32 - self.len) }
    }
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) src: Block,
    pub(crate) dst: Block,
    /// Smallest and largest port.
    pub(crate) src_ports: (u16, u16),
    pub(crate) dst_ports: (u16, u16),
    pub(crate) protocol: Option<u8>,
    /// Value and mask; no bits of the value outside the mask.
    pub(crate) flags: (u16, u16),
}

/// What is wrong in which line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {wrong}; a rule is {FORM}")]
pub(crate) struct BadLine {
    pub(crate) line: usize,
    wrong: Wrong,
}

/// What is wrong in a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Wrong {
    #[error("it does not begin with \"@\"")]
    NoAt,
    #[error("it ends before its {0}")]
    Missing(&'static str),
    #[error("there is {0:?} after the flags")]
    Extra(String),
    #[error("{what} {text:?} is not {want}")]
    Field { what: &'static str, text: String, want: &'static str },
    #[error("{what} {first} : {last} is backwards")]
    Backwards { what: &'static str, first: u16, last: u16 },
}

/// All rules of a text. Empty lines are passed over.
pub(crate) fn parse(text: &str) -> Result<Vec<Rule>, BadLine> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(at, text)| rule(text).map_err(|wrong| BadLine { line: at + 1, wrong })).collect()
}

fn rule(line: &str) -> Result<Rule, Wrong> {
    let line = line.trim().strip_prefix('@').ok_or(Wrong::NoAt)?;
    let mut words = line.split_whitespace();
    let src = block("source", words.next())?;
    let dst = block("destination", words.next())?;
    let src_ports = ports("source ports", &mut words)?;
    let dst_ports = ports("destination ports", &mut words)?;
    let protocol = protocol(words.next())?;
    let flags = words.next().map_or(Ok((0, 0)), |word| flags(protocol, word))?;
    match words.next() {
        None => Ok(Rule { src, dst, src_ports, dst_ports, protocol, flags }),
        Some(extra) => Err(Wrong::Extra(extra.to_owned())),
    }
}

fn block(what: &'static str, word: Option<&str>) -> Result<Block, Wrong> {
    let word = word.ok_or(Wrong::Missing(what))?;
    let parsed = word.split_once('/').and_then(|(ip, len)| {
        let (ip, len) = (Ipv4Addr::from_str(ip).ok()?, len.parse::<u8>().ok()?);
        (len <= 32).then_some((ip, len))
    });
    let want = "an IPv4 prefix of 0 to 32 bits";
    let (ip, len) = parsed.ok_or_else(|| Wrong::Field { what, text: word.to_owned(), want })?;
    let block = Block { address: ip.to_bits(), len };
    Ok(Block { address: block.address & block.mask(), len })
}

fn ports<'a>(
    what: &'static str,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<(u16, u16), Wrong> {
    let mut next = || words.next().ok_or(Wrong::Missing(what));
    let (first, colon, last) = (next()?, next()?, next()?);
    if colon != ":" {
        return Err(Wrong::Field { what, text: colon.to_owned(), want: "a \":\" between blanks" });
    }
    let port = |word: &str| {
        let want = "a port of 0 to 65535";
        let parsed = word.parse::<u16>().ok();
        parsed.ok_or_else(|| Wrong::Field { what, text: word.to_owned(), want })
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(Wrong::Backwards { what, first, last }) } else { Ok((first, last)) }
}

/// `0x12/0x34`
fn hex_pair(word: &str) -> Option<(u16, u16)> {
    let (value, mask) = word.split_once('/')?;
    let hex = |text: &str| {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
        u16::from_str_radix(digits, 16).ok()
    };
    Some((hex(value)?, hex(mask)?))
}

fn protocol(word: Option<&str>) -> Result<Option<u8>, Wrong> {
    let word = word.ok_or(Wrong::Missing("protocol"))?;
    match hex_pair(word) {
        Some((value @ 0..=0xff, 0xff)) => Ok(Some(value as u8)),
        Some((0..=0xff, 0)) => Ok(None),
        Some(_) | None => {
            let want = "a protocol in hexadecimal with mask 0x00 or 0xFF";
            Err(Wrong::Field { what: "protocol", text: word.to_owned(), want })
        }
    }
}

fn flags(protocol: Option<u8>, word: &str) -> Result<(u16, u16), Wrong> {
    let wrong = |want| Wrong::Field { what: "flags", text: word.to_owned(), want };
    let (value, mask) = hex_pair(word).ok_or_else(|| wrong("two hexadecimal 16-bit numbers"))?;
    let [high, low] = mask.to_be_bytes();
    match (protocol, high, low) {
        (Some(6), _, 0) | (Some(1), 0xff, 0 | 0xff) => Ok((value & mask, mask)),
        (Some(6), _, _) => Err(wrong("TCP flags in the high byte alone")),
        (Some(1), 0, 0) => Ok((0, 0)),
        (Some(1), _, _) => Err(wrong("an ICMP type with mask 0xff00, or with a code, 0xffff")),
        // There is nothing in the packet that they could mean.
        (Some(_) | None, _, _) => Ok((0, 0)),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |block: Block| Ipv4Addr::from_bits(block.address);
        write!(f, "@{}/{}\t{}/{}", ip(self.src), self.src.len, ip(self.dst), self.dst.len)?;
        for (first, last) in [self.src_ports, self.dst_ports] {
            write!(f, "\t{first} : {last}")?;
        }
        let (protocol, mask) = self.protocol.map_or((0, 0), |protocol| (protocol, 0xff));
        let (flags, flags_mask) = self.flags;
        write!(f, "\t0x{protocol:02x}/0x{mask:02X}\t0x{flags:04x}/0x{flags_mask:04x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [&str; 5] = [
        "@176.19.181.52/32\t88.122.155.96/32\t0 : 65535\t1521 : 1521\t0x06/0xFF\t0x1000/0x1000",
        "@10.0.0.0/8\t0.0.0.0/0\t1024 : 65535\t53 : 60\t0x11/0xFF\t0x0000/0x0000",
        "@0.0.0.0/0\t10.1.2.0/23\t0 : 65535\t0 : 65535\t0x01/0xFF\t0x0800/0xff00",
        "@0.0.0.0/0\t10.1.2.0/23\t0 : 65535\t0 : 65535\t0x01/0xFF\t0x0301/0xffff",
        "@0.0.0.0/0\t0.0.0.0/0\t0 : 65535\t0 : 65535\t0x00/0x00\t0x0000/0x0000",
    ];

    #[test]
    fn lines_are_parsed_and_come_back_as_they_were() {
        let rules = parse(&LINES.join("\t\n")).unwrap();
        let back: Vec<String> = rules.iter().map(Rule::to_string).collect();
        assert_eq!(back, LINES);
        assert_eq!(rules[0].src, Block { address: 0xb013_b534, len: 32 });
        assert_eq!((rules[0].protocol, rules[0].flags), (Some(6), (0x1000, 0x1000)));
        assert_eq!((rules[1].src_ports, rules[1].dst_ports), ((1024, 65535), (53, 60)));
        assert_eq!((rules[4].protocol, rules[4].dst.len), (None, 0));
    }

    #[test]
    fn bits_that_do_not_count_are_dropped() {
        let line = "@10.1.2.3/8 1.2.3.4/0 0 : 1 0 : 1 0x06/0xff 0xff00/0x0200";
        let rule = parse(line).unwrap()[0];
        assert_eq!((rule.src.address, rule.dst.address), (0x0a00_0000, 0));
        assert_eq!(rule.flags, (0x0200, 0x0200));
        let udp = "@10.1.2.3/8 1.2.3.4/0 0 : 1 0 : 1 0x11/0xff 0x1000/0x1000";
        assert_eq!(parse(udp).unwrap()[0].flags, (0, 0));
    }

    #[test]
    fn flags_may_be_missing_and_lines_may_be_empty() {
        let rules = parse("\n@1.1.1.1/32 2.2.2.2/32 0 : 65535 1 : 1 0x11/0xFF\n\n").unwrap();
        assert_eq!((rules.len(), rules[0].flags), (1, (0, 0)));
    }

    #[test]
    fn bad_lines_are_refused_with_number_and_reason() {
        let ends = "@1.1.1.1/32 2.2.2.2/32";
        for (line, reason) in [
            ("1.1.1.1/32 2.2.2.2/32", "begin with \"@\""),
            ("@1.1.1/32", "source \"1.1.1/32\""),
            ("@1.1.1.1/33", "source \"1.1.1.1/33\""),
            ("@1.1.1.1", "source \"1.1.1.1\""),
            ("@1.1.1.1/32 x", "destination \"x\""),
            (ends, "ends before its source ports"),
            (&format!("{ends} 0 - 1"), "source ports \"-\""),
            (&format!("{ends} 0 : 65536"), "source ports \"65536\""),
            (&format!("{ends} 0 : 1 9 : 8"), "destination ports 9 : 8 is backwards"),
            (&format!("{ends} 0 : 1 8 : 9"), "ends before its protocol"),
            (&format!("{ends} 0 : 1 8 : 9 0x06/0xF0"), "protocol \"0x06/0xF0\""),
            (&format!("{ends} 0 : 1 8 : 9 6"), "protocol \"6\""),
            (&format!("{ends} 0 : 1 8 : 9 0x106/0xff"), "protocol \"0x106/0xff\""),
            (&format!("{ends} 0 : 1 8 : 9 0x06/0xff 1/1"), "flags \"1/1\""),
            (&format!("{ends} 0 : 1 8 : 9 0x06/0xff 0x01/0x01"), "TCP flags in the high byte"),
            (&format!("{ends} 0 : 1 8 : 9 0x01/0xff 0x01/0x0f00"), "ICMP type with mask"),
            (&format!("{ends} 0 : 1 8 : 9 0x01/0xff 0x01/0x00ff"), "ICMP type with mask"),
            (&format!("{ends} 0 : 1 8 : 9 0x11/0xff 0x0/0x0 more"), "\"more\" after the flags"),
        ] {
            let refused = parse(&format!("{}\n{line}", LINES[0])).unwrap_err();
            assert_eq!(refused.line, 2);
            let text = refused.to_string();
            assert!(text.starts_with("line 2: ") && text.contains(reason), "{line}: {text}");
        }
    }
}
