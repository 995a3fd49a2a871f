//! Addresses as they may be shown: an address that is refused for a secret in it is not printed
//! with it, as what is printed may be a log that others read.

const HIDDEN: &str = "***";

/// A text whose address, if it has one, has no credentials and no query any more.
pub(crate) fn redacted(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, rest) = split_authority(rest);
    let (path, query) = match rest.split_once('?') {
        Some((path, _)) => (path, format!("?{HIDDEN}")),
        None => (rest, String::new()),
    };
    let host = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{host}"),
        None => authority.to_owned(),
    };
    format!("{scheme}://{host}{path}{query}")
}

/// What follows the scheme of an address: credentials, host and port, and the rest.
pub(crate) fn split_authority(address: &str) -> (&str, &str) {
    address.split_at(address.find(['/', '?', '#']).unwrap_or(address.len()))
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn credentials_and_queries_are_hidden_and_nothing_else() {
        for (text, shown) in [
            ("log.mlflow.uri=http://me:secret@h:5000/a", "log.mlflow.uri=http://***@h:5000/a"),
            ("x=https://a@b@h", "x=https://***@h"),
            ("http://h/p?write_token=abc", "http://h/p?***"),
            ("http://u:p@h?x", "http://***@h?***"),
            ("train.epochs=3", "train.epochs=3"),
            ("data.dir=/a@b", "data.dir=/a@b"),
            ("http://h/a@b", "http://h/a@b"),
        ] {
            assert_eq!(redacted(text), shown);
        }
    }
}
