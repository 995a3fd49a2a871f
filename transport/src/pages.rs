//! Pages over HTTP: some for all clients that can reach them, some for clients with a token. On 127.0.0.1 there is no TLS and no
//! token.

use crate::connections::{Accepted, Connection, ConnectionLimits, connections};
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::serve::Listener;
use sha2::{Digest, Sha256};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use thanos_configs::hex;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_stream::StreamExt;
use tokio_stream::adapters::Merge;
use tokio_stream::wrappers::ReceiverStream;

/// How pages are protected.
#[derive(Clone)]
pub struct Guard {
    pub tls: Arc<ServerConfig>,
    /// SHA-256 of the token that a reader must bring, in hexadecimal.
    pub token_sha256: String,
}

/// Whether others than this machine can reach an address.
pub fn needs_guard(address: SocketAddr) -> bool {
    !address.ip().is_loopback()
}

/// Serves pages on `listener` until the process ends: `open` to all clients, `guarded` to clients with the token. Without a guard
/// all are open, and nothing is encrypted.
pub fn show(listener: TcpListener, guard: Option<Guard>, (open, guarded): (Router, Router)) -> io::Result<()> {
    let address = listener.local_addr()?;
    let Some(Guard { tls, token_sha256 }) = guard else {
        tokio::spawn(async move { axum::serve(listener, open.merge(guarded)).await });
        return Ok(());
    };
    let guarded = guarded.route_layer(from_fn(move |request: Request, next: Next| {
        let may = bearer(&request).is_some_and(|token| is_token(token, &token_sha256));
        async move { if may { next.run(request).await } else { StatusCode::UNAUTHORIZED.into_response() } }
    }));
    let limits = ConnectionLimits { open: MAX_CONNECTIONS, open_of_one: MAX_CONNECTIONS, pending: MAX_CONNECTIONS };
    let Accepted { admitted, unknown } = connections(listener, Some(TlsAcceptor::from(tls)), limits);
    // Readers show a token; a certificate changes nothing here.
    let begun = Begun { connections: admitted.merge(unknown), address };
    tokio::spawn(async move { axum::serve(begun, open.merge(guarded)).await });
    Ok(())
}

/// Readers at a time.
const MAX_CONNECTIONS: usize = 64;

/// The token that a request brings.
fn bearer(request: &Request) -> Option<&str> {
    request.headers().get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn is_token(token: &str, token_sha256: &str) -> bool {
    hex(&Sha256::digest(token.trim().as_bytes())).as_bytes().ct_eq(token_sha256.as_bytes()).into()
}

type Incoming = ReceiverStream<io::Result<Connection>>;

/// Connections that have begun to speak TLS, as axum takes them.
struct Begun {
    connections: Merge<Incoming, Incoming>,
    address: SocketAddr,
}

impl Listener for Begun {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.connections.next().await {
                Some(Ok(connection)) => return (connection, self.address),
                Some(Err(_)) => {}
                // The listener has closed: no connection follows.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
