//! Accepts connections, and passes them on once their first bytes have arrived: TLS, or, with
//! `--insecure`, HTTP/2. A client that sends nothing, or something else, costs a file descriptor
//! for a moment and never reaches the service. The peer of a connection is identified here; what it
//! may do is decided by the service.

use crate::limit::{ConnectionLimit, Evicted, Permit};
use nix::errno::Errno;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may take to begin, and a handshake to be done.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that a client may send before it has shown a certificate: a handshake and one enrolment
/// take about 2 KB. As nothing is kept that was not sent, this bounds the memory of such a
/// connection, too.
const MAX_UNKNOWN_BYTES: usize = 16 << 10;
/// How long a connection may last whose owner has shown no certificate: it is for one call.
const ENROLMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections that may wait for the service.
const MAX_PENDING: usize = 64;
/// Pause when no connection can be accepted, as when descriptors have run out, and between two
/// warnings about it.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// How many connections are open at a time.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Of clients that have shown a certificate, or need none.
    pub open: usize,
    /// Of one certificate's owner.
    pub open_of_one: usize,
    /// Of clients that have not shown a certificate, or not begun to speak. At the limit the oldest
    /// connection of the address that has the most is closed for a new one.
    pub pending: usize,
}

/// Connections that have begun, as they come. The listener is closed when `admitted` is dropped.
pub struct Accepted {
    /// Of clients that have shown a certificate of the run, or need none.
    pub admitted: ReceiverStream<io::Result<Connection>>,
    /// Of clients without a certificate.
    pub unknown: ReceiverStream<io::Result<Connection>>,
}

/// The peer of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    pub identity: PeerIdentity,
}

/// The identity of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// Not authenticated: the run is insecure.
    Unchecked,
    /// It showed no certificate; it may enrol.
    Unknown,
    Worker(String),
}

/// Accepts the connections of `listener`.
pub fn connections(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: ConnectionLimits,
) -> Accepted {
    let (admitted, admitted_receiver) = mpsc::channel(MAX_PENDING);
    let (unknown, unknown_receiver) = mpsc::channel(MAX_PENDING);
    let entrance = Entrance {
        tls,
        pending: ConnectionLimit::new(limits.pending, limits.pending),
        open: ConnectionLimit::new(limits.open, limits.open_of_one),
        admitted,
        unknown,
    };
    tokio::spawn(accept(listener, entrance));
    Accepted {
        admitted: ReceiverStream::new(admitted_receiver),
        unknown: ReceiverStream::new(unknown_receiver),
    }
}

/// What every new connection passes.
#[derive(Clone)]
struct Entrance {
    tls: Option<TlsAcceptor>,
    pending: ConnectionLimit<IpAddr>,
    open: ConnectionLimit<Owner>,
    admitted: mpsc::Sender<io::Result<Connection>>,
    unknown: mpsc::Sender<io::Result<Connection>>,
}

/// The owner that a connection is counted for. Without certificates all clients are trusted alike.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Owner {
    Worker(String),
    Unchecked(u64),
}

async fn accept(listener: TcpListener, entrance: Entrance) {
    let mut warned: Option<Instant> = None;
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = entrance.admitted.closed() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                number += 1;
                tokio::spawn(entrance.clone().admit(stream, from, number));
            }
            Err(error) => {
                if warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
                    warned = Some(Instant::now());
                    tracing::error!("cannot accept a connection: {}", cause(&error));
                }
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// What accept(2) failed with, and what to do about it.
fn cause(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => {
            format!(
                "{error}: this process has no file descriptor left; raise its limit (ulimit -n, \
                LimitNOFILE=)"
            )
        }
        Some(Errno::ENFILE) => {
            format!(
                "{error}: this machine has no file descriptor left; raise the sysctl fs.file-max"
            )
        }
        _ => error.to_string(),
    }
}

impl Entrance {
    /// Waits for a connection to begin, and hands it on.
    async fn admit(self, stream: TcpStream, from: SocketAddr, number: u64) {
        let (permit, mut evicted) = self.pending.admit(network(from.ip()));
        let begun = tokio::select! {
            begun = timeout(HANDSHAKE_TIMEOUT, begin(stream, from, self.tls)) => begun,
            () = &mut evicted => return tracing::debug!(%from, "closed: too many pending \
                connections"),
        };
        let (stream, peer) = match begun {
            Ok(Ok(begun)) => begun,
            Ok(Err(reason)) => return tracing::debug!(%from, "closed: {reason}"),
            Err(_) => return tracing::debug!(%from, "closed: handshake timed out"),
        };
        let owner = match &peer.identity {
            PeerIdentity::Unknown => {
                let closing = Closing { evicted, at: Some(Box::pin(sleep(ENROLMENT_TIMEOUT))) };
                let connection =
                    Connection { stream, peer, closing, _permit: AnyPermit::Pending(permit) };
                _ = self.unknown.send(Ok(connection)).await;
                return;
            }
            PeerIdentity::Worker(worker) => Owner::Worker(worker.clone()),
            PeerIdentity::Unchecked => Owner::Unchecked(number),
        };
        let (open, evicted) = self.open.admit(owner);
        let closing = Closing { evicted, at: None };
        let connection = Connection { stream, peer, closing, _permit: AnyPermit::Open(open) };
        // A worker that waits for the service is pending no longer.
        drop(permit);
        _ = self.admitted.send(Ok(connection)).await;
    }
}

/// What an attacker has of its own: an address, or, of IPv6, a network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Waits for the other end to begin.
async fn begin(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> io::Result<(Stream, Peer)> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        // The bytes stay where they are.
        let mut bytes = [0; PREFACE.len()];
        let len = stream.peek(&mut bytes).await?;
        return match len > 0 && bytes[..len] == PREFACE[..len] {
            true => Ok((Either::Left(stream), Peer { address, identity: PeerIdentity::Unchecked })),
            false => Err(io::Error::other("it does not speak HTTP/2")),
        };
    };
    let mut stream = tls.accept(Metered { stream, left: Some(MAX_UNKNOWN_BYTES) }).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = match certificate {
        None => PeerIdentity::Unknown,
        Some(certificate) => {
            PeerIdentity::Worker(name_of(certificate).ok_or(io::ErrorKind::InvalidData)?)
        }
    };
    if identity != PeerIdentity::Unknown {
        stream.get_mut().0.left = None;
    }
    Ok((Either::Right(Box::new(stream)), Peer { address, identity }))
}

/// The name in a certificate (DER); that it is from the run's authority was seen in the handshake.
pub fn name_of(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

type Stream = Either<TcpStream, Box<TlsStream<Metered>>>;

/// A TCP stream that may bring a limited number of bytes.
struct Metered {
    stream: TcpStream,
    /// `None`: as many as it likes.
    left: Option<usize>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = bytes.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, bytes))?;
        if let Some(left) = &mut self.left {
            let read = bytes.filled().len() - before;
            *left = left.checked_sub(read).ok_or_else(|| {
                io::Error::other(format!(
                    "it sent more than {MAX_UNKNOWN_BYTES} bytes without a certificate"
                ))
            })?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A connection that has begun.
pub struct Connection {
    stream: Stream,
    peer: Peer,
    closing: Closing,
    _permit: AnyPermit,
}

/// The limit that a connection counts against, held until it is closed.
enum AnyPermit {
    Pending(#[expect(dead_code, reason = "held, never read")] Permit<IpAddr>),
    Open(#[expect(dead_code, reason = "held, never read")] Permit<Owner>),
}

/// When a connection is closed from this side.
struct Closing {
    evicted: Evicted,
    /// If it may not stay.
    at: Option<Pin<Box<Sleep>>>,
}

impl Closing {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let is_over = |at: &mut Pin<Box<Sleep>>| at.as_mut().poll(context).is_ready();
        let is_late = self.at.as_mut().is_some_and(is_over);
        match is_late || Pin::new(&mut self.evicted).poll(context).is_ready() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.closing.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, bytes)
    }
}

impl AsyncWrite for Connection {
    // Checked here as well: a client that reads nothing keeps its connection at writing.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.closing.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closing.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn only_clients_that_speak_the_protocol_are_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let connect = || async { TcpStream::connect(address).await.expect("connected") };
        let limits = ConnectionLimits { open: 8, open_of_one: 8, pending: 256 };
        let Accepted { admitted: mut inside, unknown: _ } = connections(listener, None, limits);
        let mut other = connect().await;
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        // Closed with unread bytes, which may be reported as an error.
        assert!(matches!(other.read(&mut [0]).await, Ok(0) | Err(_)));
        let mut speaks = connect().await;
        speaks.write_all(PREFACE).await.expect("sent");
        let mut heard = [0; PREFACE.len()];
        let mut came = inside.next().await.expect("open").expect("accepted");
        came.read_exact(&mut heard).await.expect("nothing was taken out");
        assert_eq!(heard, PREFACE);
        came.write_all(b"x").await.expect("sent");
        speaks.read_exact(&mut [0]).await.expect("answered");
        // Of many that send nothing the first ones are closed, and one that speaks the protocol is
        // accepted.
        let mut idle = Vec::new();
        for _ in 0..2 * limits.pending {
            idle.push(connect().await);
        }
        assert_eq!(idle[0].read(&mut [0]).await.expect("closed"), 0);
        let mut speaks = connect().await;
        speaks.write_all(PREFACE).await.expect("sent");
        inside.next().await.expect("open").expect("accepted");
    }

    #[test]
    fn an_ipv6_network_counts_as_one_owner() {
        for (address, owner) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::"),
        ] {
            assert_eq!(
                network(address.parse().expect("an address")),
                owner.parse::<IpAddr>().expect("an address")
            );
        }
    }

    #[tokio::test]
    async fn an_unknown_client_may_send_a_limited_number_of_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client =
            TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut metered = Metered { stream, left: Some(10) };
        client.write_all(&[1; 16]).await.expect("sent");
        let mut bytes = [0; 8];
        assert_eq!(metered.read(&mut bytes).await.expect("8 of 10"), 8);
        assert!(metered.read(&mut bytes).await.is_err());
    }
}
