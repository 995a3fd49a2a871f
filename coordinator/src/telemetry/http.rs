//! What a run shows over HTTP, read only: `/metrics` for Prometheus, `/sd` for its service
//! discovery (the workers' own pages), `/status` as JSON for people and scripts, `/healthz` (this
//! process lives) and `/readyz` (a generation trains); `/` is the live page for browsers
//! (`page.rs`). It sees what is done, and changes nothing. Where other machines can reach it, it
//! speaks TLS and serves all but the last two only to clients with the run's scrape token.

use crate::server::credentials::Credentials;

use crate::exit::{EXIT_UNREACHABLE, Fatal};
use crate::run::{Effect, Event, Notice, Start};
use crate::server::Sessions;
use crate::telemetry::Telemetry;
use crate::telemetry::page::{DrawFigures, Live, LivePage, Source};
use crate::terminal;
use anyhow::Result;
use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thanos_transport::{Guard, PageCookie, metrics_page, needs_guard, show};
use tokio::net::TcpListener;

/// What is shown; its handles are cheap.
#[derive(Clone)]
pub(crate) struct Observed {
    state: Arc<Mutex<State>>,
    live: Arc<Live>,
}

struct State {
    run: String,
    generation: u64,
    /// Ranks of the generation, by the workers' names; none while workers gather.
    ranks: Vec<String>,
    /// Of every worker that has joined, by its name.
    devices: BTreeMap<String, Value>,
    /// Of the generation.
    collectives: Value,
    /// The last committed step, as `/status` has it.
    position: Value,
    checkpoint: Value,
}

/// What is served of a run.
pub(crate) struct ServedRun<'a> {
    pub(crate) sessions: &'a Sessions,
    pub(crate) telemetry: &'a Telemetry,
    pub(crate) start: &'a Start,
    pub(crate) figures: DrawFigures,
}

impl Observed {
    /// Takes the address on which a run is to be shown.
    ///
    /// # Errors
    /// 69, naming the address and the option, if it cannot be listened on.
    pub(crate) fn listen(
        address: SocketAddr,
        option: &str,
    ) -> Result<std::net::TcpListener, Fatal> {
        crate::server::bind(address).map_err(|error| {
            Fatal::new(
                EXIT_UNREACHABLE,
                format!("cannot listen on {address} for {option}: {error}"),
            )
        })
    }

    /// Shows a run on `listener` until this process ends.
    ///
    /// # Errors
    /// If the listener, or the run's token, cannot be used.
    pub(crate) fn serve(
        listener: std::net::TcpListener,
        credentials: Option<&Credentials>,
        ServedRun { sessions, telemetry, start, figures }: ServedRun<'_>,
    ) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let scraped = telemetry.clone();
        let guarded = metrics_page(move || scraped.scrape());
        let run = start.welcome.run_id.clone();
        let (generation, position) = (start.last_generation, Value::Null);
        let state = State {
            run,
            generation,
            ranks: Vec::new(),
            devices: BTreeMap::new(),
            collectives: Value::Null,
            position,
            checkpoint: Value::Null,
        };
        let live = Arc::new(Live::default());
        let source = Source::Run { live: live.clone(), telemetry: telemetry.clone() };
        let page = LivePage::start(Path::new(&start.welcome.run_dir), source, figures);
        // The run continues without it.
        let page = page.inspect_err(|error| tracing::warn!("there is no live page: {error}")).ok();
        if let Some(page) = &page {
            telemetry.show_end_on(page.clone());
        }
        let observed = Self { state: Arc::new(Mutex::new(state)), live };
        let is_secure = credentials.is_some();
        let (status, ready, sessions) = (observed.clone(), observed.clone(), sessions.clone());
        let name = telemetry.run().to_owned();
        let guarded =
            guarded
                .merge(page.map_or_else(Router::new, |page| page.routes()))
                .route("/status", get(move || async move { Json(status.status()) }))
                .route(
                    "/sd",
                    get(move || async move {
                        Json(worker_targets(&name, &sessions.pages(), is_secure))
                    }),
                );
        let open = Router::new()
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(move || async move { ready.ready().into_response() }));
        let guard = guard(address, credentials, &start.welcome.run_id)?;
        show(listener, guard, (open, guarded))?;
        Ok(observed)
    }

    /// Something happened.
    pub(crate) fn on_event(&self, event: &Event) {
        self.live.on_event(event);
    }

    /// Something is being done.
    pub(crate) fn on_effect(&self, effect: &Effect) {
        self.live.on_effect(effect);
        let mut state = self.lock();
        match effect {
            Effect::Record(step) => {
                state.position = json!({
                    "stage": step.stage, "steps": step.step + 1, "of": step.total_steps,
                    "epoch": step.epoch,
                    "loss": step.loss,
                });
            }
            // A generation is over, or begins.
            Effect::OpenStore { generation } if *generation > state.generation => {
                state.ranks.clear()
            }
            Effect::Notify(Notice::Joined { worker, device, .. }) => {
                state.devices.insert(worker.clone(), device_json(device));
            }
            Effect::Notify(Notice::Began { generation, workers, collectives, .. }) => {
                (state.generation, state.ranks) = (*generation, workers.clone());
                state.collectives = collectives.label().into();
            }
            Effect::Notify(Notice::Saved { stage, step }) => {
                state.checkpoint = json!({"stage": stage, "steps": step});
            }
            _ => {}
        }
    }

    fn status(&self) -> Value {
        let state = self.lock();
        let devices: Vec<&Value> =
            state.ranks.iter().filter_map(|rank| state.devices.get(rank)).collect();
        json!({
            "run": state.run, "generation": state.generation, "ranks": state.ranks,
            "devices": devices,
            "collectives": state.collectives, "position": state.position,
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

/// How the pages at an address are guarded, which a line on the terminal says.
fn guard(
    address: SocketAddr,
    credentials: Option<&Credentials>,
    run_id: &str,
) -> Result<Option<Guard>> {
    let Some(credentials) = credentials.filter(|_| needs_guard(address)) else {
        terminal::line(&format!("live page, metrics and status at http://{address}"));
        return Ok(None);
    };
    let file = credentials.scrape_token();
    terminal::line(&format!(
        "live page, metrics and status at https://{address}, for the token in {} (in a browser: \
         https://{address}/?token=TOKEN)",
        file.display()
    ));
    let cookie = Some(PageCookie::new(run_id, &std::fs::read_to_string(file)?));
    let tls = Arc::new(credentials.tls(&["http/1.1"])?);
    Ok(Some(Guard { tls, token_sha256: credentials.scrape_token_sha256()?, cookie }))
}

/// The coordinator's page and those of the workers in the form of Prometheus's file-based service
/// discovery. `addresses` are those under which the coordinator's page is reached, the best one
/// first.
pub(crate) fn targets(
    run: &str,
    addresses: &[SocketAddr],
    sessions: &Sessions,
    is_secure: bool,
) -> Value {
    let coordinator = addresses.first().map(|address| {
        let labels =
            labels((run, "coordinator"), COORDINATOR_JOB, is_secure && needs_guard(*address));
        json!({"targets": [address.to_string()], "labels": labels})
    });
    let workers = worker_targets(run, &sessions.pages(), is_secure);
    coordinator.into_iter().chain(workers.as_array().into_iter().flatten().cloned()).collect()
}

/// The workers in the form of Prometheus's HTTP service discovery.
fn worker_targets(run: &str, pages: &BTreeMap<String, String>, is_secure: bool) -> Value {
    let target = |(worker, address): (&String, &String)| {
        let is_guarded = is_secure && address.parse().map_or(true, needs_guard);
        let mut labels = labels((run, "worker"), WORKERS_JOB, is_guarded);
        labels["worker"] = worker.as_str().into();
        json!({"targets": [address], "labels": labels})
    };
    pages.iter().map(target).collect()
}

/// The jobs that the alerts select by, whatever a site's scrape configuration is called.
const COORDINATOR_JOB: &str = "thanos_trainer";
const WORKERS_JOB: &str = "thanos_trainer_workers";

fn labels((run, component): (&str, &str), job: &str, is_guarded: bool) -> Value {
    let scheme = if is_guarded { "https" } else { "http" };
    json!({"job": job, "run": run, "component": component, "__scheme__": scheme})
}

/// A device in `events.jsonl` and on the status page.
pub(crate) fn device_json(device: &thanos_proto::Device) -> Value {
    let mut json = json!({"kind": device.kind.label(), "name": device.name});
    if let Some(id) = &device.id {
        json["id"] = id.as_str().into();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_the_labels_that_alerts_select_by() {
        let pages = BTreeMap::from([("worker-0".to_owned(), "127.0.0.1:9".to_owned())]);
        let expected = json!([{"targets": ["127.0.0.1:9"], "labels": {
            "job": "thanos_trainer_workers", "run": "r", "component": "worker",
            "__scheme__": "http", "worker": "worker-0",
        }}]);
        assert_eq!(worker_targets("r", &pages, true), expected, "on this machine there is no TLS");
        let addresses = [
            "10.0.0.1:9464".parse().expect("an address"),
            "127.0.0.1:9464".parse().expect("an address"),
        ];
        for (is_secure, scheme) in [(true, "https"), (false, "http")] {
            let expected = json!([{"targets": ["10.0.0.1:9464"], "labels": {
                "job": "thanos_trainer", "run": "r", "component": "coordinator",
                "__scheme__": scheme,
            }}]);
            assert_eq!(targets("r", &addresses, &Sessions::default(), is_secure), expected);
        }
    }
}
