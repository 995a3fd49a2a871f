//! Which runs a series has: one for each seed, and for each combination of the listed values of
//! keys. Pure: it reads text and returns names and overrides.

use crate::exit::{EXIT_USAGE, Fatal};
use std::collections::BTreeSet;
use std::ops::Range;
use std::str::FromStr;

/// Runs of one series.
const MAX_MEMBERS: usize = 1000;
/// Characters of a directory's name that are taken from a swept key and value.
const MAX_NAME_CHARS: usize = 100;

/// `--seeds`: `5` is `0..5`; the end is excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seeds(pub(crate) Range<u64>);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
        let (first, end) = text.split_once("..").unwrap_or(("0", text));
        let range = number(first)?..number(end)?;
        let count = range.end.saturating_sub(range.start);
        if (1..=MAX_MEMBERS as u64).contains(&count) {
            Ok(Self(range))
        } else {
            Err(format!("expected 1 to {MAX_MEMBERS} seeds, such as 5 or 0..5, got {count}"))
        }
    }
}

/// `--sweep KEY=V1,V2`: a key and the values that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sweep {
    pub(crate) key: String,
    pub(crate) values: Vec<String>,
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or("expected KEY=VALUE,VALUE")?;
        let values = split_values(values);
        if key.is_empty() || values.iter().any(String::is_empty) {
            return Err("expected KEY=VALUE,VALUE without an empty part".into());
        }
        Ok(Self { key: key.into(), values })
    }
}

/// Splits YAML values at the commas between them: not at those within brackets or quotes.
fn split_values(text: &str) -> Vec<String> {
    let (mut values, mut depth, mut quote) = (vec![String::new()], 0_u32, None);
    for character in text.chars() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(character),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                values.push(String::new());
                continue;
            }
            (None, _) => {}
        }
        values.last_mut().expect("it starts with one").push(character);
    }
    values.into_iter().map(|value| value.trim().to_owned()).collect()
}

/// One run of a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its directory below that of the series.
    pub(crate) name: String,
    pub(crate) overrides: Vec<String>,
}

/// All runs of a series: the seeds of the first combination of values, then those of the next.
///
/// # Errors
/// 64 if there are too many, a key is swept twice, or two would have the same directory.
pub(crate) fn members(seeds: Option<&Seeds>, sweeps: &[Sweep]) -> Result<Vec<Member>, Fatal> {
    let mut keys = BTreeSet::new();
    let seed_key = seeds.map(|_| "seed");
    for key in seed_key.into_iter().chain(sweeps.iter().map(|sweep| sweep.key.as_str())) {
        if !keys.insert(key) {
            return Err(Fatal::new(
                EXIT_USAGE,
                format!("{key} is listed twice: name all its values in one option"),
            ));
        }
    }
    let combinations =
        sweeps.iter().fold(1_usize, |product, sweep| product.saturating_mul(sweep.values.len()));
    let count = combinations.saturating_mul(seeds.map_or(1, |seeds| seeds.0.clone().count()));
    if count > MAX_MEMBERS {
        let message = format!("{count} runs: a series has at most {MAX_MEMBERS}");
        return Err(Fatal::new(EXIT_USAGE, message));
    }
    let mut swept = vec![Vec::new()];
    for Sweep { key, values } in sweeps {
        let with = |before: &Vec<String>, value: &String| {
            [&before[..], &[format!("{key}={value}")]].concat()
        };
        swept = swept
            .iter()
            .flat_map(|before| values.iter().map(|value| with(before, value)))
            .collect();
    }
    let found: Vec<Member> =
        swept.iter().flat_map(|overrides| with_seeds(overrides, seeds)).collect();
    let mut names = BTreeSet::new();
    match found.iter().find(|member| !names.insert(member.name.as_str())) {
        None => Ok(found),
        Some(Member { name, .. }) => Err(Fatal::new(
            EXIT_USAGE,
            format!("two runs of the series would have the same directory {name}"),
        )),
    }
}

/// One combination of swept values with each seed.
fn with_seeds(overrides: &[String], seeds: Option<&Seeds>) -> Vec<Member> {
    let folder = directory_name(&overrides.join(","));
    let Some(Seeds(seeds)) = seeds else {
        return vec![Member { name: folder, overrides: overrides.to_vec() }];
    };
    let member = |seed: u64| {
        let name = if overrides.is_empty() {
            format!("seed-{seed}")
        } else {
            format!("{folder}/seed-{seed}")
        };
        Member { name, overrides: [overrides, &[format!("seed={seed}")]].concat() }
    };
    seeds.clone().map(member).collect()
}

/// Letters, digits and `._=,+-` stay as they are.
fn directory_name(text: &str) -> String {
    let kept = |character: char| {
        if character.is_ascii_alphanumeric() || "._=,+-".contains(character) {
            character
        } else {
            '_'
        }
    };
    text.chars().map(kept).take(MAX_NAME_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_number_or_a_range() {
        assert_eq!("5".parse(), Ok(Seeds(0..5)));
        assert_eq!("3..5".parse(), Ok(Seeds(3..5)));
        for wrong in ["0", "5..5", "6..5", "..3", "a", "-1", "0..1001", ""] {
            assert!(wrong.parse::<Seeds>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_split_between_brackets_and_quotes_only() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(text.parse::<Sweep>().expect("valid").values, expected, "{text}");
        };
        check("a.b=1,2", &["1", "2"]);
        check("a=[0.1,1],[0.2, 1]", &["[0.1,1]", "[0.2, 1]"]);
        check("a={b: 1, c: 2},null", &["{b: 1, c: 2}", "null"]);
        check("a='x,y',z=1", &["'x,y'", "z=1"]);
        for wrong in ["a", "=1", "a=", "a=1,,2", "a=1,"] {
            assert!(wrong.parse::<Sweep>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_combination_is_trained_with_every_seed() {
        let sweeps: Vec<Sweep> =
            ["a=1,2", "b=[x/y],z"].map(|text| text.parse().expect("valid")).into_iter().collect();
        let names = |seeds: Option<&Seeds>, sweeps: &[Sweep]| -> Vec<String> {
            members(seeds, sweeps).expect("valid").into_iter().map(|member| member.name).collect()
        };
        assert_eq!(names(Some(&Seeds(1..3)), &[]), ["seed-1", "seed-2"]);
        assert_eq!(names(None, &sweeps), ["a=1,b=_x_y_", "a=1,b=z", "a=2,b=_x_y_", "a=2,b=z"]);
        let all = members(Some(&Seeds(0..2)), &sweeps[..1]).expect("valid");
        let overrides: Vec<String> = all.iter().map(|member| member.overrides.join(" ")).collect();
        assert_eq!(overrides, ["a=1 seed=0", "a=1 seed=1", "a=2 seed=0", "a=2 seed=1"]);
        assert_eq!(all[3].name, "a=2/seed-1");
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        let sweep = |text: &str| text.parse::<Sweep>().expect("valid");
        let refused = |seeds: Option<&Seeds>, sweeps: &[Sweep], part: &str| {
            let fatal = members(seeds, sweeps).expect_err("refused");
            assert!(fatal.exit_code == EXIT_USAGE && fatal.message.contains(part), "{fatal}");
        };
        refused(None, &[sweep("a=1"), sweep("a=2")], "a is listed twice");
        refused(Some(&Seeds(0..2)), &[sweep("seed=1")], "seed is listed twice");
        refused(None, &[sweep("a=x/y,x_y")], "the same directory a=x_y");
        refused(Some(&Seeds(0..600)), &[sweep("a=1,2")], "1200 runs");
    }
}
