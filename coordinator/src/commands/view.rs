//! `view`: the live page of any run directory, also of a run that has ended or that another process
//! trains. It reads the directory without its lock, and changes nothing.

use crate::exit::{EXIT_USAGE, Fatal};
use crate::report::figures_of_rows;
use crate::run_dir::identity;
use crate::signals;
use crate::telemetry::http::Observed;
use crate::telemetry::page::{LivePage, Source};
use crate::terminal;
use anyhow::Result;
use axum::Router;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use thanos_transport::{needs_guard, show};

/// Serves the page until a signal ends it.
///
/// # Errors
/// 64 if the directory is not a run directory or others can reach the address, 69 if it cannot be
/// listened on.
pub(crate) fn view(run_dir: &Path, address: SocketAddr) -> Result<()> {
    identity(run_dir)?;
    if needs_guard(address) {
        let message = format!(
            "--listen {address}: other machines can reach it, and the page would be open to them; \
             listen on 127.0.0.1, and forward the port (ssh -L)"
        );
        return Err(Fatal::new(EXIT_USAGE, message).into());
    }
    let listener = Observed::listen(address, "--listen")?;
    listener.set_nonblocking(true)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let mut stop_signals = signals::received();
        let drawn = run_dir.to_owned();
        let figures = Arc::new(move || figures_of_rows(&drawn, None));
        let page = LivePage::start(run_dir, Source::Directory(run_dir.into()), figures)?;
        show(listener, None, (Router::new(), page.routes()))?;
        terminal::line(&format!(
            "live page of {} at http://{address}/ (Ctrl-C ends it)",
            run_dir.display()
        ));
        stop_signals.recv().await;
        Ok(())
    })
}
