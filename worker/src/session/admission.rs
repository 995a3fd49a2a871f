//! How a worker is admitted: it makes a key, which never leaves this process, and exchanges its
//! join token for a certificate. The run's authority is all that it trusts.

use crate::error::WorkerError;
use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use thanos_formats::EXIT_NO_PERMISSION;
use thanos_proto::v1::EnrolRequest;
use thanos_proto::v1::coordinator_client::CoordinatorClient;
use thanos_proto::{CA, COORDINATOR_NAME, TOKEN};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, transport};

/// What a worker speaks to its coordinator with.
pub(super) enum Admission {
    /// Nothing: the run is an insecure one.
    Insecure,
    Token {
        authority: Certificate,
        token: String,
        /// The same at every attempt: an enrolment whose answer was lost is repeated, and the
        /// coordinator knows it by its key.
        key: Box<KeyPair>,
    },
    Certificate {
        tls: Box<ClientTlsConfig>,
        /// Certificate and key, PEM.
        identity: (String, String),
    },
}

impl Admission {
    /// What is in a worker's folder of credentials; without one it has none.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] with 77, naming the file.
    pub(super) fn read(folder: Option<&Path>) -> Result<Self> {
        let Some(folder) = folder else { return Ok(Self::Insecure) };
        let read = |name: &str| {
            let file = folder.join(name);
            std::fs::read_to_string(&file)
                .map_err(|error| refused(format!("cannot read {}: {error}", file.display())))
        };
        let (authority, token) = (Certificate::from_pem(read(CA)?), read(TOKEN)?.trim().into());
        Ok(Self::Token { authority, token, key: Box::new(KeyPair::generate()?) })
    }

    /// What may be wrong with this worker if a connection fails.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Insecure => " (a coordinator without --insecure needs --credentials)",
            Self::Token { .. } | Self::Certificate { .. } => {
                " (one with --insecure needs the same of its workers)"
            }
        }
    }

    /// The coordinator's address for a client with credentials; a token is exchanged for them
    /// first.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] if the coordinator is not the run's, or does not take the token;
    /// else it could not be reached.
    pub(super) async fn endpoint(
        &mut self,
        coordinator: &str,
        worker_id: &str,
    ) -> Result<Endpoint> {
        let endpoint = |scheme: &str| {
            let endpoint = Endpoint::from_shared(format!("{scheme}://{coordinator}"));
            endpoint.with_context(|| format!("`{coordinator}` is not HOST:PORT"))
        };
        if let Self::Token { authority, token, key } = self {
            let tls = ClientTlsConfig::new()
                .ca_certificate(authority.clone())
                .domain_name(COORDINATOR_NAME);
            let certificate_request =
                CertificateParams::default().serialize_request(key.as_ref())?.der().to_vec();
            let request = EnrolRequest {
                worker_id: worker_id.into(),
                token: token.clone(),
                certificate_request,
            };
            let channel = endpoint("https")?
                .tls_config(tls.clone())?
                .connect()
                .await
                .map_err(unless_untrusted)?;
            let reply =
                CoordinatorClient::new(channel).enrol(request).await.map_err(unless_refused)?;
            let identity = (reply.into_inner().certificate, key.serialize_pem());
            let tls = tls.identity(Identity::from_pem(&identity.0, &identity.1));
            *self = Self::Certificate { tls: Box::new(tls), identity };
        }
        match self {
            Self::Certificate { tls, .. } => {
                Ok(endpoint("https")?.tls_config(tls.as_ref().clone())?)
            }
            Self::Insecure | Self::Token { .. } => endpoint("http"),
        }
    }
}

/// How a worker serves pages: with the certificate that it shows to the coordinator.
pub(super) fn server(certificate: &str, key: &str) -> Result<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    Ok(ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?)
}

fn refused(reason: String) -> WorkerError {
    WorkerError::Refused { reason, exit_code: EXIT_NO_PERMISSION }
}

/// A connection that failed; for good, if what answers is not of this run.
pub(super) fn unless_untrusted(error: transport::Error) -> anyhow::Error {
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(current) = cause {
        let inner = current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return refused("it is not of the run whose ca.pem this worker has".into()).into();
        }
        cause = current.source();
    }
    error.into()
}

/// A call that failed; for good, if this worker may not make it.
pub(super) fn unless_refused(status: Status) -> anyhow::Error {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => refused(status.message().into()).into(),
        _ => anyhow::anyhow!("{}", status.message()),
    }
}
