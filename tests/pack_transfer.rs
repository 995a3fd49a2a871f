//! Workers that do not see the coordinator's disk get its packs over their session: once a host,
//! checked, and from where an earlier transfer broke off. `serve` with workers started by hand, as
//! on machines of their own.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use thanos_tests::{Running, Scene, lines};

const SHORT: [&str; 3] = ["digits_cnce", "train.max_steps=2", "rows=[]"];

/// Runs two steps with workers whose packs are in these folders; returns what was fetched, as
/// `events.jsonl` says.
fn run(scene: &Scene, name: &str, folders: &[&Path]) -> Vec<Value> {
    let nodes = folders.len().to_string();
    let arguments = [&["serve", "--nodes", &nodes, "--run-dir", name][..], &SHORT].concat();
    let mut serving = scene.start(&arguments);
    let invitation = serving.invitation();
    let workers: Vec<Running> = folders
        .iter()
        .enumerate()
        .map(|(at, folder)| {
            scene.worker(
                &invitation,
                &format!("w{at}"),
                &["--packs-dir", &folder.display().to_string()],
            )
        })
        .collect();
    serving.wait().expect(0);
    for worker in workers {
        worker.wait().expect(0);
    }
    lines(&scene.path(name), "events.jsonl")
        .into_iter()
        .filter(|line| line["event"] == "fetched")
        .collect()
}

/// The two packs in a folder, the larger (training) one first.
fn packs(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut packs: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect();
    packs.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).expect("a file").len()));
    assert_eq!(packs.len(), 2, "{packs:?}");
    packs
}

#[test]
fn a_pack_travels_once_a_host() {
    let scene = Scene::new();
    let (one, other) = (scene.path("one"), scene.path("other"));
    let fetched = run(&scene, "first", &[&one, &one, &one, &other]);
    assert_eq!(fetched.len(), 4, "two packs to either host: {fetched:?}");
    let bytes = |path: &Path| fs::read(path).expect("a pack");
    for (ours, theirs) in packs(&one).iter().zip(packs(&other)) {
        assert_eq!(bytes(ours), bytes(&theirs));
        scene.coord(&["data", "verify", &ours.display().to_string()]).expect(0);
    }
    let again = run(&scene, "again", &[&one, &other]);
    assert_eq!(again, Vec::<Value>::new(), "they are kept");
}

#[test]
fn a_transfer_resumes_where_it_broke_off() {
    let scene = Scene::new();
    let folder = scene.path("host");
    run(&scene, "first", &[&folder]);
    let [train, test] = &packs(&folder)[..] else { panic!("two packs") };
    let (good, half) =
        (fs::read(train).expect("a pack"), fs::metadata(train).expect("a pack").len() / 2);
    // Half a file under the name of one that is on its way, as a worker that was killed leaves it.
    fs::rename(train, train.with_extension("part")).expect("a file");
    fs::File::options()
        .write(true)
        .open(train.with_extension("part"))
        .and_then(|file| file.set_len(half))
        .expect("a file");
    // The other's beginning is damaged: it must start over.
    let mut bytes = fs::read(test).expect("a pack");
    bytes[100] ^= 1;
    bytes.truncate(1000);
    fs::write(test.with_extension("part"), bytes).expect("a file");
    fs::remove_file(test).expect("a file");
    let fetched = run(&scene, "second", &[&folder]);
    let from: Vec<u64> =
        fetched.iter().map(|line| line["from"].as_u64().expect("a number")).collect();
    assert_eq!(from, [half, 0], "{fetched:?}");
    assert_eq!(fetched[0]["bytes"].as_u64(), Some(good.len() as u64 - half));
    assert_eq!(fs::read(train).expect("a pack"), good);
    scene.coord(&["data", "verify", &test.display().to_string()]).expect(0);
    assert!(!train.with_extension("part").exists() && !test.with_extension("part").exists());
}

/// The coordinator's file is away for a moment, as on a disk that hangs: the stream breaks, and a
/// later one continues.
#[test]
fn a_transfer_survives_a_break_and_gives_up_in_the_end() {
    let scene = Scene::new();
    let packed = scene.coord(&["data", "pack", "digits", "--packs-dir", "packs"]).expect(0).stdout;
    let pack = scene
        .path(packed.lines().next().and_then(|line| line.rsplit(", ").next()).expect("a path"));
    let away = pack.with_extension("away");
    for (name, comes_back) in [("back", true), ("gone", false)] {
        let arguments =
            [&["serve", "--packs-dir", "packs", "--run-dir", name][..], &SHORT].concat();
        let mut serving = scene.start(&arguments);
        let invitation = serving.invitation();
        fs::rename(&pack, &away).expect("a file");
        let mut worker = scene.worker(&invitation, name, &["--packs-dir", name]);
        worker.wait_for_line(
            "the transfer of a pack was interrupted, and continues: the coordinator cannot read",
        );
        if comes_back {
            fs::rename(&away, &pack).expect("a file");
            worker.wait().expect(0);
            serving.wait().expect(0);
        } else {
            let output = worker.wait().expect(69).stderr;
            assert!(
                output.contains(
                    "the train pack in gone: it could not be brought from the coordinator in 5"
                ),
                "{output}"
            );
            // The run waits for a worker that can: the launcher of this one may start another.
            serving.wait_for_line("No such file");
            serving.interrupt().expect(75);
        }
    }
}
