//! The request socket: one request at a time, answered in full before the next.
//!
//! Every request asks for an acknowledgement, so that a get, a set and a dump all end with a
//! message that says so. Answers to an earlier request that was given up are told by their
//! sequence number and skipped.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::error::{Error, Operation};

/// A dump that the kernel marks as torn is read again this often at most.
const DUMP_ATTEMPTS: u32 = 16;

#[derive(Debug)]
pub(crate) struct RequestSocket {
    socket: Socket,
    sequence: u32,
}

/// Everything the kernel said to one request.
#[derive(Debug, Default)]
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    torn: bool,
}

impl RequestSocket {
    pub(crate) fn open() -> Result<Self, Error> {
        open_connected().map(|socket| Self { socket, sequence: 0 }).map_err(|source| {
            Error::Kernel { operation: Operation::new("opening a netlink socket", ""), source }
        })
    }

    /// Sends one request and returns the objects in its answer.
    pub(crate) fn request(
        &mut self,
        operation: &Operation,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.exchange(operation, message, flags | NLM_F_ACK).map(|answer| answer.messages)
    }

    /// Reads a whole list, again when it changed meanwhile.
    pub(crate) fn dump(
        &mut self,
        operation: &Operation,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let answer = self.exchange(operation, message.clone(), NLM_F_DUMP)?;
            if !answer.torn {
                return Ok(answer.messages);
            }
        }
        Err(Error::Unsteady { operation: operation.clone() })
    }

    fn exchange(
        &mut self,
        operation: &Operation,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Answer, Error> {
        let kernel = |source| Error::Kernel { operation: operation.clone(), source };
        self.send(message, flags).map_err(kernel)?;
        let mut answer = Answer::default();
        loop {
            let datagram = receive(&self.socket).map_err(kernel)?;
            let parsed = parse_datagram(&datagram)
                .map_err(|source| Error::Answer { operation: operation.clone(), source })?;
            if answer.take_all(parsed, self.sequence).map_err(kernel)? == End::Reached {
                return Ok(answer);
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }
}

/// Whether an answer is complete.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Reached,
    Ahead,
}

impl Answer {
    fn take_all(
        &mut self,
        messages: Vec<NetlinkMessage<RouteNetlinkMessage>>,
        sequence: u32,
    ) -> io::Result<End> {
        for message in messages {
            if message.header.sequence_number == sequence && self.take(message)? == End::Reached {
                return Ok(End::Reached);
            }
        }
        Ok(End::Ahead)
    }

    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> io::Result<End> {
        self.torn |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => self.messages.push(inner),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(-done.code));
            }
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(End::Reached),
            // Noop, Overrun and what a later version of the protocol adds carry no object.
            _ => {}
        }
        Ok(End::Ahead)
    }
}

fn open_connected() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

pub(crate) fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    loop {
        match socket.recv_from_full() {
            Ok((bytes, _)) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Splits a datagram into its messages; each starts at a multiple of four bytes (RFC 3549, 2.2).
pub(crate) fn parse_datagram(
    datagram: &[u8],
) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, DecodeError> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::deserialize(rest)?;
        let length = (message.header.length as usize).max(1).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        messages.push(message);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::LinkMessage;

    fn bytes_of(sequence: u32) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.sequence_number = sequence;
        let inner = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(inner));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn a_datagram_of_two_messages_is_split() {
        let datagram = [bytes_of(7), bytes_of(8)].concat();
        let sequences: Vec<u32> = parse_datagram(&datagram)
            .unwrap()
            .iter()
            .map(|message| message.header.sequence_number)
            .collect();
        assert_eq!(sequences, [7, 8]);
    }

    #[test]
    fn a_truncated_message_is_an_error_at_every_length() {
        let whole = bytes_of(7);
        for length in 1..whole.len() {
            assert!(parse_datagram(&whole[..length]).is_err(), "{length} bytes");
        }
    }
}
