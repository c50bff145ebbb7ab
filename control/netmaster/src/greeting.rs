//! New connections. One that does not begin to speak in time is closed: kept, such connections would
//! use up the process's descriptors, and nobody could be served.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

/// HTTP/2's preface (RFC 9113, section 3.4); a request of HTTP/1 is hardly shorter. From then on the
/// keep-alive of HTTP/2 watches the client.
const GREETING_BYTES: usize = 24;
/// How long a client may take for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection, watched until it has been greeted.
#[derive(Debug)]
pub(crate) struct Greeted<S> {
    stream: S,
    heard_bytes: usize,
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S> Greeted<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, heard_bytes: 0, patience: Some(Box::pin(sleep(PATIENCE))) }
    }
}

impl<S: Connected> Connected for Greeted<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.heard_bytes = self.heard_bytes.saturating_add(buffer.filled().len() - before);
        if self.heard_bytes >= GREETING_BYTES {
            self.patience = None;
        }
        if let (true, Some(patience)) = (read.is_pending(), &mut self.patience)
            && patience.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_stops_in_the_greeting_is_given_up() {
        for said in [&b""[..], b"PRI * HTTP/2.0"] {
            let (mut client, server) = duplex(64);
            client.write_all(said).await.unwrap();
            let mut server = Greeted::new(server);
            let mut heard = Vec::new();
            let error = server.read_to_end(&mut heard).await.unwrap_err();
            assert_eq!((error.kind(), heard.as_slice()), (io::ErrorKind::TimedOut, said));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_greeted_may_be_silent() {
        let (mut client, server) = duplex(64);
        let mut server = Greeted::new(server);
        client.write_all(&[7; GREETING_BYTES]).await.unwrap();
        server.read_exact(&mut [0; GREETING_BYTES]).await.unwrap();
        let mut late = [0];
        let (read, ()) = tokio::join!(server.read(&mut late), async {
            sleep(PATIENCE * 100).await;
            client.write_all(b"!").await.unwrap();
        });
        assert_eq!((read.unwrap(), late), (1, *b"!"));
    }
}
