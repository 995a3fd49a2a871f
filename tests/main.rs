//! The one test binary, as every binary links libtorch. `parity_checks`: ours against the golden
//! vectors of the published code. `losses`: the closed-form gradient against finite differences,
//! tile sizes and ranks; `gradient_buckets`: their sums over the ranks. `memory`: a batch whose
//! square would not fit. `exchanges`, `nearness`, `rerun` and `test_device` serve them. The others
//! start the real programs: `world_sizes`,
//! `resume`, `identity`, `ledger` and `evaluation` hold the promises, `recovery`, `elastic`,
//! `hung_workers`, `repeated_failures`, `partitions`, `broken_connections`, `slow`, `preemption`,
//! `commit_points`, `checks`, `connection_flood`, `disks` and `endings` what happens to processes,
//! networks and disks, `checkpoint_intervals` when a stage is saved, `group_errors` which errors
//! of a group are lost connections, `aborted_group` that an abort ends every collective,
//! `security` which workers may join and what is secret, `pytorch_names` what is in a checkpoint,
//! `selection` which epoch's weights are kept and that all state is saved, `data_sets`,
//! `pack_transfer`, `downloads` and `fashion_mnist` how images come to workers, `device_views` how
//! a GPU makes views of them, `fused_on_device` a transformer block on a GPU, `devices` on what
//! workers train, `gpu_rehearsal` the script of half an hour on a GPU, on the CPU; `bad_input`,
//! `command_line`, `metrics`, `tensorboard`, `page`, `trackers`, `tracker_servers` and `documents`
//! what people type and read; `every_key` what each key of the configuration changes, `quick` a
//! first look at every preset; `seeds` several runs by one command, and their comparison;
//! `monitoring` what alerts, panels and a site's Prometheus rely on, `container` the image;
//! `bench` what a benchmark prints and leaves, `output` terminals, pipes and files that take no
//! output, `signals` how a stop request arrives. `slurm` runs the job scripts on a real one,
//! `kubernetes` checks the manifests, `pods` runs their commands in namespaces, as
//! `job_controller`, a model of Kubernetes, would. `layering` and `language` read the sources.

mod aborted_group;
mod bad_input;
mod bench;
mod broken_connections;
mod checkpoint_intervals;
mod checks;
mod command_line;
mod commit_points;
mod connection_flood;
mod container;
mod data_sets;
mod device_views;
mod devices;
mod disks;
mod documents;
mod downloads;
mod elastic;
mod endings;
mod evaluation;
mod every_key;
mod exchanges;
mod fashion_mnist;
mod fused_on_device;
mod gpu_rehearsal;
mod gradient_buckets;
mod group_errors;
mod hostile;
mod hung_workers;
mod identity;
mod job_controller;
mod kubernetes;
mod language;
mod layering;
mod ledger;
mod losses;
mod memory;
mod metrics;
mod monitoring;
mod nearness;
mod output;
mod pack_transfer;
mod page;
mod parity_checks;
mod partitions;
mod pods;
mod preemption;
mod pytorch_names;
mod quick;
mod recovery;
mod rendezvous;
mod repeated_failures;
mod report;
mod rerun;
mod resume;
mod security;
mod seeds;
mod selection;
mod signals;
mod slow;
mod slurm;
mod tensorboard;
mod test_device;
mod tracker_servers;
mod trackers;
mod world_sizes;

use std::io::{Write, stdout};

/// Prints a measurement on lines of its own, also of a test that passes, whose `println!` cargo
/// would hide.
fn print_line(text: &str) {
    stdout().write_all(format!("\n{text}\n").as_bytes()).expect("standard output takes a line");
}
