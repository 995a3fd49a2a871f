//! Pages over HTTP: some for all clients that can reach them, some for clients with a token. On
//! 127.0.0.1 there is no TLS and no token. Only requests that name this machine are answered there:
//! `page_access.rs` has the rules.

use crate::connections::{Accepted, Connection, ConnectionLimits, connections};
use crate::page_access::{Access, PageCookie, access_of, names_loopback};
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{LOCATION, REFERRER_POLICY, SET_COOKIE};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
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
    /// What a browser shows instead, where there is a page for browsers.
    pub cookie: Option<PageCookie>,
}

/// Whether others than this machine can reach an address.
pub fn needs_guard(address: SocketAddr) -> bool {
    !address.ip().is_loopback()
}

/// Serves pages on `listener` until the process ends: `open` to all clients, `guarded` to clients
/// with the token. Without a guard all are open, and nothing is encrypted.
pub fn show(
    listener: TcpListener,
    guard: Option<Guard>,
    (open, guarded): (Router, Router),
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let Some(Guard { tls, token_sha256, cookie }) = guard else {
        let pages = open.merge(guarded);
        let pages =
            if needs_guard(address) { pages } else { pages.layer(from_fn(refuse_other_hosts)) };
        tokio::spawn(async move { axum::serve(listener, pages).await });
        return Ok(());
    };
    let guarded = guarded.route_layer(from_fn(move |request: Request, next: Next| {
        let access = access_of(&request, &token_sha256, cookie.as_ref());
        async move {
            match access {
                Access::Granted => next.run(request).await,
                Access::LogIn(cookie) => logged_in(cookie),
                Access::Denied => (StatusCode::UNAUTHORIZED, UNAUTHORIZED).into_response(),
            }
        }
    }));
    let limits = ConnectionLimits {
        open: MAX_CONNECTIONS,
        open_of_one: MAX_CONNECTIONS,
        pending: MAX_CONNECTIONS,
    };
    let Accepted { admitted, unknown } =
        connections(listener, Some(TlsAcceptor::from(tls)), limits);
    // Readers show a token; a certificate changes nothing here.
    let begun = Begun { connections: admitted.merge(unknown), address };
    tokio::spawn(async move { axum::serve(begun, open.merge(guarded)).await });
    Ok(())
}

/// Readers at a time.
const MAX_CONNECTIONS: usize = 64;

/// What a reader without the token is answered.
const UNAUTHORIZED: &str = "401 Unauthorized: send `Authorization: Bearer TOKEN`, or open \
    /?token=TOKEN in a browser; \
                            the coordinator prints the path of the file with the token\n";

/// Sends a browser to the page, whose address does not have the token any more.
fn logged_in(cookie: String) -> Response {
    let headers =
        [(SET_COOKIE, cookie), (LOCATION, "/".into()), (REFERRER_POLICY, "no-referrer".into())];
    (StatusCode::SEE_OTHER, headers).into_response()
}

/// On a loopback address.
async fn refuse_other_hosts(request: Request, next: Next) -> Response {
    match names_loopback(request.headers()) {
        true => next.run(request).await,
        false => {
            (StatusCode::FORBIDDEN, "403 Forbidden: the Host header does not name this machine\n")
                .into_response()
        }
    }
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
