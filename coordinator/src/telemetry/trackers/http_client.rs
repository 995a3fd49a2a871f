//! Calls of a tracker's HTTP API, with JSON in both directions, bounded in time and size. It knows
//! no tracker. Its messages name the server, never what authenticates us.

use serde_json::Value;
use std::fmt;
use std::io;
use std::time::Duration;
use thanos_data::fetch::{agent, untrusted};
use ureq::Agent;
use ureq::http::{Response, Uri, header};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a call as a whole.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Of an answer.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// What is quoted of an answer that is an error.
const MAX_QUOTED_CHARS: usize = 300;

/// A server, and how we authenticate.
pub(super) struct HttpClient {
    /// Or why no connection can be secured.
    agent: Result<Agent, String>,
    /// Without a slash at its end.
    base: String,
    headers: Vec<(&'static str, String)>,
}

/// Why a call gave no result.
#[derive(Debug)]
pub(super) enum CallError {
    Unreachable {
        base: String,
        cause: String,
    },
    /// The server answered with an error; `code` as it names it.
    Refused {
        base: String,
        status: u16,
        code: String,
        message: String,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { base, cause } => write!(out, "cannot reach {base}: {cause}"),
            Self::Refused { base, status, message, .. } if message.is_empty() => {
                write!(out, "{base} answered with HTTP status {status}")
            }
            Self::Refused { base, status, message, .. } => {
                write!(out, "{base} answered with HTTP status {status}: {message}")
            }
        }
    }
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        Self::other(error.to_string())
    }
}

impl CallError {
    /// Whether the server named its error so.
    pub(super) fn is(&self, expected: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == expected)
    }

    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unreachable { .. } => None,
        }
    }
}

impl HttpClient {
    /// `url` was checked by the rules of a configuration.
    pub(super) fn new(url: &str, headers: Vec<(&'static str, String)>) -> Self {
        let builder = Agent::config_builder()
            .http_status_as_error(false)
            // A redirected POST would lose its body.
            .max_redirects(0)
            .user_agent("thanos-coord")
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(CALL_TIMEOUT));
        let agent = url
            .parse::<Uri>()
            .map_err(|error| error.to_string())
            .and_then(|uri| agent(builder, &uri));
        Self { agent, base: url.trim_end_matches('/').into(), headers }
    }

    /// # Errors
    /// [`CallError`].
    pub(super) fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, CallError> {
        let mut request = self.agent()?.get(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        self.answer(request.query_pairs(query.iter().copied()).call())
    }

    /// # Errors
    /// As [`HttpClient::get`].
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        let mut request = self.agent()?.post(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        self.answer(request.content_type("application/json").send(body.to_string()))
    }

    fn agent(&self) -> Result<&Agent, CallError> {
        let unreachable = |cause: &String| CallError::Unreachable {
            base: self.base.clone(),
            cause: cause.clone(),
        };
        self.agent.as_ref().map_err(unreachable)
    }

    fn answer(
        &self,
        answer: Result<Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, CallError> {
        let unreachable = |error: ureq::Error| CallError::Unreachable {
            base: self.base.clone(),
            cause: cause_of(&error),
        };
        let answer = answer.map_err(unreachable)?;
        let status = answer.status();
        let location = answer.headers().get(header::LOCATION);
        let location = location.and_then(|location| location.to_str().ok()).map(str::to_owned);
        let config = answer.into_body().into_with_config().limit(MAX_ANSWER_BYTES).lossy_utf8(true);
        let text = config.read_to_string().map_err(unreachable)?;
        let json: Option<Value> = serde_json::from_str(&text).ok();
        let refused = |code: &str, message: String| {
            let (base, status) = (self.base.clone(), status.as_u16());
            Err(CallError::Refused { base, status, code: code.into(), message })
        };
        match json {
            Some(json) if status.is_success() => Ok(json),
            Some(json) => {
                let message =
                    ["message", "error", "detail"].iter().find_map(|key| json[key].as_str());
                refused(json["error_code"].as_str().unwrap_or(""), quoted(message.unwrap_or("")))
            }
            None if status.is_redirection() => {
                let target = location.unwrap_or_default();
                refused(
                    "",
                    quoted(&format!("it redirects to {target}: use the address that is served")),
                )
            }
            None if status.is_success() => refused("", "it is not the API of a tracker".into()),
            // A page for people.
            None if text.trim_start().starts_with('<') => refused("", String::new()),
            None => refused("", quoted(&text)),
        }
    }
}

fn cause_of(error: &ureq::Error) -> String {
    if let Some(cause) = untrusted(error) {
        return cause;
    }
    match error {
        ureq::Error::Timeout(_) => "it does not answer in time".into(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::HostNotFound => "host not found".into(),
        error => error.to_string(),
    }
}

/// The beginning of a text, on one line.
fn quoted(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// What a call says of this answer.
    fn shown(answer: &'static str) -> String {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", server.local_addr().expect("an address"));
        let thread = std::thread::spawn(move || {
            let (mut connection, _) = server.accept().expect("a connection");
            _ = connection.read(&mut [0; 4096]);
            connection.write_all(answer.as_bytes()).expect("written");
        });
        let shown = match HttpClient::new(&format!("{address}/"), Vec::new()).get("/a", &[]) {
            Ok(value) => value.to_string(),
            Err(error) => error.to_string().replace(&address, "BASE"),
        };
        thread.join().expect("no panic");
        shown
    }

    #[test]
    fn an_error_is_named_as_the_server_names_it() {
        let length = |body: &str| {
            format!("Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
        };
        let answer =
            |head: &str, body: &str| -> &'static str { (head.to_owned() + &length(body)).leak() };
        assert_eq!(shown(answer("HTTP/1.1 200 OK\r\n", "{\"a\": 1}")), "{\"a\":1}");
        let body = "{\"error_code\": \"X\", \"message\": \"no such\\nrun\"}";
        let expected = "BASE answered with HTTP status 404: no such run";
        assert_eq!(shown(answer("HTTP/1.1 404 Not Found\r\n", body)), expected);
        let expected = "BASE answered with HTTP status 400: a token is required";
        assert_eq!(
            shown(answer("HTTP/1.1 400 Bad Request\r\n", "{\"error\": \"a token is required\"}")),
            expected
        );
        let expected = "BASE answered with HTTP status 502";
        assert_eq!(shown(answer("HTTP/1.1 502 Bad Gateway\r\n", "<html>")), expected);
        let expected = "BASE answered with HTTP status 200: it is not the API of a tracker";
        assert_eq!(shown(answer("HTTP/1.1 200 OK\r\n", "<html>")), expected);
        let expected = "BASE answered with HTTP status 301: it redirects to https://b/: use the \
            address that is served";
        assert_eq!(shown(answer("HTTP/1.1 301 Moved\r\nLocation: https://b/\r\n", "")), expected);
        assert!(shown("").starts_with("cannot reach BASE: "));
    }
}
