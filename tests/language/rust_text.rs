//! Rust source as tokens of three kinds: comments, string literals and code. It knows no grammar.

/// A part of a source.
#[derive(Debug, PartialEq)]
pub(super) enum Token<'a> {
    Code(&'a str),
    /// With its slashes.
    Comment(&'a str),
    /// The content of a literal, with escaped line ends removed.
    Text(String),
}

/// The parts of a source in order.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let (mut rest, mut code) = (source, 0);
    while code < rest.len() {
        let Some((token, len)) = special(&rest[code..], rest[..code].chars().next_back()) else {
            code += rest[code..].chars().next().map_or(1, char::len_utf8);
            continue;
        };
        found.push(Token::Code(&rest[..code]));
        found.extend(token);
        rest = &rest[code + len..];
        code = 0;
    }
    found.push(Token::Code(rest));
    found
}

/// A comment, a string or a character literal at the start of `rest`, and its length; a character
/// literal is no token.
fn special(rest: &str, before: Option<char>) -> Option<(Option<Token<'_>>, usize)> {
    if rest.starts_with("//") {
        let len = rest.find('\n').unwrap_or(rest.len());
        return Some((Some(Token::Comment(&rest[..len])), len));
    }
    if !before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        let raw = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r');
        let hashes = raw.map_or(0, |raw| raw.chars().take_while(|&c| c == '#').count());
        if let Some(body) = raw.and_then(|raw| raw[hashes..].strip_prefix('"')) {
            let end = body.find(&format!("\"{}", "#".repeat(hashes)))?;
            let len = rest.len() - body.len() + end + 1 + hashes;
            return Some((Some(Token::Text(body[..end].to_owned())), len));
        }
    }
    if let Some(body) = rest.strip_prefix('"') {
        let mut escaped = false;
        let end = body.find(|c: char| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        })?;
        return Some((Some(Token::Text(joined(&body[..end]))), end + 2));
    }
    let quoted = rest.strip_prefix('\'')?;
    let mut characters = quoted.char_indices();
    let (_, first) = characters.next()?;
    let end =
        if first == '\\' { 1 + quoted.get(2..)?.find('\'')? + 1 } else { characters.next()?.0 };
    (quoted[end..].starts_with('\'')).then_some((None, end + 2))
}

/// A literal whose lines are joined where a backslash ends them.
fn joined(literal: &str) -> String {
    let mut lines = literal.split("\\\n");
    let mut text = lines.next().unwrap_or_default().to_owned();
    for line in lines {
        text.push_str(line.trim_start());
    }
    text
}

/// A function with parameters that are tuple patterns.
#[derive(Debug, PartialEq)]
pub(super) struct TupleParameters {
    pub(super) function: String,
    /// Values of its longest pattern.
    pub(super) longest: usize,
    /// Values of all its parameters, each pattern taken apart.
    pub(super) values: usize,
}

/// Functions with parameters that are tuple patterns.
pub(super) fn tuple_parameters(source: &str) -> Vec<TupleParameters> {
    let code: String = tokens(source)
        .into_iter()
        .map(|token| match token {
            Token::Code(code) => code,
            Token::Comment(_) | Token::Text(_) => " ",
        })
        .collect();
    let mut found = Vec::new();
    for function in code.split("fn ").skip(1) {
        let Some((name, rest)) = function.split_once('(') else { continue };
        if !name.starts_with(|c: char| c.is_alphabetic()) || name.contains(['{', ';']) {
            continue;
        }
        let name = name.split('<').next().unwrap_or_default();
        let parameters =
            parameters(rest).into_iter().map(str::trim).filter(|parameter| !parameter.is_empty());
        let values = |parameter: &str| {
            let pattern = parameter.strip_prefix('(').and_then(|rest| rest.split(')').next());
            pattern.map(|values| values.split(',').filter(|value| !value.trim().is_empty()).count())
        };
        let values: Vec<Option<usize>> = parameters.map(values).collect();
        if let Some(longest) = values.iter().flatten().copied().max() {
            let all = values.iter().map(|values| values.unwrap_or(1)).sum();
            found.push(TupleParameters { function: name.to_owned(), longest, values: all });
        }
    }
    found
}

/// What stands between the commas of a parameter list whose bracket is open.
fn parameters(rest: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    for (at, character) in rest.char_indices() {
        match character {
            '(' | '[' | '<' | '{' => depth += 1,
            ')' if depth == 0 => {
                found.push(&rest[begin..at]);
                break;
            }
            '>' if rest[..at].ends_with('-') => {}
            ')' | ']' | '>' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&rest[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    found
}

#[test]
fn a_source_is_code_comments_and_texts() {
    let source =
        "let a = \"x \\\n   y\\\"\"; // c \"d\"\nlet b = ['\"', '\\'']; r#\"raw \" text\"#";
    let is_special = |token: &Token| !matches!(token, Token::Code(_));
    let special: Vec<Token> = tokens(source).into_iter().filter(is_special).collect();
    let expected = [
        Token::Text("x y\\\"".into()),
        Token::Comment("// c \"d\""),
        Token::Text("raw \" text".into()),
    ];
    assert_eq!(special, expected);
}

#[test]
fn tuple_patterns_are_counted() {
    let source = "fn a<T>((x, y, z): (T, T, T), b: &dyn Fn(u8, u8) -> u8) {}\nfn c(d: (u8, u8), \
        (e, f): (u8, u8)) {}";
    let function =
        |name: &str, longest, values| TupleParameters { function: name.into(), longest, values };
    assert_eq!(tuple_parameters(source), [function("a", 3, 4), function("c", 2, 3)]);
}
