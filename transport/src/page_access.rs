//! Who may read a page: a reader with the token as a bearer (scripts, Prometheus), or a browser
//! with a cookie that it gets once for `/?token=TOKEN`, as a browser cannot send a bearer when a
//! user opens a page. On a loopback address there is neither, but the `Host` must name this
//! machine: a website whose name resolves to 127.0.0.1 must not read a run (DNS rebinding). Pure
//! functions of a request's headers; `pages.rs` answers it.

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE, HOST};
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use subtle::ConstantTimeEq;
use thanos_configs::hex;

/// What a browser shows instead of the token: a value that opens the pages of one run and nothing
/// else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageCookie {
    /// One for each run, as cookies do not distinguish ports.
    name: String,
    value: String,
}

impl PageCookie {
    /// The cookie of a run, by its id and the token that its pages are shown for.
    pub fn new(run_id: &str, token: &str) -> Self {
        let value =
            hex(&Sha256::digest(format!("page of {run_id} for {}", token.trim()).as_bytes()));
        Self { name: format!("thanos-{run_id}"), value }
    }

    /// The header that sets it: not for scripts, not for requests that another site starts, and
    /// only over TLS.
    fn header(&self) -> String {
        format!("{}={}; Path=/; HttpOnly; Secure; SameSite=Strict", self.name, self.value)
    }

    fn is_in(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
        let pairs = cookies
            .flat_map(|header| header.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        let same_name = |pair: &(&str, &str)| pair.0 == self.name;
        pairs
            .filter(same_name)
            .any(|(_, value)| value.as_bytes().ct_eq(self.value.as_bytes()).into())
    }
}

/// What becomes of a request for a guarded page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Granted,
    /// A browser has shown the token: it is sent to `/` with this cookie (the value of
    /// `Set-Cookie`).
    LogIn(String),
    Denied,
}

/// Whether a client may read a page that is shown for the token with this SHA-256.
pub(crate) fn access_of(
    request: &Request,
    token_sha256: &str,
    cookie: Option<&PageCookie>,
) -> Access {
    let is_token = |token: &str| -> bool {
        hex(&Sha256::digest(token.trim().as_bytes()))
            .as_bytes()
            .ct_eq(token_sha256.as_bytes())
            .into()
    };
    let headers = request.headers();
    let bearer =
        headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if bearer.is_some_and(is_token) || cookie.is_some_and(|cookie| cookie.is_in(headers)) {
        return Access::Granted;
    }
    match (cookie, token_of_query(request)) {
        (Some(cookie), Some(token)) if is_token(&token) => Access::LogIn(cookie.header()),
        _ => Access::Denied,
    }
}

/// TOKEN of `/?token=TOKEN`.
fn token_of_query(request: &Request) -> Option<String> {
    let query = request.uri().query().filter(|_| request.uri().path() == "/")?;
    let token = query.split('&').find_map(|pair| pair.strip_prefix("token="))?;
    Some(percent_decode_str(token).decode_utf8().ok()?.into_owned())
}

/// Whether a request's `Host` names this machine itself: `localhost` or a loopback address, with
/// any port, as a tunnel has another one. Programs that send none are no browsers.
pub(crate) fn names_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_loopback = name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    is_loopback || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    const TOKEN: &str = "a token";

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).expect("a request")
    }

    #[test]
    fn a_browser_gets_its_cookie_for_the_token_and_the_page_for_the_cookie() {
        let sha256 = hex(&Sha256::digest(TOKEN.as_bytes()));
        let cookie = PageCookie::new("run", TOKEN);
        let check = |uri: &str, headers: &[(&str, &str)], expected: Access| {
            assert_eq!(
                access_of(&request(uri, headers), &sha256, Some(&cookie)),
                expected,
                "{uri} {headers:?}"
            );
        };
        let set = format!("thanos-run={}; Path=/; HttpOnly; Secure; SameSite=Strict", cookie.value);
        assert!(!set.contains(&sha256), "workers know the token's hash: it must not open the page");
        check("/?token=a%20token", &[], Access::LogIn(set.clone()));
        check("/?a=b&token=a%20token", &[], Access::LogIn(set));
        check("/?token=another", &[], Access::Denied);
        check("/status?token=a%20token", &[], Access::Denied);
        check("/", &[], Access::Denied);
        check("/status", &[("authorization", "Bearer a token")], Access::Granted);
        check("/status", &[("authorization", "Bearer b")], Access::Denied);
        let shown = format!("other=1; thanos-run={}", cookie.value);
        check("/events", &[("cookie", &shown)], Access::Granted);
        check("/events", &[("cookie", &format!("thanos-run={sha256}"))], Access::Denied);
        check("/events", &[("cookie", "thanos-run=")], Access::Denied);
        let other = PageCookie::new("other", TOKEN);
        check("/", &[("cookie", &format!("thanos-run={}", other.value))], Access::Denied);
        assert_eq!(
            access_of(&request("/?token=a%20token", &[]), &sha256, None),
            Access::Denied,
            "it has no page"
        );
    }

    #[test]
    fn only_names_of_this_machine_are_answered_on_loopback() {
        let check = |host: &str, expected: bool| {
            assert_eq!(
                names_loopback(request("/", &[("host", host)]).headers()),
                expected,
                "{host}"
            );
        };
        for host in [
            "localhost",
            "localhost:9464",
            "LOCALHOST:1",
            "127.0.0.1:9464",
            "127.8.0.1",
            "[::1]:9464",
            "[::1]",
        ] {
            check(host, true);
        }
        for host in [
            "attacker.example",
            "attacker.example:9464",
            "127.0.0.1.example:80",
            "10.0.0.1",
            "[::2]:1",
            "",
        ] {
            check(host, false);
        }
        assert!(names_loopback(request("/", &[]).headers()));
    }
}
