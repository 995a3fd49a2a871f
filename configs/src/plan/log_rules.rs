//! The rules of `log`: how large embedding maps are, where trackers are, and the names of runs
//! there. Nothing is reached: an address may be right and its server down.

use super::rules::Rules;
use crate::log_config::LogConfig;
use crate::redacted::{redacted, split_authority};

/// The longest name of an experiment that MLflow takes.
const MAX_EXPERIMENT_BYTES: usize = 500;
const MAX_PROJECT_BYTES: usize = 128;
/// An exact t-SNE takes time and memory by the square of its images.
const MAX_EMBEDDING_IMAGES: u64 = 2000;

impl Rules {
    pub(super) fn log(&mut self, log: &LogConfig) {
        let images = log.embedding_images;
        self.require(images <= MAX_EMBEDDING_IMAGES, "log.embedding_images", || {
            format!("must be between 0 and {MAX_EMBEDDING_IMAGES}, got {images}")
        });
        let mlflow =
            ("MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", "http://127.0.0.1:5000");
        let trackio = ("TRACKIO_WRITE_TOKEN", "http://127.0.0.1:7860");
        let addresses = [
            ("log.mlflow.uri", &log.mlflow.uri, mlflow),
            ("log.trackio.url", &log.trackio.url, trackio),
        ];
        for (key, address, (variables, example)) in addresses {
            let Some(address) = address else { continue };
            match problem_of(address) {
                Some(Problem::Malformed(reason)) => {
                    let got = redacted(address);
                    self.refuse(
                        key,
                        format!("{reason}: write an address such as {example}, got `{got}`"),
                    );
                }
                // It holds a secret: the rule does not repeat it.
                Some(Problem::Credentials(what)) => self.refuse(
                    key,
                    format!(
                        "must not contain {what}, as it is written to the run directory: set \
                        {variables} instead"
                    ),
                ),
                None => {}
            }
        }
        let experiment = &log.mlflow.experiment;
        if experiment.trim().is_empty() || experiment.len() > MAX_EXPERIMENT_BYTES {
            self.refuse(
                "log.mlflow.experiment",
                format!("must have 1 to {MAX_EXPERIMENT_BYTES} bytes"),
            );
        }
        let project = &log.trackio.project;
        let is_plain =
            |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
        if project.is_empty() || project.len() > MAX_PROJECT_BYTES || !project.chars().all(is_plain)
        {
            let message = format!(
                "must have 1 to {MAX_PROJECT_BYTES} letters, digits, `-` or `_`, got `{project}`"
            );
            self.refuse("log.trackio.project", message);
        }
    }
}

enum Problem {
    Malformed(&'static str),
    Credentials(&'static str),
}

/// What is wrong with the address of a server.
fn problem_of(address: &str) -> Option<Problem> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let head = address.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then(|| &address[scheme.len()..])
    });
    let Some(rest) = rest else {
        return Some(Problem::Malformed("must begin with http:// or https://"));
    };
    let (authority, path) = split_authority(rest);
    if authority.contains('@') {
        return Some(Problem::Credentials("a user name or password"));
    }
    if path.contains("write_token=") {
        return Some(Problem::Credentials("a write token"));
    }
    if path.contains(['?', '#']) {
        return Some(Problem::Malformed("must have no query and no fragment"));
    }
    let is_plain = |character: char| {
        character.is_ascii_graphic() && !matches!(character, '"' | '<' | '>' | '\\')
    };
    if !rest.chars().all(is_plain) {
        return Some(Problem::Malformed("has a character that no address has"));
    }
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address are in brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if host.is_empty() {
        return Some(Problem::Malformed("names no host"));
    }
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    (!port.is_none_or(is_port))
        .then_some(Problem::Malformed("has a port that is not a number from 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use crate::plan::Plan;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let shown = Plan::from_preset("digits_cae", &[text.to_owned()])
            .err()
            .map(|errors| errors.to_string());
        match expected {
            None => assert_eq!(shown, None, "{text}"),
            Some(part) => {
                let shown = shown.unwrap_or_default();
                assert!(shown.contains(part), "{text}: no `{part}` in `{shown}`");
            }
        }
    }

    #[test]
    fn an_address_has_a_scheme_a_host_and_no_secret() {
        for valid in
            ["http://127.0.0.1:5000", "https://mlflow.example/base/", "HTTP://[::1]:80", "http://a"]
        {
            check(&format!("log.mlflow.uri={valid}"), None);
        }
        let scheme = "log.mlflow.uri: must begin with http:// or https://: write an address such \
            as http://127.0.0.1:5000, got `localhost:5000`";
        check("log.mlflow.uri=localhost:5000", Some(scheme));
        for (address, reason) in [
            ("sqlite:///a.db", "must begin with http:// or https://"),
            ("é", "must begin with http:// or https://"),
            ("http://", "names no host"),
            ("http://:80", "names no host"),
            ("https://a:0", "has a port that is not a number from 1 to 65535"),
            ("https://a:x/", "has a port"),
            ("http://a b", "has a character that no address has"),
            ("http://a?x=1", "must have no query"),
        ] {
            check(&format!("log.trackio.url={address}"), Some(reason));
        }
        let secret = "must not contain a user name or password, as it is written to the run \
            directory: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead";
        check("log.mlflow.uri=http://me:secret@host", Some(secret));
        check("log.trackio.url=http://a/?write_token=abc", Some("must not contain a write token"));
    }

    #[test]
    fn names_are_those_that_the_servers_take() {
        check(
            "log.trackio.project=a b",
            Some("must have 1 to 128 letters, digits, `-` or `_`, got `a b`"),
        );
        let overrides = ["log.mlflow.uri=http://a".to_owned(), "log.mlflow.experiment= ".into()];
        let shown = Plan::from_preset("digits_cae", &overrides).expect_err("refused").to_string();
        assert!(shown.contains("log.mlflow.experiment: must have 1 to 500 bytes"), "{shown}");
    }
}
