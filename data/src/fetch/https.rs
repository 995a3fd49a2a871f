//! What HTTPS clients of this program trust, and which hosts they reach without a proxy.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::http::Uri;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::AgentScope;

/// Names a PEM file of certificate authorities that replace those of the web, as for OpenSSL, curl
/// and Python.
const CERTIFICATES_VARIABLE: &str = "SSL_CERT_FILE";

/// A client for the host of `uri`. It trusts the certificate authorities of the web, or those of
/// [`CERTIFICATES_VARIABLE`], and reaches this machine without the proxy of the environment, which
/// would look for this machine's addresses on its own machine.
///
/// # Errors
/// If the file that the variable names cannot be read, or contains no certificate.
pub fn agent(builder: ConfigBuilder<AgentScope>, uri: &Uri) -> Result<Agent, String> {
    let file = env::var_os(CERTIFICATES_VARIABLE).filter(|file| !file.is_empty());
    let builder = builder.tls_config(trusting(file.as_deref())?);
    let builder = if uri.host().is_some_and(is_loopback) { builder.proxy(None) } else { builder };
    Ok(builder.build().new_agent())
}

/// What to do about a server whose certificate is not trusted; `None` of another error.
pub fn untrusted(error: &ureq::Error) -> Option<String> {
    error.to_string().contains("UnknownIssuer").then(|| {
        format!(
            "its certificate is of an unknown authority: set {CERTIFICATES_VARIABLE} to a PEM file \
             of that authority's certificate"
        )
    })
}

fn trusting(file: Option<&OsStr>) -> Result<TlsConfig, String> {
    let Some(file) = file.map(Path::new) else { return Ok(TlsConfig::default()) };
    let refuse = |cause: String| format!("{CERTIFICATES_VARIABLE}={}: {cause}", file.display());
    let text = fs::read(file).map_err(|error| refuse(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        match item.map_err(|error| refuse(error.to_string()))? {
            PemItem::Certificate(certificate) => certificates.push(certificate),
            _ => return Err(refuse("it contains a private key, expected certificates".into())),
        }
    }
    if certificates.is_empty() {
        return Err(refuse("it contains no certificate in PEM format".into()));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build())
}

/// Whether an address's host is this machine, so that no other one can intercept it.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_with_the_variable() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let shown = || trusting(Some(file.as_os_str())).expect_err("refused");
        let start = format!("SSL_CERT_FILE={}: ", file.display());
        assert!(shown().starts_with(&start) && shown().contains("No such file"), "{}", shown());
        fs::write(&file, "not PEM").expect("written");
        assert_eq!(shown(), start.clone() + "it contains no certificate in PEM format");
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        fs::write(&file, key).expect("written");
        assert_eq!(shown(), start + "it contains a private key, expected certificates");
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(&file, certificate.repeat(2)).expect("written");
        let config = trusting(Some(file.as_os_str())).expect("two certificates");
        assert!(
            matches!(config.root_certs(), RootCerts::Specific(trusted) if trusted.len() == 2),
            "{config:?}"
        );
    }
}
