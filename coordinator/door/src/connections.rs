//! The door: connections are accepted here, and handed on once they have begun to speak: TLS, or, where the user wanted no
//! encryption, HTTP/2. Whoever says nothing, or something else, costs a descriptor for a moment and never reaches the
//! service. Who is behind a connection is known from here on; what it may do is not decided here.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
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
const MOST_BEGINNING: Duration = Duration::from_secs(5);
/// Connections that may be about to begin, in all and of one address; one more is closed at once.
const MOST_STRANGERS: usize = 256;
const MOST_STRANGERS_OF_ONE: usize = 128;
/// Connections of one address that have begun: the workers of a machine, and whoever shares its address.
const MOST_OF_ONE: usize = 1024;
/// How long a connection may last whose owner has shown no certificate: it is for one call.
const MOST_ENROLLING: Duration = Duration::from_secs(15);
/// Connections that may wait for the service.
const MOST_WAITING: usize = 64;
/// Pause when no connection can be accepted, as when descriptors have run out.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    pub identity: Identity,
}

/// As whom the other end was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nobody was asked: the run is an insecure one.
    Unchecked,
    /// It showed no certificate; it may enrol.
    Unknown,
    Worker(String),
}

/// Connections of `listener` that have begun, as they come, `most` of them at a time. The listener is closed when the stream
/// is dropped.
pub fn connections(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    most: usize,
) -> ReceiverStream<io::Result<Connection>> {
    let (inside, connections) = mpsc::channel(MOST_WAITING);
    tokio::spawn(accept(listener, tls, most, inside));
    ReceiverStream::new(connections)
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    most: usize,
    inside: mpsc::Sender<io::Result<Connection>>,
) {
    let (strangers, begun) =
        (Places::new(MOST_STRANGERS, MOST_STRANGERS_OF_ONE), Places::new(most, MOST_OF_ONE.min(most)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = inside.closed() => return,
        };
        let Ok((stream, from)) = accepted else {
            sleep(AFTER_FAILURE).await;
            continue;
        };
        let Some(place) = strangers.take(from.ip()) else {
            tracing::debug!(%from, "closed: too many connections have not begun");
            continue;
        };
        let (inside, tls, begun) = (inside.clone(), tls.clone(), begun.clone());
        tokio::spawn(async move {
            match timeout(MOST_BEGINNING, begin(stream, from, tls)).await {
                Ok(Ok((stream, peer))) => match begun.take(from.ip()) {
                    Some(place) => _ = inside.send(Ok(Connection::new(stream, peer, place))).await,
                    None => tracing::warn!(%from, "closed: {most} connections are open"),
                },
                Ok(Err(reason)) => tracing::debug!(%from, "closed: {reason}"),
                Err(_) => tracing::debug!(%from, "closed: it took too long to begin"),
            }
            drop(place);
        });
    }
}

/// Waits for the other end to begin.
async fn begin(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> io::Result<(Either<TcpStream, Box<TlsStream<TcpStream>>>, Peer)> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        // The bytes stay where they are.
        let mut bytes = [0; PREFACE.len()];
        let len = stream.peek(&mut bytes).await?;
        return match len > 0 && bytes[..len] == PREFACE[..len] {
            true => Ok((Either::Left(stream), Peer { address, identity: Identity::Unchecked })),
            false => Err(io::Error::other("it does not speak HTTP/2")),
        };
    };
    let stream = tls.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = match certificate {
        None => Identity::Unknown,
        Some(certificate) => Identity::Worker(name_of(certificate).ok_or(io::ErrorKind::InvalidData)?),
    };
    Ok((Either::Right(Box::new(stream)), Peer { address, identity }))
}

/// The name in a certificate (DER); that it is from the run's authority was seen in the handshake.
pub fn name_of(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

/// A connection that has begun.
pub struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    peer: Peer,
    /// When it is closed, if it may not stay.
    until: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    fn new(stream: Either<TcpStream, Box<TlsStream<TcpStream>>>, peer: Peer, place: Place) -> Self {
        let until = (peer.identity == Identity::Unknown).then(|| Box::pin(sleep(MOST_ENROLLING)));
        Self { stream, peer, until, _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let is_over = |until: &mut Pin<Box<Sleep>>| until.as_mut().poll(context).is_ready();
        if self.until.as_mut().is_some_and(is_over) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, bytes)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A number of places, in all and for one address.
#[derive(Clone)]
struct Places {
    most: usize,
    most_of_one: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place that was taken; dropping it gives it back.
struct Place {
    address: IpAddr,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Places {
    fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, taken: Arc::default() }
    }

    fn take(&self, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= self.most {
            return None;
        }
        let of_one = taken.entry(address).or_insert(0);
        if *of_one >= self.most_of_one {
            return None;
        }
        *of_one += 1;
        Some(Place { address, taken: self.taken.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = taken.get_mut(&self.address) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn only_who_speaks_the_protocol_comes_in() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let connect = || async { TcpStream::connect(address).await.expect("connected") };
        let mut inside = connections(listener, None, 8);
        let mut other = connect().await;
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        // Closed with what it said unread, which may be told as an error.
        assert!(matches!(other.read(&mut [0]).await, Ok(0) | Err(_)));
        let mut speaks = connect().await;
        speaks.write_all(PREFACE).await.expect("sent");
        let mut heard = [0; PREFACE.len()];
        let mut came = inside.next().await.expect("open").expect("accepted");
        came.read_exact(&mut heard).await.expect("nothing was taken out");
        assert_eq!(heard, PREFACE);
        came.write_all(b"x").await.expect("sent");
        speaks.read_exact(&mut [0]).await.expect("answered");
        // Of many that say nothing the last ones find no place, and are closed at once.
        let mut idle = Vec::new();
        for _ in 0..2 * MOST_STRANGERS {
            idle.push(connect().await);
        }
        assert_eq!(idle.last_mut().expect("many").read(&mut [0]).await.expect("closed"), 0);
    }
}
