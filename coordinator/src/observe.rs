//! What a run shows over HTTP, read only: `/metrics` for Prometheus, `/status` as JSON for people and scripts, `/healthz`
//! (this process lives) and `/readyz` (a generation trains). It sees what is done, and changes nothing. Where other
//! machines can reach it, it speaks TLS and shows the first two to who has the run's scrape token.

use crate::credentials::{Credentials, SCRAPE_TOKEN};
use crate::door::{Connection, connections};
use crate::exit::{EXIT_UNREACHABLE, Fatal};
use crate::metrics;
use crate::run::{Effect, Notice, Start};
use anyhow::Result;
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use axum::serve::Listener;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Connections that have begun to speak TLS, as axum takes them.
struct Begun {
    connections: ReceiverStream<io::Result<Connection>>,
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
                // The door has closed: there is nobody to come.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// The token that a request brings.
fn bearer(request: &Request) -> Option<&str> {
    request.headers().get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Upper bounds of the histogram of phases, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// What is shown; its handles are cheap.
#[derive(Clone)]
pub(crate) struct Observed {
    state: Arc<Mutex<State>>,
}

struct State {
    run: String,
    generation: u64,
    /// Ranks of the generation, by the workers' names; none while workers gather.
    ranks: Vec<String>,
    /// The last committed step, as `/status` has it.
    position: Value,
    checkpoint: Value,
}

impl Observed {
    /// Shows a run on `address` until this process ends.
    ///
    /// # Errors
    /// 69, naming the address, if it cannot be listened on.
    pub(crate) async fn serve(
        address: SocketAddr,
        credentials: Option<Arc<Credentials>>,
        start: &Start,
    ) -> Result<Self> {
        let cannot = |error: std::io::Error| {
            Fatal::new(EXIT_UNREACHABLE, format!("cannot listen on {address} for --status: {error}"))
        };
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let phases = Matcher::Full(metrics::PHASE_SECONDS.into());
        let scraped = PrometheusBuilder::new().set_buckets_for_metric(phases, &BUCKETS)?.install_recorder()?;
        metrics::describe();
        let run = start.welcome.run_id.clone();
        let (generation, position) = (start.last_generation, Value::Null);
        let state = State { run, generation, ranks: Vec::new(), position, checkpoint: Value::Null };
        let observed = Self { state: Arc::new(Mutex::new(state)) };
        let (status, ready) = (observed.clone(), observed.clone());
        let text = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
        let router = Router::new()
            .route("/metrics", get(move || async move { (text, scraped.render()) }))
            .route("/status", get(move || async move { Json(status.status()) }));
        let credentials = credentials.filter(|_| !address.ip().is_loopback());
        let router = match credentials.clone() {
            Some(credentials) => router.route_layer(from_fn(move |request: Request, next: Next| {
                let may = bearer(&request).is_some_and(|token| credentials.may_scrape(token));
                async move { if may { next.run(request).await } else { StatusCode::UNAUTHORIZED.into_response() } }
            })),
            None => router,
        };
        let router = router
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(move || async move { ready.ready().into_response() }));
        let address = listener.local_addr()?;
        match credentials {
            None => {
                eprintln!("metrics and status at http://{address}");
                tokio::spawn(async move { axum::serve(listener, router).await });
            }
            Some(credentials) => {
                let token = credentials.folder().join(SCRAPE_TOKEN);
                eprintln!("metrics and status at https://{address}, for the token in {}", token.display());
                let tls = TlsAcceptor::from(Arc::new(credentials.tls(&["http/1.1"])?));
                let begun = Begun { connections: connections(listener, Some(tls)), address };
                tokio::spawn(async move { axum::serve(begun, router).await });
            }
        }
        Ok(observed)
    }

    /// Something is being done.
    pub(crate) fn see(&self, effect: &Effect) {
        metrics::see(effect);
        let mut state = self.lock();
        match effect {
            Effect::Record(step) => {
                state.position = json!({
                    "stage": step.stage, "steps": step.step + 1, "of": step.total_steps, "epoch": step.epoch,
                    "loss": step.loss,
                });
            }
            // A generation is over, or begins.
            Effect::OpenStore { generation } if *generation > state.generation => state.ranks.clear(),
            Effect::Tell(Notice::Began { generation, workers }) => {
                (state.generation, state.ranks) = (*generation, workers.clone());
            }
            Effect::Tell(Notice::Saved { stage, step }) => state.checkpoint = json!({"stage": stage, "steps": step}),
            _ => {}
        }
    }

    fn status(&self) -> Value {
        let state = self.lock();
        json!({
            "run": state.run, "generation": state.generation, "ranks": state.ranks, "position": state.position,
            "checkpoint": state.checkpoint,
        })
    }

    fn ready(&self) -> (StatusCode, &'static str) {
        match self.lock().ranks.is_empty() {
            true => (StatusCode::SERVICE_UNAVAILABLE, "waiting for workers\n"),
            false => (StatusCode::OK, "training\n"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
