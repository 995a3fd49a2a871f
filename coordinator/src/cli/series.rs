//! `launch --seeds` and `launch --sweep`: their options, and the words with which each run of the
//! series is launched.

use super::launch::{LaunchArguments, Resume};
use super::launcher::LauncherName;
use super::series_arguments::SeriesArguments;
use super::{Arguments, Verb, plan, quick, quick_plan};
use crate::commands::series::members::{Member, Seeds, Sweep, members};
use crate::commands::series::{Series, Starter, runs_at};
use crate::exit::{EXIT_STOPPED, EXIT_USAGE, Fatal};
use crate::run_dir::comparison::{RunResults, RunTable};
use crate::run_dir::{Claimed, write_durably};
use crate::terminal;
use anyhow::{Context, Result};
use clap::{Args, Command, Parser};
use std::path::{Path, PathBuf};
use thanos_configs::Plan;
use thanos_formats::{RESULTS_JSON, RUN_JSON};

/// Options of the series itself, which its runs are not launched with.
const OWN: [&str; 4] = ["--seeds", "--sweep", "--run-dir", "--resume"];

/// Launches all runs of a series, skips those that have finished, and prints the table over all of
/// them. Returns the exit code of the first run that does not finish.
pub(super) fn act_series(arguments: &LaunchArguments, forced: Option<LauncherName>) -> Result<u8> {
    if forced.is_some() {
        let message = "serve coordinates one run: start a series with `launch`";
        return Err(Fatal::new(EXIT_USAGE, message).into());
    }
    let series = requested(arguments)?;
    let seeds = series.seeds.as_deref().map(str::parse::<Seeds>).transpose().map_err(usage)?;
    let sweeps = series
        .sweep
        .iter()
        .map(|sweep| sweep.parse())
        .collect::<Result<Vec<Sweep>, String>>()
        .map_err(usage)?;
    let members = members(seeds.as_ref(), &sweeps)?;
    let mut starter = Starter::new()?;
    // Mistakes are reported before the first run, and not by the last one.
    let planned =
        members.into_iter().map(|member| Ok((plan_of(&series.arguments, &member)?, member)));
    let planned: Vec<(Plan, Member)> = planned.collect::<Result<_>>()?;
    let name = planned.first().map_or("custom", |(plan, _)| &plan.config().name);
    let what = if sweeps.is_empty() { "seeds" } else { "sweep" };
    let claimed = match &arguments.run_dir {
        None => Some(Claimed::new(
            Path::new(""),
            &format!("{}-{what}", quick::name(arguments.quick, name)),
        )?),
        Some(_) => None,
    };
    let claimed_path = claimed.as_ref().map(|claimed| claimed.path().to_owned());
    let folder = arguments.run_dir.clone().or(claimed_path).unwrap_or_default();
    let members = planned.iter().map(|(_, member)| member.name.clone()).collect();
    Series { members, ..series.clone() }.write(&folder)?;
    terminal::line(&format!("directory of the series: {}", folder.display()));
    for (index, (plan, member)) in planned.iter().enumerate() {
        let place = format!("run {} of {}, {}", index + 1, planned.len(), member.name);
        let run = MemberRun { run_dir: folder.join(&member.name), plan, member, place };
        if let Some(code) = run.make(&mut starter, &folder, &series.arguments)? {
            return Ok(code);
        }
    }
    terminal::print_line(&table(&folder)?.to_string())?;
    Ok(0)
}

/// A member of a series, as it is run.
struct MemberRun<'a> {
    run_dir: PathBuf,
    plan: &'a Plan,
    member: &'a Member,
    /// Which of the series it is, for messages.
    place: String,
}

impl MemberRun<'_> {
    /// Runs it, with these arguments of the series and its own, unless it has finished, and writes
    /// the table of the series' folder; returns the exit code that ends the series, if it does.
    fn make(
        &self,
        starter: &mut Starter,
        folder: &Path,
        arguments: &[String],
    ) -> Result<Option<u8>> {
        let place = &self.place;
        if RunResults::read(&self.run_dir).is_ok_and(|run| run.is_complete(self.plan)) {
            terminal::line(&format!("{place}: it has finished already"));
            table(folder)?;
            return Ok(None);
        }
        terminal::line(&format!("{place}: started"));
        let words: Vec<String> = arguments.iter().chain(&self.member.overrides).cloned().collect();
        let code = starter.run(&self.run_dir, &words)?;
        let resume = format!("thanos-coord launch --resume --run-dir {}", folder.display());
        match code {
            0 => {
                table(folder)?;
                return Ok(None);
            }
            EXIT_STOPPED => {
                terminal::line(&format!("{place}: stopped; resume the series: {resume}"));
            }
            code => terminal::line(&format!(
                "{place}: it failed with exit code {code}, which ends the series; resume it: \
                 {resume}"
            )),
        }
        Ok(Some(code))
    }
}

/// The table over the runs that have results, which is also written to `results.json` of the
/// series.
fn table(folder: &Path) -> Result<RunTable> {
    let runs = runs_at(folder)?
        .iter()
        .map(|run_dir| RunResults::read(run_dir))
        .collect::<Result<Vec<_>, Fatal>>()?;
    let table = RunTable::new(&runs);
    write_durably(&folder.join(RESULTS_JSON), format!("{}\n", table.to_json()).as_bytes())?;
    Ok(table)
}

/// The series as typed, or that of the directory to resume, with what is typed beside it.
fn requested(arguments: &LaunchArguments) -> Result<Series> {
    let SeriesArguments { seeds, sweep, .. } = &arguments.series;
    let run_dir = arguments.run_dir.as_deref();
    let recorded = run_dir.filter(|run_dir| Series::is_at(run_dir));
    refuse_occupied(arguments, recorded)?;
    let typed: Vec<String> = std::env::args_os()
        .skip(2)
        .map(|word| {
            word.into_string().map_err(|word| usage(format!("{} is not UTF-8", word.display())))
        })
        .collect::<Result<_, Fatal>>()?;
    let words = without(&typed, &OWN.map(str::to_owned));
    if seeds.is_some() || !sweep.is_empty() {
        return Ok(Series {
            arguments: words,
            working_directory: std::env::current_dir().context("the working directory")?,
            seeds: seeds.as_ref().map(|Seeds(range)| format!("{}..{}", range.start, range.end)),
            sweep: sweep
                .iter()
                .map(|Sweep { key, values }| format!("{key}={}", values.join(",")))
                .collect(),
            members: Vec::new(),
        });
    }
    let mut series = Series::read(recorded.unwrap_or(Path::new("")))?;
    let here = std::env::current_dir().context("the working directory")?;
    if here != series.working_directory {
        let message = format!(
            "resume the series in the directory where it was started, {}: paths of its command may \
            be relative to it",
            series.working_directory.display()
        );
        return Err(usage(message).into());
    }
    let retyped: Vec<String> = words.iter().filter_map(|word| option_name(word)).collect();
    series.arguments = [without(&series.arguments, &retyped), words].concat();
    Ok(series)
}

/// # Errors
/// 64 if the directory holds something else than what the options say.
fn refuse_occupied(arguments: &LaunchArguments, recorded: Option<&Path>) -> Result<(), Fatal> {
    let Some(folder) = arguments.run_dir.as_deref() else { return Ok(()) };
    let shown = folder.display();
    let message = match arguments.resume {
        _ if folder.join(RUN_JSON).exists() => {
            format!("{shown} contains a single run: name another --run-dir for the series")
        }
        None if recorded.is_some() => {
            format!(
                "{shown} already contains a series: add --resume to continue it, or name another \
                --run-dir"
            )
        }
        Some(Resume::Always) if recorded.is_none() => {
            format!("{shown} contains no series to resume")
        }
        _ => return Ok(()),
    };
    Err(usage(message))
}

/// The plan of a member, as its own process will make it.
///
/// # Errors
/// 64 or 78, as of `launch`.
fn plan_of(arguments: &[String], member: &Member) -> Result<Plan> {
    let command = ["thanos-coord", "launch"].map(str::to_owned);
    let words = [&command[..], arguments, &member.overrides].concat();
    let parsed = Arguments::try_parse_from(words).map_err(|error| usage(error.to_string()))?;
    let Verb::Launch(parsed) = parsed.command else {
        return Err(usage("not a launch".into()).into());
    };
    let (_, overrides) = parsed.target.parts();
    let own: Vec<&str> =
        member.overrides.iter().filter_map(|text| text.split('=').next()).collect();
    let key = |text: &String| text.split('=').next().unwrap_or_default().to_owned();
    // Those of the series come last.
    let typed = &overrides[..overrides.len().saturating_sub(own.len())];
    if let Some(key) = typed.iter().map(key).find(|key| own.contains(&key.as_str())) {
        return Err(usage(format!(
            "{key} is set and listed by --seeds or --sweep: leave one of them out"
        ))
        .into());
    }
    if parsed.quick { quick_plan(&parsed.target) } else { plan(&parsed.target) }
}

fn usage(message: String) -> Fatal {
    Fatal::new(EXIT_USAGE, message)
}

/// The name of a word that is an option.
fn option_name(word: &str) -> Option<String> {
    word.starts_with("--")
        .then(|| word.split('=').next().unwrap_or(word).to_owned())
        .filter(|name| name != "--")
}

/// Words of `launch` without these options and their values.
fn without(words: &[String], names: &[String]) -> Vec<String> {
    let command = LaunchArguments::augment_args(Command::new("launch"));
    let takes_next = |name: &str| {
        let mut options =
            command.get_arguments().filter(|option| option.get_long() == name.strip_prefix("--"));
        options.any(|option| option.get_action().takes_values() && !option.is_require_equals_set())
    };
    let (mut kept, mut words) = (Vec::new(), words.iter());
    while let Some(word) = words.next() {
        match option_name(word).filter(|name| names.contains(name)) {
            None => kept.push(word.clone()),
            Some(name) if !word.contains('=') && takes_next(&name) => _ = words.next(),
            Some(_) => {}
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_are_removed_with_their_values() {
        let check = |text: &str, expected: &str| {
            assert_eq!(
                without(&words(text), &OWN.map(str::to_owned)).join(" "),
                expected,
                "{text}"
            );
        };
        check("digits_cae --seeds 5 --nodes 2 a=1", "digits_cae --nodes 2 a=1");
        check("--seeds=0..5 --resume digits_cae --insecure", "digits_cae --insecure");
        check("--run-dir x --resume=auto digits_cae --sweep a=1,2 --sweep b=3", "digits_cae");
    }

    #[test]
    fn a_key_of_the_series_is_not_set_beside_it() {
        let member = Member { name: "seed-1".into(), overrides: vec!["seed=1".into()] };
        let made = plan_of(&words("digits_cae --quick train.max_steps=5"), &member).expect("valid");
        assert_eq!((made.config().seed, made.config().train.max_steps), (1, Some(5)));
        let error = plan_of(&words("digits_cae seed=3"), &member).expect_err("refused").to_string();
        assert!(error.starts_with("seed is set and listed"), "{error}");
        assert!(plan_of(&words("digits_cae --nodes x"), &member).is_err());
    }
}
