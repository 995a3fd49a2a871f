//! Credentials of a run. Each run has a certificate authority of its own: the coordinator's
//! certificate is from it, and a worker gets one by a join token, for its own id alone. Secrets are
//! in files of mode 0600, and nowhere else: not in arguments, variables, logs or error texts.

use crate::exit::{EXIT_CONFIG, EXIT_IO, Fatal};
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq;
use thanos_configs::hex;
use thanos_proto::{CA, COORDINATOR_NAME, TOKEN, is_worker_id};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// What the coordinator finds in its folder of credentials, in addition to a worker's files.
pub(crate) const CA_KEY: &str = "ca.key";
const SCRAPE_TOKEN: &str = "scrape-token";

/// Folder of the workers whose process this program starts, one folder per worker.
const WORKERS: &str = "workers";
/// In a worker's folder: which token and which key its last enrolment was for.
const ENROLLED: &str = "enrolled";
/// How long an enrolment whose answer was lost can be repeated.
const MAX_REPEAT: Duration = Duration::from_secs(600);
/// Bytes of a token, before they are written in hexadecimal.
const TOKEN_BYTES: usize = 32;
/// Characters of a site's scrape token, at least.
const MIN_SITE_TOKEN_BYTES: usize = 16;

/// The authority of a run, in its folder.
pub(crate) struct Credentials {
    folder: PathBuf,
    ca: String,
    issuer: Issuer<'static, KeyPair>,
    /// The token that metrics are shown for, in a file.
    scrape_token: PathBuf,
    /// One enrolment at a time: a token is used up by one key.
    enrolling: Mutex<()>,
}

/// Why a worker gets no certificate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotEnrolled {
    #[error(
        "invalid worker id `{0}`: at most 63 letters, digits, `-`, `_` and, except at either end, \
        `.`"
    )]
    Id(String),
    #[error("invalid join token for worker `{0}`, or it was already used")]
    Token(String),
    #[error("its certificate request is malformed")]
    Request,
}

impl Credentials {
    /// Opens a folder of credentials, and makes it if it is not there; `shared`: with a token that
    /// any worker may join with, as often as it needs.
    ///
    /// # Errors
    /// 74 if files cannot be written, 78 if they are there and not credentials.
    pub(crate) fn open_or_make(folder: &Path, shared: bool) -> Result<Self, Fatal> {
        if !folder.join(CA).exists() {
            make(folder).map_err(|error| {
                Fatal::new(
                    EXIT_IO,
                    format!("cannot make credentials in {}: {error:#}", folder.display()),
                )
            })?;
        }
        if shared && !folder.join(TOKEN).exists() {
            new_token(&folder.join(TOKEN)).map_err(|error| {
                Fatal::new(
                    EXIT_IO,
                    format!("cannot write {}: {error}", folder.join(TOKEN).display()),
                )
            })?;
        }
        Self::open(folder)
            .map_err(|error| Fatal::new(EXIT_CONFIG, format!("{}: {error:#}", folder.display())))
    }

    fn open(folder: &Path) -> Result<Self> {
        let ca = fs::read_to_string(folder.join(CA)).context(CA)?;
        let key = fs::read_to_string(folder.join(CA_KEY)).context(CA_KEY)?;
        let key = KeyPair::from_pem(&key).ok().context("its key cannot be read")?;
        let issuer =
            Issuer::from_ca_cert_pem(&ca, key).ok().context("its certificate cannot be read")?;
        let scrape_token = folder.join(SCRAPE_TOKEN);
        Ok(Self { folder: folder.into(), ca, issuer, scrape_token, enrolling: Mutex::default() })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How the coordinator speaks TLS: with a new certificate each time, to every client; a client
    /// that has a certificate presents it.
    pub(crate) fn tls(&self, protocols: &[&str]) -> Result<ServerConfig> {
        let key = KeyPair::generate()?;
        let mut params = named(COORDINATOR_NAME, ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names = vec![SanType::DnsName(COORDINATOR_NAME.try_into()?)];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes())?)?;
        let provider = Arc::new(default_provider());
        let workers =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(workers)
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// Makes a token that this worker may join with, once, and returns the folder that it finds it
    /// in.
    pub(crate) fn invite(&self, worker: &str) -> io::Result<PathBuf> {
        let folder = self.folder.join(WORKERS).join(worker);
        private_folder(&folder)?;
        write_secret(&folder.join(CA), &self.ca)?;
        new_token(&folder.join(TOKEN))?;
        // The process that had the token before is over.
        _ = fs::remove_file(folder.join(ENROLLED));
        Ok(folder)
    }

    /// A certificate (PEM) for a worker that has a token. One of its own is used up, but for this
    /// worker and this key: the answer may have been lost. It shows its pages with the certificate,
    /// too, at the address that it comes from.
    pub(crate) fn enrol(
        &self,
        worker: &str,
        token: &str,
        request: &[u8],
        from: Option<IpAddr>,
    ) -> Result<String, NotEnrolled> {
        if !is_worker_id(worker) {
            return Err(NotEnrolled::Id(
                worker.chars().take(64).filter(|c| !c.is_control()).collect(),
            ));
        }
        let own = self.folder.join(WORKERS).join(worker);
        let request = CertificateSigningRequestParams::from_der(&request.into())
            .map_err(|_| NotEnrolled::Request)?;
        let _one = self.enrolling.lock().unwrap_or_else(PoisonError::into_inner);
        let enrolment = enrolment(token, request.public_key.der_bytes());
        let is_own = is_token(&own.join(TOKEN), token);
        // All are compared, so that the time taken does not show which one is there.
        let is_known = is_token(&self.folder.join(TOKEN), token)
            | is_repeated(&own.join(ENROLLED), &enrolment)
            | (is_own && use_up(&own, &enrolment).is_ok());
        if !is_known {
            return Err(NotEnrolled::Token(worker.into()));
        }
        let mut params = named(worker, ExtendedKeyUsagePurpose::ClientAuth);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        // A socket of both families has IPv4 peers as IPv6 addresses; clients connect to them by
        // IPv4.
        params.subject_alt_names =
            from.map(|from| SanType::IpAddress(from.to_canonical())).into_iter().collect();
        let signed = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|_| NotEnrolled::Request)?;
        Ok(signed.pem())
    }

    /// Where the token is that metrics are shown for.
    pub(crate) fn scrape_token(&self) -> &Path {
        &self.scrape_token
    }

    /// Shows metrics for the token in a file of the site's instead of the run's own.
    ///
    /// # Errors
    /// 78 if it cannot be read, or is shorter than [`MIN_SITE_TOKEN_BYTES`].
    pub(crate) fn with_scrape_token(self, file: &Path) -> Result<Self, Fatal> {
        let refuse = |problem: String| {
            Fatal::new(EXIT_CONFIG, format!("--scrape-token-file {}: {problem}", file.display()))
        };
        let token = fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
        let bytes = token.trim().len();
        if bytes < MIN_SITE_TOKEN_BYTES {
            return Err(refuse(format!(
                "a token has at least {MIN_SITE_TOKEN_BYTES} characters, this one {bytes}"
            )));
        }
        Ok(Self { scrape_token: file.into(), ..self })
    }

    /// SHA-256 of the token that metrics are shown for: what others may know of it.
    pub(crate) fn scrape_token_sha256(&self) -> io::Result<String> {
        let token = fs::read_to_string(&self.scrape_token)?;
        Ok(hex(&Sha256::digest(token.trim().as_bytes())))
    }
}

/// Makes the folder of a new authority; its certificate is last.
fn make(folder: &Path) -> Result<()> {
    private_folder(folder)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the authority of one run of thanos-coord");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    write_secret(&folder.join(CA_KEY), &key.serialize_pem())?;
    new_token(&folder.join(SCRAPE_TOKEN))?;
    write_secret(&folder.join(CA), &params.self_signed(&key)?.pem())?;
    Ok(())
}

/// A certificate has no end: it is valid as long as the authority's key exists, and clocks of
/// machines differ.
fn named(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params
}

/// Whether the file holds this token. An empty one holds none.
fn is_token(file: &Path, token: &str) -> bool {
    let held = fs::read_to_string(file).unwrap_or_default();
    let held = held.trim();
    held.len() == 2 * TOKEN_BYTES && held.as_bytes().ct_eq(token.trim().as_bytes()).into()
}

/// What an enrolment is known by when it is repeated: nothing that a token or a key could be got
/// from.
fn enrolment(token: &str, public_key: &[u8]) -> String {
    hex(&Sha256::new().chain_update(token.trim()).chain_update(public_key).finalize())
}

/// Whether this enrolment was made a short time ago.
fn is_repeated(file: &Path, enrolment: &str) -> bool {
    let made = fs::metadata(file).and_then(|metadata| metadata.modified());
    let is_recent = made.is_ok_and(|made| made.elapsed().unwrap_or_default() < MAX_REPEAT);
    is_token(file, enrolment) && is_recent
}

/// Marks a worker's token as used, by this enrolment.
fn use_up(folder: &Path, enrolment: &str) -> io::Result<()> {
    write_secret(&folder.join(ENROLLED), enrolment)?;
    fs::remove_file(folder.join(TOKEN))
}

fn new_token(file: &Path) -> io::Result<()> {
    let mut bytes = [0; TOKEN_BYTES];
    default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("random number generator unavailable"))?;
    write_secret(file, &hex(&bytes))
}

fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Replaces a file that its owner alone can read.
fn write_secret(file: &Path, text: &str) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    _ = fs::remove_file(&temporary);
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    new.write_all(text.as_bytes())?;
    new.write_all(b"\n")?;
    fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    fn request() -> Vec<u8> {
        let key = KeyPair::generate().expect("a key");
        CertificateParams::default().serialize_request(&key).expect("a request").der().to_vec()
    }

    fn name(certificate: &str) -> Option<String> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
        thanos_transport::name_of(&der)
    }

    fn token(folder: &Path) -> String {
        fs::read_to_string(folder.join(TOKEN)).expect("a token")
    }

    #[test]
    fn an_invited_worker_gets_a_certificate_for_its_own_name_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let credentials = Credentials::open_or_make(&folder.path().join("c"), false).expect("made");
        let first = token(&credentials.invite("worker-0").expect("written"));
        let other = token(&credentials.invite("worker-1").expect("written"));
        let enrol = |worker: &str, token: &str| credentials.enrol(worker, token, &request(), None);
        let refused = |worker: &str| Err(NotEnrolled::Token(worker.into()));
        for wrong in [other.as_str(), "", "0", &"0".repeat(64)] {
            assert_eq!(enrol("worker-0", wrong), refused("worker-0"), "{wrong}");
        }
        let certificate = enrol("worker-0", &first).expect("its own token");
        assert_eq!(name(&certificate).as_deref(), Some("worker-0"));
        assert_eq!(enrol("worker-0", &first), refused("worker-0"));
        assert_eq!(enrol("worker-2", &other), refused("worker-2"));
        assert_eq!(credentials.enrol("worker-1", &other, b"?", None), Err(NotEnrolled::Request));
        // What was refused for another reason has not used it up; and a new one is as good.
        enrol("worker-1", &other).expect("its own token");
        enrol("worker-0", &token(&credentials.invite("worker-0").expect("written")))
            .expect("the new one");
    }

    #[test]
    fn a_repeated_enrolment_gets_a_certificate_for_the_same_key_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let credentials = Credentials::open_or_make(folder.path(), false).expect("made");
        let first = token(&credentials.invite("worker-0").expect("written"));
        let request_of_key = request();
        let enrol = |credentials: &Credentials, request: &[u8]| {
            credentials.enrol("worker-0", &first, request, None)
        };
        enrol(&credentials, &request_of_key).expect("its own token");
        let again = enrol(&credentials, &request_of_key).expect("the answer was lost");
        assert_eq!(name(&again).as_deref(), Some("worker-0"));
        let refused = Err(NotEnrolled::Token("worker-0".into()));
        assert_eq!(enrol(&credentials, &request()), refused, "another key");
        assert_eq!(
            credentials.enrol("worker-0", &"0".repeat(64), &request_of_key, None),
            refused,
            "another token"
        );
        let restarted = Credentials::open_or_make(folder.path(), false).expect("opened");
        enrol(&restarted, &request_of_key).expect("the coordinator was restarted meanwhile");
        let record = folder.path().join(WORKERS).join("worker-0").join(ENROLLED);
        let file = File::options().write(true).open(&record).expect("there");
        file.set_modified(SystemTime::now() - MAX_REPEAT).expect("set");
        assert_eq!(enrol(&credentials, &request_of_key), refused, "too late");
        let second = token(&credentials.invite("worker-0").expect("written"));
        assert_eq!(
            enrol(&credentials, &request_of_key),
            refused,
            "the token of an earlier process"
        );
        credentials.enrol("worker-0", &second, &request(), None).expect("the new one");
    }

    #[test]
    fn a_shared_token_is_for_all_workers_and_outlives_the_coordinator() {
        let folder = tempfile::tempdir().expect("a folder");
        let credentials = Credentials::open_or_make(folder.path(), true).expect("made");
        let token = token(folder.path());
        for worker in ["a", "b", "a"] {
            assert_eq!(
                name(&credentials.enrol(worker, &token, &request(), None).expect("shared"))
                    .as_deref(),
                Some(worker)
            );
        }
        let again = Credentials::open_or_make(folder.path(), true).expect("opened");
        assert_eq!(again.ca, credentials.ca);
        again.enrol("c", &token, &request(), None).expect("the same token");
        let sha256 = hex(&Sha256::digest(token.trim().as_bytes()));
        assert_ne!(
            again.scrape_token_sha256().expect("written"),
            sha256,
            "each run has a token of its own"
        );
    }

    #[test]
    fn ids_stay_inside_the_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let credentials = Credentials::open_or_make(folder.path(), true).expect("made");
        let token = token(folder.path());
        for id in [COORDINATOR_NAME, "", "..", "../a", "a/b", ".a", "a\nb", &"a".repeat(64)] {
            assert!(
                matches!(credentials.enrol(id, &token, &request(), None), Err(NotEnrolled::Id(_))),
                "{id}"
            );
        }
    }

    #[test]
    fn only_the_owner_reads_secrets_and_damage_is_reported() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("credentials");
        Credentials::open_or_make(&folder, true).expect("made").invite("w").expect("written");
        let modes = walkdir::WalkDir::new(&folder).into_iter().map(|entry| {
            let entry = entry.expect("readable");
            (entry.metadata().expect("there").permissions().mode() & 0o777, entry)
        });
        for (mode, entry) in modes {
            assert_eq!(mode, if entry.file_type().is_dir() { 0o700 } else { 0o600 }, "{entry:?}");
        }
        fs::write(folder.join(CA_KEY), "no key").expect("written");
        let fatal = Credentials::open_or_make(&folder, true).err().expect("damaged");
        assert_eq!(
            (fatal.exit_code, fatal.message.ends_with("its key cannot be read")),
            (EXIT_CONFIG, true),
            "{fatal}"
        );
    }

    #[test]
    fn a_site_has_a_scrape_token_of_its_own_that_is_not_short() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        let open =
            || Credentials::open_or_make(&folder.path().join("credentials"), true).expect("made");
        let refusal =
            || open().with_scrape_token(&file).err().map(|fatal| (fatal.exit_code, fatal.message));
        assert!(
            refusal().is_some_and(
                |(code, message)| code == EXIT_CONFIG && message.contains("No such file")
            )
        );
        for short in ["", "\n", "0123456789abcde\n"] {
            fs::write(&file, short).expect("written");
            assert!(
                refusal().is_some_and(|(_, message)| message.contains("at least 16 characters")),
                "{short:?}"
            );
        }
        fs::write(&file, "0123456789abcdef\n").expect("written");
        let of_site = open()
            .with_scrape_token(&file)
            .expect("long enough")
            .scrape_token_sha256()
            .expect("read");
        assert_eq!(of_site, hex(&Sha256::digest(b"0123456789abcdef")));
        assert_ne!(open().scrape_token_sha256().expect("read"), of_site);
    }
}
