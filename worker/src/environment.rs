//! Who this worker is where no option says it: by the variables of the program that started it,
//! `torchrun` and its kin, Slurm's `srun`, or an indexed Job of Kubernetes.

/// Ranks in the whole run, in the order in which they are looked for.
const RANKS: [&str; 3] = ["RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX"];

/// The worker's name and its place among the workers of its machine: as typed, else by the
/// variables, else the first place.
///
/// # Errors
/// If nothing names the worker, or a variable is not a number.
pub(crate) fn identity(
    (id, local_rank): (Option<String>, Option<usize>),
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(String, usize), String> {
    let number = |name: &str| -> Result<Option<usize>, String> {
        let Some(text) = variable(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{name}={text} is not a number"))
    };
    let first = |names: &[&str]| names.iter().find_map(|name| number(name).transpose()).transpose();
    let id = match id {
        Some(id) => id,
        None => {
            let rank = first(&RANKS)?;
            let none = || format!("--id is required: none of {} is set", RANKS.join(", "));
            format!("worker-{}", rank.ok_or_else(none)?)
        }
    };
    let visible = variable("CUDA_VISIBLE_DEVICES").map_or(0, |list| list.split(',').count());
    let place = match local_rank {
        Some(place) => place,
        None => match number("LOCAL_RANK")? {
            Some(place) => place,
            // Slurm shows a task of --gpus-per-task one GPU of its step: that is its own, whatever
            // its place.
            None if visible == 1 && number("SLURM_GPUS_ON_NODE")? > Some(1) => 0,
            None => number("SLURM_LOCALID")?.unwrap_or(0),
        },
    };
    Ok((id, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(
        typed: (Option<&str>, Option<usize>),
        variables: &[(&str, &str)],
    ) -> Result<(String, usize), String> {
        let value = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, v)| (*v).to_owned())
        };
        identity((typed.0.map(Into::into), typed.1), value)
    }

    #[test]
    fn a_worker_is_who_its_options_or_its_launcher_say() {
        let check = |typed, variables: &[(&str, &str)], id: &str, place| {
            assert_eq!(
                found(typed, variables),
                Ok((id.to_owned(), place)),
                "{typed:?} {variables:?}"
            );
        };
        let slurm = [("SLURM_PROCID", "5"), ("SLURM_LOCALID", "1")];
        check((Some("a"), Some(2)), &slurm, "a", 2);
        check((Some("a"), None), &[], "a", 0);
        check((None, None), &slurm, "worker-5", 1);
        check((None, Some(0)), &slurm, "worker-5", 0);
        check((None, None), &[("JOB_COMPLETION_INDEX", "3")], "worker-3", 0);
        // A launcher inside a job of Slurm knows more.
        check(
            (None, None),
            &[&slurm[..], &[("RANK", "9"), ("LOCAL_RANK", "3")]].concat(),
            "worker-9",
            3,
        );
        check((None, None), &[("RANK", ""), ("SLURM_PROCID", "0")], "worker-0", 0);
        let own = [("SLURM_GPUS_ON_NODE", "2"), ("CUDA_VISIBLE_DEVICES", "1")];
        check((None, None), &[&slurm[..], &own].concat(), "worker-5", 0);
        let shared = [("SLURM_GPUS_ON_NODE", "1"), ("CUDA_VISIBLE_DEVICES", "0")];
        check((None, None), &[&slurm[..], &shared].concat(), "worker-5", 1);
    }

    #[test]
    fn what_names_no_worker_is_an_error() {
        let none = found((None, None), &[]).expect_err("nothing says who it is");
        assert_eq!(
            none,
            "--id is required: none of RANK, SLURM_PROCID, JOB_COMPLETION_INDEX is set"
        );
        let wrong = found((None, None), &[("RANK", "first")]).expect_err("not a number");
        assert_eq!(wrong, "RANK=first is not a number");
    }
}
