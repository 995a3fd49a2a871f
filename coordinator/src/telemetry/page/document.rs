//! The document: HTML, style and scripts as one response, with a content security policy that
//! allows these scripts and this style by their hashes, requests to this server, and nothing else.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const HTML: &str = include_str!("../../../assets/page/index.html");
/// With the marks in [`HTML`] that they replace.
const STYLES: [(&str, &str); 2] = [
    ("/* uPlot.min.css */", include_str!("../../../assets/page/uPlot.min.css")),
    ("/* page.css */", include_str!("../../../assets/page/page.css")),
];
const SCRIPTS: [(&str, &str); 4] = [
    ("/* uPlot.iife.min.js */", include_str!("../../../assets/page/uPlot.iife.min.js")),
    ("/* text.js */", include_str!("../../../assets/page/text.js")),
    ("/* charts.js */", include_str!("../../../assets/page/charts.js")),
    ("/* page.js */", include_str!("../../../assets/page/page.js")),
];

/// On every response of the page.
pub(super) const SAFE_HEADERS: [(HeaderName, &str); 2] =
    [(X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer")];

/// The document, and its policy.
static DOCUMENT: LazyLock<(String, String)> = LazyLock::new(|| {
    let embed = |html: String, (mark, text): &(&str, &str)| html.replacen(mark, text, 1);
    let html = STYLES.iter().chain(&SCRIPTS).fold(HTML.to_owned(), embed);
    let hashes = |parts: &[(&str, &str)]| {
        parts.iter().map(|(_, text)| hash(text)).collect::<Vec<_>>().join(" ")
    };
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
        base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hashes(&SCRIPTS),
        hashes(&STYLES)
    );
    (html, policy)
});

/// What [`with_snapshot`] fills.
const SNAPSHOT: &str = "<script type=\"application/json\" id=\"snapshot\">";

/// Where [`with_snapshot`] puts figures, in a section that is hidden without any.
const FIGURES: &str = "<!-- figures -->";
const HIDDEN: &str = "aria-labelledby=\"figures-title\" hidden>";
const VISIBLE: &str = "aria-labelledby=\"figures-title\">";

/// The document as a file of its own, which shows this update and asks no server, with figures.
pub(super) fn with_snapshot(update: &str, figures: &[String]) -> String {
    let section = if figures.is_empty() { HIDDEN } else { VISIBLE };
    // Neither the end of a script nor the beginning of a comment is in it. In JSON only strings
    // have this character.
    let update = format!("{SNAPSHOT}{}", update.replace('<', "\\u003c"));
    let html = DOCUMENT.0.replacen(SNAPSHOT, &update, 1).replacen(HIDDEN, section, 1);
    html.replacen(FIGURES, &figures.concat(), 1)
}

pub(super) fn response() -> Response {
    html_response(DOCUMENT.0.as_str())
}

/// HTML under the document's policy.
pub(super) fn html_response(html: impl IntoResponse) -> Response {
    let policy = &DOCUMENT.1;
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, policy.as_str()),
        (CACHE_CONTROL, "no-store"),
    ];
    (SAFE_HEADERS, headers, html).into_response()
}

/// As a policy has it: of what is between the tags.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_cannot_end_its_element_and_figures_are_before_it() {
        let update = "{\"name\":\"</script><!-- <script> <!-- figures -->\"}";
        let html = with_snapshot(update, &["<svg></svg>".into()]);
        let escaped =
            "{\"name\":\"\\u003c/script>\\u003c!-- \\u003cscript> \\u003c!-- figures -->\"}";
        assert!(html.contains(&format!("id=\"snapshot\">{escaped}</script>")), "{html}");
        assert_eq!(html.matches("</script>").count(), SCRIPTS.len() + 1);
        assert_eq!(html.matches("<div id=\"figures\"><svg></svg></div>").count(), 1);
        assert!(html.contains(VISIBLE) && !html.contains(HIDDEN));
        assert!(with_snapshot("{}", &[]).contains(HIDDEN));
    }

    #[test]
    fn every_part_is_embedded_once_between_its_tags() {
        let (html, policy) = &*DOCUMENT;
        for (tag, parts) in [("style", &STYLES[..]), ("script", &SCRIPTS)] {
            assert_eq!(HTML.matches(&format!("<{tag}>")).count(), parts.len(), "{tag}");
            for (mark, text) in parts {
                assert_eq!(HTML.matches(&format!("<{tag}>{mark}</{tag}>")).count(), 1, "{mark}");
                assert!(html.contains(&format!("<{tag}>{text}</{tag}>")), "{mark}");
                assert!(policy.contains(&hash(text)), "{mark}");
                assert!(!text.contains(&format!("</{tag}")), "{mark} would end its own tag");
            }
        }
        for part in ["<link rel=\"stylesheet", "src=", "style=", "onclick=", "http://"] {
            assert!(!HTML.contains(part), "{part} is not allowed by the policy");
        }
        // echo -n 'alert(1)' | openssl dgst -sha256 -binary | base64
        assert_eq!(hash("alert(1)"), "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='");
    }
}
