//! Commit, find and prune on real folders; damage of every kind.

use super::*;
use thanos_configs::SplitMix64;
use thanos_proto::WrittenFile;

fn checkpoints(run_dir: &Path) -> Checkpoints {
    Checkpoints {
        run_dir: run_dir.into(),
        run: "run".into(),
        config_digest: "digest".into(),
        data: None,
        keep_last: 2,
        total_steps: BTreeMap::new(),
    }
}

/// Writes what rank 0 writes, for a step of a stage.
fn write(run_dir: &Path, stage: &str, step: u64, complete: bool) -> CheckpointWritten {
    let folder = format!("checkpoints/{stage}/.tmp-step-{step:08}");
    fs::create_dir_all(run_dir.join(&folder)).expect("a folder");
    let files = [
        ("model.safetensors", format!("weights {step}")),
        ("optimizer.safetensors", "state".into()),
    ];
    let files = files.map(|(name, content)| {
        fs::write(run_dir.join(&folder).join(name), &content).expect("a file");
        WrittenFile {
            name: name.into(),
            bytes: content.len() as u64,
            sha256: sha256(content.as_bytes()),
        }
    });
    let result = StageResult {
        stage: stage.into(),
        seconds: 1.5,
        validation_accuracy: 1.0 / 3.0,
        coarse_test_accuracy: 0.5,
        fine_test_accuracy: None,
        knn_fine_accuracy: 0.25,
        cosine_within_coarse: Some(0.1),
        cosine_within_fine: Some(0.2),
        cosine_between_views: 0.3,
        data_wait_seconds: 0.5,
    };
    CheckpointWritten {
        stage: stage.into(),
        epoch: 1,
        step,
        generation: 1,
        world_size: 2,
        folder,
        files: files.into(),
        result: complete.then_some(result),
        seconds: 1.5,
        post_step_done: true,
        best: Some(Best { epoch: 0, validation_accuracy: 1.0 / 3.0 }),
    }
}

#[test]
fn a_commit_is_found_again_and_old_ones_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = checkpoints(folder.path());
    assert_eq!(checkpoints.find(&["a", "b"]).expect("nothing yet"), Found::default());
    for step in [5, 10, 15] {
        checkpoints.commit(&write(folder.path(), "a", step, false)).expect("committed");
    }
    let found = checkpoints.find(&["a", "b"]).expect("there");
    assert_eq!(found.resume.as_ref().map(|found| found.step), Some(15));
    let kept = committed(&folder.path().join("checkpoints/a")).expect("listed");
    assert_eq!(kept.len(), 2, "{kept:?}");
    let written = write(folder.path(), "a", 20, true);
    let last = checkpoints.commit(&written).expect("committed");
    let latest = fs::read_to_string(folder.path().join("LATEST")).expect("there");
    assert_eq!(latest.trim(), last.folder);
    let found = checkpoints.find(&["a", "b"]).expect("there");
    assert_eq!((found.complete, found.resume), (vec![last], None));
    assert_eq!(found.results, [written.result.expect("complete")], "to the bit");
}

#[test]
fn a_redone_step_replaces_its_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = checkpoints(folder.path());
    checkpoints.commit(&write(folder.path(), "a", 5, false)).expect("committed");
    checkpoints.commit(&write(folder.path(), "a", 5, true)).expect("committed again");
    assert_eq!(checkpoints.find(&["a"]).expect("there").complete.len(), 1);
}

/// A crash between the two renames of a file system that cannot exchange names.
#[test]
fn a_checkpoint_that_was_set_aside_is_found_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = checkpoints(folder.path());
    let saved = checkpoints.commit(&write(folder.path(), "a", 5, false)).expect("committed");
    let place = folder.path().join(&saved.folder);
    fs::rename(&place, set_aside(&place)).expect("set aside");
    assert_eq!(checkpoints.find(&["a"]).expect("there").resume, Some(saved));
    // Its replacement is there already.
    fs::create_dir(set_aside(&place)).expect("a folder");
    checkpoints.find(&["a"]).expect("there");
    assert!(place.exists() && !set_aside(&place).exists());
}

/// Something that cannot be removed, here as it is not a folder, costs no commit.
#[test]
fn an_old_checkpoint_that_cannot_be_removed_costs_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = checkpoints(folder.path());
    fs::create_dir_all(folder.path().join("checkpoints/a")).expect("a folder");
    fs::write(folder.path().join("checkpoints/a/step-00000001"), "").expect("a file");
    for step in [5, 10, 15] {
        checkpoints.commit(&write(folder.path(), "a", step, false)).expect("committed");
    }
    assert_eq!(checkpoints.find(&["a"]).expect("there").resume.map(|found| found.step), Some(15));
}

#[test]
fn what_rank_0_did_not_write_is_not_committed() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = checkpoints(folder.path());
    let refused = |written: CheckpointWritten, part: &str| {
        let error = format!("{:#}", checkpoints.commit(&written).expect_err("refused"));
        assert!(error.contains(part), "no `{part}` in {error}");
    };
    let good = write(folder.path(), "a", 5, false);
    refused(
        CheckpointWritten { folder: "checkpoints/../../etc".into(), ..good.clone() },
        "expected checkpoints/a/",
    );
    let file = WrittenFile { name: "../x".into(), bytes: 1, sha256: String::new() };
    refused(
        CheckpointWritten { files: vec![file], ..good.clone() },
        "not the name of a file of a checkpoint",
    );
    let mut short = good.clone();
    short.files[0].bytes += 1;
    refused(short, "9 bytes, rank 0 wrote 10");
    let mut missing = good;
    missing.files[0].name = "missing".into();
    refused(missing, "missing");
}

/// Spoils a committed checkpoint.
type Damage = fn(&Path);

#[test]
fn damage_is_seen_and_the_one_before_is_used() {
    let damage: [(&str, Damage); 7] = [
        ("expected", |place| fs::write(place.join("model.safetensors"), "x").expect("written")),
        ("SHA-256", |place| {
            fs::write(place.join("model.safetensors"), "weighty 10").expect("written")
        }),
        ("optimizer", |place| {
            fs::remove_file(place.join("optimizer.safetensors")).expect("removed")
        }),
        ("manifest", |place| fs::remove_file(place.join("manifest.json")).expect("removed")),
        ("manifest", |place| fs::write(place.join("manifest.json"), "{").expect("written")),
        ("manifest.sha256", |place| {
            fs::remove_file(place.join("manifest.sha256")).expect("removed")
        }),
        ("to run other", |place| {
            let manifest = place.join("manifest.json");
            replace(&manifest, "\"run\": \"run\"", "\"run\": \"other\"");
            let its_own = sha256(&fs::read(&manifest).expect("read"));
            fs::write(place.join("manifest.sha256"), its_own).expect("written");
        }),
    ];
    for (part, damage) in damage {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoints = checkpoints(folder.path());
        for step in [5, 10] {
            checkpoints.commit(&write(folder.path(), "a", step, false)).expect("committed");
        }
        damage(&folder.path().join("checkpoints/a/step-00000010"));
        let found = checkpoints.find(&["a"]).expect("found");
        assert_eq!(found.resume.as_ref().map(|found| found.step), Some(5), "{part}");
        assert!(
            found.warnings.len() == 1 && found.warnings[0].contains(part),
            "{part}: {:?}",
            found.warnings
        );
    }
}

/// Bits flipped, bytes put in or taken out, files cut off, emptied, exchanged or removed: of ten
/// thousand changes of a checkpoint none is taken for good, and each is refused with a reason.
/// Seeded, so a failure can be repeated.
#[test]
fn no_changed_checkpoint_is_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let reference =
        checkpoints(folder.path()).commit(&write(folder.path(), "a", 5, false)).expect("committed");
    let place = folder.path().join(&reference.folder);
    let names = ["model.safetensors", "optimizer.safetensors", "manifest.json", "manifest.sha256"];
    let good = names.map(|name| fs::read(place.join(name)).expect("there"));
    for seed in 0..10_000 {
        let mut stream = SplitMix64::new(seed);
        let file = stream.below(4) as usize;
        let path = place.join(names[file]);
        let mut bytes = good[file].clone();
        let at = stream.below(bytes.len() as u64) as usize;
        match stream.below(7) {
            0 => bytes[at] ^= 1 << stream.below(8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, stream.next_u64() as u8),
            3 => _ = bytes.remove(at),
            4 => bytes = good[(file + 1) % 4].clone(),
            5 => bytes.extend(b"more"),
            _ => bytes.clear(),
        }
        if bytes != good[file] && stream.below(10) > 0 {
            fs::write(&path, &bytes).expect("written");
        } else {
            fs::remove_file(&path).expect("removed");
        }
        // White space after its checksum changes no checkpoint.
        let same = names[file] == "manifest.sha256"
            && String::from_utf8_lossy(&bytes).trim_end().as_bytes() == good[3].trim_ascii_end();
        match verify(&place) {
            Ok(_) => assert!(
                same && path.exists(),
                "seed {seed}: a changed {} was taken for good",
                names[file]
            ),
            Err(error) => assert!(!format!("{error:#}").is_empty(), "seed {seed}"),
        }
        fs::write(&path, &good[file]).expect("written");
    }
    assert_eq!(verify(&place).expect("as it was").1, reference.manifest_sha256);
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("read");
    assert!(text.contains(from), "no {from} in {text}");
    fs::write(path, text.replace(from, to)).expect("written");
}

#[test]
fn a_manifest_with_a_former_key_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = checkpoints(folder.path());
    let place = folder
        .path()
        .join(checkpoints.commit(&write(folder.path(), "a", 5, false)).expect("committed").folder);
    let manifest = place.join("manifest.json");
    replace(&manifest, "\"post_step_done\"", "\"settled\"");
    fs::write(place.join("manifest.sha256"), sha256(&fs::read(&manifest).expect("read")))
        .expect("written");
    assert!(verify(&place).expect("read").0.post_step_done);
}

/// A stage that was complete continues where it is to make more steps; what comes after it is not
/// looked at.
#[test]
fn a_complete_stage_with_too_few_steps_is_reopened() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut checkpoints = checkpoints(folder.path());
    for stage in ["a", "b"] {
        checkpoints.commit(&write(folder.path(), stage, 10, true)).expect("committed");
    }
    let mut find = |total: u64| {
        checkpoints.total_steps = BTreeMap::from([("a".into(), total), ("b".into(), 10)]);
        let found = checkpoints.find(&["a", "b"]).expect("there");
        (
            found.complete.len(),
            found.results.len(),
            found.resume.map(|resume| (resume.stage, resume.step)),
            found.reopened,
        )
    };
    assert_eq!(find(10), (2, 2, None, false));
    assert_eq!(find(11), (0, 0, Some(("a".into(), 10)), true));
}

#[test]
fn a_checkpoint_of_other_data_is_not_used_and_one_that_does_not_say_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let data =
        |train: &str| Some(DataIdentity { train: train.into(), test: "t".into(), raw_stamp: None });
    let with = |train: Option<&str>| Checkpoints {
        data: train.and_then(data),
        ..checkpoints(folder.path())
    };
    let found = |train| with(train).find(&["a"]).expect("listed");
    with(None).commit(&write(folder.path(), "a", 5, false)).expect("committed");
    assert!(found(Some("one")).resume.is_some(), "of an earlier version");
    with(Some("one")).commit(&write(folder.path(), "a", 5, false)).expect("committed");
    assert!(found(Some("one")).resume.is_some());
    let other = found(Some("two"));
    assert_eq!(other.resume, None);
    assert!(other.warnings[0].ends_with("it was trained on other data"), "{:?}", other.warnings);
}
