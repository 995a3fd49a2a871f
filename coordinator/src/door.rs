//! The door: connections are accepted here, and handed on once they have begun to speak HTTP/2. Whoever says nothing, or
//! something else, costs a descriptor for a moment and never reaches the service; who may speak is not decided here.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may take to begin, and how many may be about to; one more is closed at once.
const MOST_BEGINNING: Duration = Duration::from_secs(5);
const MOST_STRANGERS: usize = 256;
/// Connections that may wait for the service.
const MOST_WAITING: usize = 64;
/// Pause when no connection can be accepted, as when descriptors have run out.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Connections of `listener` that speak HTTP/2, as they come. The listener is closed when the stream is dropped.
pub(crate) fn connections(listener: TcpListener) -> ReceiverStream<io::Result<TcpStream>> {
    let (inside, connections) = mpsc::channel(MOST_WAITING);
    tokio::spawn(accept(listener, inside));
    ReceiverStream::new(connections)
}

async fn accept(listener: TcpListener, inside: mpsc::Sender<io::Result<TcpStream>>) {
    let places = Arc::new(Semaphore::new(MOST_STRANGERS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = inside.closed() => return,
        };
        let Ok((stream, from)) = accepted else {
            tokio::time::sleep(AFTER_FAILURE).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::debug!(%from, "closed: too many connections have not begun");
            continue;
        };
        let inside = inside.clone();
        tokio::spawn(async move {
            match timeout(MOST_BEGINNING, begins(&stream)).await {
                Ok(Ok(true)) => _ = inside.send(Ok(stream)).await,
                _ => tracing::debug!(%from, "closed: it does not speak HTTP/2"),
            }
            drop(place);
        });
    }
}

/// Whether the first bytes are those of the preface, which stay where they are.
async fn begins(stream: &TcpStream) -> io::Result<bool> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; PREFACE.len()];
    let len = stream.peek(&mut bytes).await?;
    Ok(len > 0 && bytes[..len] == PREFACE[..len])
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
        let mut inside = connections(listener);
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
