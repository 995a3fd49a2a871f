//! Asks one address for a file or the rest of it: which addresses are allowed, where redirects may
//! lead, and whether an answer's head fits. Redirects are followed by hand, since each target must
//! pass the same rules. It must not know about files on this machine, checksums, or the other
//! addresses of a file.

use std::io::Read;

use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body};

use super::https::{agent, is_loopback, untrusted};
use super::{Reason, Timeouts};

/// How many redirects one request may take.
const MAX_REDIRECTS: usize = 5;
/// Statuses that say "look there instead"; the other ones from 300 to 399 do not name another
/// address.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
const USER_AGENT: &str = "thanos-coord";

/// An answer whose head fits, and whose body is still to be read.
pub(super) struct Answer {
    /// Where in the file the body starts.
    pub(super) start: u64,
    /// Whether the body says by itself where it ends, so that an early end is not a broken
    /// connection.
    pub(super) chunked: bool,
    pub(super) body: Box<dyn Read>,
}

/// Asks `url` for the file of `total` bytes from byte `from` on. If it cannot give that rest it is
/// asked for the whole, as the answer's `start` shows.
pub(super) fn open(times: &Timeouts, url: &str, from: u64, total: u64) -> Result<Answer, Reason> {
    if from > 0
        && let Some(answer) = classify(follow(times, url, from)?, from, total)?
    {
        return Ok(answer);
    }
    classify(follow(times, url, 0)?, 0, total)?.ok_or(Reason::Status(206))
}

/// What the head of an answer means; `None` for a rest that does not fit what was asked for.
fn classify(response: Response<Body>, from: u64, total: u64) -> Result<Option<Answer>, Reason> {
    let length =
        text(&response, header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let start = match response.status().as_u16() {
        200 => {
            if let Some(got) = length.filter(|&got| got != total) {
                return Err(Reason::Length { got, expected: total });
            }
            0
        }
        206 if from > 0 => {
            let fits_length = length.is_none_or(|length| Some(length) == total.checked_sub(from));
            if !fits_length || !is_rest(text(&response, header::CONTENT_RANGE), from, total) {
                return Ok(None);
            }
            from
        }
        206 => return Ok(None),
        416 if from > 0 => return Ok(None),
        other => return Err(Reason::Status(other)),
    };
    let chunked = text(&response, header::TRANSFER_ENCODING)
        .is_some_and(|how| how.eq_ignore_ascii_case("chunked"));
    Ok(Some(Answer { start, chunked, body: Box::new(response.into_body().into_reader()) }))
}

fn text(response: &Response<Body>, name: header::HeaderName) -> Option<&str> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

/// Whether a Content-Range such as `bytes 400-999/1000` is the rest of a file of `total` bytes from
/// `from` on. A server that does not know the total may write `*` for it.
fn is_rest(range: Option<&str>, from: u64, total: u64) -> bool {
    let is = |text: &str, number: u64| text.trim().parse() == Ok(number);
    range
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split_once('/'))
        .and_then(|(span, whole)| span.split_once('-').map(|(first, last)| (first, last, whole)))
        .is_some_and(|(first, last, whole)| {
            is(first, from)
                && is(last, total.saturating_sub(1))
                && (whole.trim() == "*" || is(whole, total))
        })
}

/// The first answer on the way from `url` that is not a redirect.
fn follow(times: &Timeouts, url: &str, from: u64) -> Result<Response<Body>, Reason> {
    let mut at = allowed(url).map_err(Reason::Refused)?;
    for _ in 0..=MAX_REDIRECTS {
        let response = get(times, &at, from)?;
        if !REDIRECTS.contains(&response.status().as_u16()) {
            return Ok(response);
        }
        let location = text(&response, header::LOCATION).ok_or_else(|| {
            Reason::Refused(format!("{at} redirects without a readable Location"))
        })?;
        at = redirected(&at, location)?;
    }
    Err(Reason::Refused(format!("more than {MAX_REDIRECTS} redirects, the last one to {at}")))
}

fn get(times: &Timeouts, uri: &Uri, from: u64) -> Result<Response<Body>, Reason> {
    let builder = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(0)
        .user_agent(USER_AGENT)
        // The MD5 is that of the file as it is; a server must not pack it on the way.
        .accept_encoding("identity")
        .timeout_resolve(Some(times.connect))
        .timeout_connect(Some(times.connect))
        .timeout_send_request(Some(times.idle))
        .timeout_recv_response(Some(times.idle))
        .timeout_per_read(Some(times.idle))
        .timeout_per_write(Some(times.idle));
    let mut request = agent(builder, uri).map_err(Reason::Refused)?.get(uri);
    if from > 0 {
        request = request.header(header::RANGE, format!("bytes={from}-"));
    }
    request
        .call()
        .map_err(|error| Reason::NoAnswer(untrusted(&error).unwrap_or_else(|| error.to_string())))
}

/// `url`, if this module may ask it, or why not: any https address, or http on this machine, which
/// no other machine can intercept.
fn allowed(url: &str) -> Result<Uri, String> {
    let scheme = scheme_of(url);
    let is_http = match scheme.as_deref() {
        Some("https") => false,
        Some("http") => true,
        _ => return Err("an address must start with https://".to_string()),
    };
    let uri: Uri =
        url.parse().map_err(|error| format!("it cannot be read as an address: {error}"))?;
    match uri.host() {
        None | Some("") => Err("it names no host".to_string()),
        Some(host) if is_http && !is_loopback(host) => {
            Err("http is for this machine only (127.0.0.0/8, ::1, localhost); use https"
                .to_string())
        }
        Some(_) => Ok(uri),
    }
}

/// The scheme of an address in lower case; `None` for a relative one. By hand, since `Uri` cannot
/// read all addresses that a redirect may name, such as `file:///etc/passwd`, and the message
/// should still say what they are.
fn scheme_of(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once(':')?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|each| each.is_ascii_alphanumeric() || "+-.".contains(each));
    is_scheme.then(|| scheme.to_ascii_lowercase())
}

/// Where a redirect from `at` leads, if it may be followed.
fn redirected(at: &Uri, location: &str) -> Result<Uri, Reason> {
    let old = at.scheme_str().unwrap_or_default().to_ascii_lowercase();
    let target = match scheme_of(location) {
        Some(new) if new != old => {
            return Err(Reason::Refused(format!(
                "a redirect from {old} to {new} is refused: {at} leads to {location}"
            )));
        }
        Some(_) => location.to_string(),
        None => resolved(at, &old, location),
    };
    allowed(&target).map_err(|why| {
        Reason::Refused(format!("a redirect from {at} to {target} is refused: {why}"))
    })
}

/// A relative `location` as seen from `at`, after RFC 3986, section 5.2.
fn resolved(at: &Uri, scheme: &str, location: &str) -> String {
    let location = location.split('#').next().unwrap_or_default();
    if location.starts_with("//") {
        return format!("{scheme}:{location}");
    }
    let host = at.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let (path, query) = match location.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (location, String::new()),
    };
    let folder = at.path().rsplit_once('/').map(|(folder, _)| folder).unwrap_or_default();
    let path = match path {
        "" => at.path().to_string(),
        path if path.starts_with('/') => without_dots(path),
        path => without_dots(&format!("{folder}/{path}")),
    };
    format!("{scheme}://{host}{path}{query}")
}

/// An absolute path with its `.` and `..` worked out.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let steps = path.strip_prefix('/').unwrap_or(path);
    for step in steps.split('/') {
        match step {
            "." => {}
            ".." => {
                kept.pop();
            }
            step => kept.push(step),
        }
    }
    // A path that ends in a dot step names a folder.
    if steps.ends_with("/.") || steps.ends_with("/..") || steps == "." || steps == ".." {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn only_https_and_this_machine_are_allowed() {
        for url in [
            "https://a.example/f",
            "HTTPS://a.example/f",
            "http://localhost:80/f",
            "http://[::1]/f",
        ] {
            assert!(allowed(url).is_ok(), "{url}");
        }
        assert!(allowed("http://127.3.2.1:9/f").is_ok());
        let refused =
            ["http://a.example/f", "http://127.0.0.1@a.example/f", "http://localhost.a.example/f"];
        for url in
            refused.into_iter().chain(["http://127.1/f", "http://[::2]/f", "http://0.0.0.0/f"])
        {
            assert!(allowed(url).unwrap_err().contains("use https"), "{url}");
        }
        for url in ["ftp://a.example/f", "file:///etc/passwd", "a.example/f", "", "localhost:80/f"]
        {
            assert!(allowed(url).unwrap_err().contains("https://"), "{url}");
        }
        assert!(allowed("https:///f").is_err());
        assert!(allowed("https://a b/f").is_err());
    }

    #[test]
    fn a_redirect_keeps_its_scheme() {
        let at = uri("https://a.example/f");
        for (location, new) in
            [("http://b.example/f", "http"), ("ftp://b/f", "ftp"), ("file:///f", "file")]
        {
            let message = redirected(&at, location).unwrap_err().to_string();
            assert!(
                message.contains(&format!("from https to {new}")) && message.contains(location),
                "{message}"
            );
        }
        // Not even to this machine, where http is allowed otherwise.
        assert!(redirected(&at, "http://127.0.0.1/f").is_err());
        assert_eq!(redirected(&at, "HTTPS://b.example/f").unwrap(), uri("https://b.example/f"));
        let message =
            redirected(&uri("http://127.0.0.1/f"), "https://b.example/f").unwrap_err().to_string();
        assert!(message.contains("from http to https"), "{message}");
        assert!(redirected(&uri("http://127.0.0.1/f"), "//b.example/f").is_err());
    }

    #[test]
    fn a_relative_location_is_resolved() {
        let at = uri("https://a.example:444/x/y/f?q=1");
        for (location, expected) in [
            ("/g", "https://a.example:444/g"),
            ("g?z=2", "https://a.example:444/x/y/g?z=2"),
            ("../g", "https://a.example:444/x/g"),
            ("../../../g", "https://a.example:444/g"),
            ("./", "https://a.example:444/x/y/"),
            ("..", "https://a.example:444/x/"),
            ("?z", "https://a.example:444/x/y/f?z"),
            ("//b.example/g#h", "https://b.example/g"),
        ] {
            assert_eq!(redirected(&at, location).unwrap(), uri(expected), "{location}");
        }
    }

    #[test]
    fn a_content_range_must_be_the_rest() {
        assert!(is_rest(Some("bytes 4-9/10"), 4, 10));
        assert!(is_rest(Some("bytes 4-9/*"), 4, 10));
        for range in [
            "bytes 3-9/10",
            "bytes 4-8/10",
            "bytes 4-9/11",
            "bytes */10",
            "4-9/10",
            "bytes 4-9",
            "",
        ] {
            assert!(!is_rest(Some(range), 4, 10), "{range}");
        }
        assert!(!is_rest(None, 4, 10));
    }
}
