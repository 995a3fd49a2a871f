//! Bad input, as a user types it: each mistake ends the real `thanos-coord` with its documented
//! exit code and one message that names what, where and what to do. 64 is the command line's, 78
//! the configuration's, 65 the data's, 69 an address's, 74 the disk's.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use thanos_tests::{Invitation, Scene, idx, processes::coordinator};

const RECORD_OF_CIFAR10: usize = 1 + 3 * 32 * 32;
/// As little training as a run can have.
const SHORT: [&str; 3] = ["digits_cnce", "train.max_steps=2", "rows=[]"];

/// Runs the program; it must end so, and say all of these parts on standard error, and nothing on
/// standard output.
#[track_caller]
fn check(scene: &Scene, arguments: &[&str], exit_code: i32, parts: &[&str]) {
    let ran = scene.coord(arguments);
    assert_eq!(ran.code, Some(exit_code), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    for part in parts {
        assert!(ran.stderr.contains(part), "{arguments:?}: no `{part}` in\n{}", ran.stderr);
    }
    assert_eq!(ran.stdout, "", "{arguments:?}");
    assert_eq!(
        ran.stderr.matches("error: ").count(),
        1,
        "{arguments:?}: one message, not\n{}",
        ran.stderr
    );
    for word in ["panicked", "unwrap()", "backtrace", "\x1b"] {
        assert!(!ran.stderr.contains(word), "{arguments:?}: `{word}` in\n{}", ran.stderr);
    }
}

/// As [`check`], for a `launch`.
#[track_caller]
fn check_launch(scene: &Scene, arguments: &[&str], exit_code: i32, parts: &[&str]) {
    check(scene, &[&["launch", "--threads-per-worker", "1"], arguments].concat(), exit_code, parts);
}

fn change(path: &Path, what: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a file");
    what(&mut bytes);
    fs::write(path, bytes).expect("a file");
}

#[test]
fn verbs_flags_and_their_values() {
    let scene = Scene::new();
    check(&scene, &["lanch", "digits_cnce"], 64, &["unrecognized subcommand 'lanch'", "'launch'"]);
    check(
        &scene,
        &["data", "pack", "cifar"],
        64,
        &["'cifar'", "digits, mnist, fashion_mnist, cifar10"],
    );
    check_launch(&scene, &["--bogus", "digits_cnce"], 64, &["unexpected argument '--bogus'"]);
    check_launch(&scene, &[], 64, &["name a preset or a YAML file", "`thanos-coord presets`"]);
    check_launch(
        &scene,
        &["--nodes", "0", "digits_cnce"],
        64,
        &["--nodes", "0 is not in 1..=4096"],
    );
    check_launch(
        &scene,
        &["--nodes", "5000", "digits_cnce"],
        64,
        &["--nodes", "5000 is not in 1..=4096"],
    );
    check_launch(&scene, &["--nodes", "two", "digits_cnce"], 64, &["--nodes", "'two'"]);
    check_launch(
        &scene,
        &["--workers-per-node", "65", "digits_cnce"],
        64,
        &["65 is not in 1..=64"],
    );
    check(
        &scene,
        &["launch", "--threads-per-worker", "0", "digits_cnce"],
        64,
        &["0 is not in 1..=1024"],
    );
    check_launch(
        &scene,
        &["--launcher", "loc", "digits_cnce"],
        64,
        &["--launcher", "local, srun, none"],
    );
    check_launch(
        &scene,
        &["--listen", "localhost", "digits_cnce"],
        64,
        &["--listen", "invalid socket address"],
    );
    check_launch(&scene, &["--resume", "digits_cnce"], 64, &["--run-dir <RUN_DIR>"]);
    assert!(!scene.path("runs").exists(), "a wrong command line leaves no file");
}

/// A configuration is refused by `launch` and by `show`, with exit code 78 and these parts.
fn check_both(scene: &Scene, name: &str, overrides: &[&str], parts: &[&str]) {
    check_launch(scene, &[&[name], overrides].concat(), 78, parts);
    check(scene, &[&["show", name], overrides].concat(), 78, parts);
}

#[test]
fn keys_and_values() {
    let scene = Scene::new();
    let check =
        |name: &str, overrides: &[&str], parts: &[&str]| check_both(&scene, name, overrides, parts);
    check("digit_table", &[], &["unknown preset `digit_table`", "did you mean `digits_table`?"]);
    check(
        "digits_cnce",
        &["train.bach_size=3"],
        &["train.bach_size: unknown key; did you mean `batch_size`?"],
    );
    check("digits_cnce", &["epochs=3"], &["epochs: unknown key; did you mean `train.epochs`?"]);
    check("digits_cnce", &["train.epochs"], &["'train.epochs'", "missing `=`", "train.epochs=10"]);
    check(
        "digits_cnce",
        &["train.epochs=many"],
        &["train.epochs: expected a non-negative integer", "got the string `many`"],
    );
    check("digits_cnce", &["data.drop_last=1"], &["data.drop_last: expected true or false, got 1"]);
    check(
        "digits_cnce",
        &["train.schedule=cosin"],
        &["one of cosine, constant", "did you mean `cosine`?"],
    );
    check("digits_cnce", &["seed=-1"], &["seed: expected a non-negative integer, got -1"]);
    check(
        "digits_cnce",
        &["train.learning_rate=.nan"],
        &["train.learning_rate: expected a number"],
    );
    check(
        "digits_cnce",
        &["train.batch_size=0"],
        &["train.batch_size: must be between 1 and 1048576, got 0"],
    );
    check(
        "digits_cnce",
        &["train.epochs=99999999"],
        &["train.epochs: must be between 1 and 1000000, got 99999999"],
    );
    check("digits_cnce", &["objective.temperature=0"], &["objective.temperature: must be between"]);
    check(
        "digits_cnce",
        &["model.encoder.vit.width=1000000000"],
        &["model.encoder.vit.width: must be between"],
    );
    check(
        "digits_cnce",
        &["model.encoder.vit.patch=3"],
        &["3 does not divide the 8 pixels of digits"],
    );
    assert!(!scene.path("runs").exists(), "a wrong configuration leaves no file");
}

#[test]
fn keys_that_do_not_fit_together() {
    let scene = Scene::new();
    let check =
        |name: &str, overrides: &[&str], parts: &[&str]| check_both(&scene, name, overrides, parts);
    check(
        "digits_cnce",
        &["transfer.features=cached", "transfer.frozen_mode=train"],
        &["transfer.frozen_mode: `train` contradicts `transfer.features: cached`"],
    );
    check("digits_cnce", &["rows=[]", "backbones=[]"], &["backbones: nothing to train"]);
    check(
        "digits_cnce",
        &["rows.0.backbones=[cae]"],
        &["no backbone is called `cae`; there are: cnce"],
    );
    check("digits_cnce", &["backbones.0.name=../x"], &["backbones.0.name", "it names a folder"]);
    check(
        "digits_cnce",
        &["train.schedule=constant", "train.cosine_period=7"],
        &["train.cosine_period: 7 has no effect", "(`train.schedule`)"],
    );
    check(
        "digits_cnce",
        &["model.embedding_dropout=.4"],
        &["model.embedding_dropout: 0.4 has no effect", "(`model.dropout`)"],
    );
    check(
        "digits_thanos",
        &["objective.reconstruction=0.5"],
        &["would change only cnce", "backbones.cae.objective.reconstruction"],
    );
    check(
        "digits_table",
        &["backbones.cea.name=x"],
        &["its items are 0 to 2, or supcon, cnce, cae, got `cea`"],
    );
    check(
        "digits_cnce",
        &["train.batch_size=0", "views.hue=2", "transfer.epochs=0"],
        &["override 'train.batch_size=0'", "override 'views.hue=2'", "'transfer.epochs=0'"],
    );
    assert!(!scene.path("runs").exists(), "a wrong configuration leaves no file");
}

#[test]
fn files_of_configuration() {
    let scene = Scene::new();
    let write = |text: &[u8]| fs::write(scene.path("my.yaml"), text).expect("a file");
    let check = |parts: &[&str]| check_launch(&scene, &["my.yaml"], 78, parts);
    check(&["cannot read my.yaml: No such file"]);
    check_launch(&scene, &["./"], 78, &["cannot read ./: Is a directory"]);
    write(b"\xff\xfe");
    check(&["cannot read my.yaml", "UTF-8"]);
    write(b"seed: 1\ntrain: [1\nmodel: 2\n");
    check(&["my.yaml:3: invalid YAML"]);
    write(b"extends: digit_cnce\n");
    check(&["my.yaml:1: extends: unknown preset `digit_cnce`; did you mean `digits_cnce`?"]);
    // Every mistake at once, each with its line.
    write(
        b"extends: digits_cnce\ntrain:\n  epochs: many\n  bach_size: 64\nviews:\n  hue: 0.1\n  \
        hue: 0.2\nrows: {}\n",
    );
    check(&[
        "my.yaml:3: train.epochs: expected a non-negative integer, got the string `many`",
        "my.yaml:4: train.bach_size: unknown key; did you mean `batch_size`?",
        "my.yaml:7: views.hue: this key is already on line 6: keep one of the two",
        "my.yaml:8: rows: expected a list, got an empty map",
    ]);
    // And every broken rule, once keys and types are right.
    write(
        b"extends: digits_cnce\ntrain:\n  epochs: 0\n  batch_size: 0\ntransfer:\n  frozen_mode: \
        train\n",
    );
    check(&[
        "my.yaml:3: train.epochs: must be between 1 and 1000000, got 0",
        "my.yaml:4: train.batch_size: must be between 1 and 1048576, got 0",
        "my.yaml:6: transfer.frozen_mode: `train` contradicts",
    ]);
}

#[test]
fn folders_without_the_data() {
    let scene = Scene::new();
    let check = |overrides: &[&str], parts: &[&str]| check_launch(&scene, overrides, 65, parts);
    check(
        &["mnist_cnce"],
        &["mnist needs a folder, but none is given: set data.dir=DIR", "t10k-images"],
    );
    let none = format!("data.dir={}", scene.path("none").display());
    check(&["mnist_cnce", "data.dir=none"], &[&none, "No such file", "set data.dir=DIR"]);
    fs::write(scene.path("file"), "").expect("a file");
    check(&["mnist_cnce", "data.dir=file"], &["/file: not a folder", "set data.dir=DIR"]);
    idx::write(&scene.path("idx"), 30, 20);
    fs::remove_file(scene.path("idx/t10k-labels-idx1-ubyte")).expect("it was written");
    fs::remove_file(scene.path("idx/train-images-idx3-ubyte")).expect("it was written");
    let both = "missing train-images-idx3-ubyte, t10k-labels-idx1-ubyte; looked in ";
    check(
        &["fashion_mnist_cnce", "data.dir=idx"],
        &["data set fashion_mnist", both, "get the four IDX files"],
    );
    let six = "missing data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, data_batch_4.bin, \
        data_batch_5.bin, test_batch.bin";
    check(
        &["cifar10_cnce", "data.dir=idx"],
        &[six, "idx/cifar-10-batches-bin", "cifar-10-binary.tar.gz"],
    );
    // A whole epoch's images are less than a batch, and short batches are to be skipped.
    let short = ["digits_cnce", "data.drop_last=true", "train.batch_size=2000"];
    check(&short, &["data.drop_last: no step is left", "2000, of 1293 training images"]);
}

/// A path is what was typed: no comment starts in it, and `~/` is the home directory.
#[test]
fn paths_are_taken_as_typed() {
    let scene = Scene::new();
    for name in ["set #1", "12", "a: b", "[x]"] {
        idx::write(&scene.path(name), 30, 20);
        let dir = format!("data.dir={name}");
        let shown = scene.coord(&["show", "mnist_cnce", &dir]).expect(0).stdout;
        let shown: serde_yaml::Value = serde_yaml::from_str(&shown).expect("YAML");
        assert_eq!(shown["data"]["dir"], scene.path(name).display().to_string().as_str());
        check_launch(
            &scene,
            &["mnist_cnce", &dir, "data.drop_last=true"],
            65,
            &["no step is left"],
        );
    }
    let home = scene.path("home").display().to_string();
    let shown = scene
        .start_with(&["show", "mnist_cnce", "data.dir=~/x y"], &[("HOME", &home)])
        .wait()
        .expect(0)
        .stdout;
    assert!(shown.contains(&format!("{home}/x y")), "{shown}");
}

/// What a job on another machine cannot find is refused before it is queued.
#[test]
fn rendered_jobs_find_their_data() {
    let scene = Scene::new();
    let kubernetes = ["render", "kubernetes", "--image", "x"];
    for render in [&["render", "slurm"][..], &kubernetes] {
        let parts = ["data.dir=mnist: a job runs on another machine: write an absolute path"];
        check(&scene, &[render, &["mnist_cnce", "data.dir=mnist"]].concat(), 78, &parts);
    }
    let target = ["mnist_cnce", "data.dir=/data"];
    let parts = ["data.dir=/data is in no volume of the pods", "--data"];
    check(&scene, &[&kubernetes[..], &target].concat(), 64, &parts);
    check(
        &scene,
        &[&kubernetes[..], &["--data", "./x"], &target].concat(),
        64,
        &["--data", "PersistentVolumeClaim"],
    );
    for (volume, part) in [("mnist", "claimName: mnist"), ("/mnt/mnist", "path: /mnt/mnist")] {
        let text =
            scene.coord(&[&kubernetes[..], &["--data", volume], &target].concat()).expect(0).stdout;
        assert!(text.contains(part) && text.contains("mountPath: /data"), "{volume}: {text}");
    }
    scene.coord(&[&["render", "slurm"], &target[..]].concat()).expect(0);
}

/// 30 images of 28 x 28 after a header of 16 bytes, 30 labels after one of 8.
#[test]
fn idx_files() {
    let scene = Scene::new();
    let check = |file: &str, what: &dyn Fn(&mut Vec<u8>), parts: &[&str]| {
        let folder = scene.path("idx");
        idx::write(&folder, 30, 20);
        change(&folder.join(file), what);
        let path = folder.join(file).display().to_string();
        check_launch(
            &scene,
            &["mnist_cnce", "data.dir=idx"],
            65,
            &[&[path.as_str(), "set data.dir=DIR"], parts].concat(),
        );
    };
    let (images, labels) = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte");
    check(
        images,
        &|bytes| bytes[3] = 1,
        &["expected magic number 0x00000803 (IDX images), got 0x00000801"],
    );
    check(
        labels,
        &|bytes| bytes[..4].fill(0),
        &["expected magic number 0x00000801 (IDX labels), got 0x00000000"],
    );
    check(
        labels,
        &|bytes| bytes[8 + 3] = 10,
        &["record 3 at offset 11: expected a label in 0..=9, got 10"],
    );
    check(
        "t10k-labels-idx1-ubyte",
        &|bytes| bytes[8] = 255,
        &["record 0 at offset 8: expected a label in 0..=9"],
    );
    let cut = "its header declares 30 records, which is 23536 bytes in all, got 23535 bytes";
    check(images, &|bytes| _ = bytes.pop(), &[cut]);
    check(
        images,
        &|bytes| bytes.truncate(10),
        &["its header is cut off: expected 16 bytes, got 10"],
    );
    check(images, &|bytes| bytes[11] = 32, &["expected images of 28 x 28 pixels, got 32 x 28"]);
    check(images, &|bytes| bytes[4..8].fill(255), &["its header declares 4294967295 records"]);
    let one_less = |bytes: &mut Vec<u8>| {
        bytes.pop();
        bytes[7] = 29;
    };
    check(labels, &one_less, &["29 labels", "has 30 images"]);
    // The start of a gzip stream, and no more of it.
    check(
        images,
        &|bytes| *bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
        &["the gzip stream is cut off"],
    );
}

#[test]
fn cifar_files() {
    let scene = Scene::new();
    let check = |file: &str, content: &[u8], parts: &[&str]| {
        let folder = scene.path("cifar");
        fs::create_dir_all(&folder).expect("a folder");
        let names = (1..=5)
            .map(|number| format!("data_batch_{number}.bin"))
            .chain(["test_batch.bin".into()]);
        for (label, batch) in names.enumerate() {
            let mut content = [0; 2 * RECORD_OF_CIFAR10];
            content[0] = label as u8;
            fs::write(folder.join(batch), content).expect("a file");
        }
        fs::write(folder.join(file), content).expect("a file");
        let path = folder.join(file).display().to_string();
        check_launch(
            &scene,
            &["cifar10_cnce", "data.dir=cifar"],
            65,
            &[&[path.as_str()], parts].concat(),
        );
    };
    let cut =
        "expected a whole number of records of 3073 bytes, got 6145 bytes: record 1 is cut off";
    check("data_batch_3.bin", &[0; 2 * RECORD_OF_CIFAR10 - 1], &[cut]);
    check("test_batch.bin", &[0; 100], &["got 100 bytes: record 0 is cut off"]);
    check("data_batch_5.bin", &[], &["it holds no records"]);
    check(
        "data_batch_1.bin",
        &[0; 2 * (RECORD_OF_CIFAR10 + 1)],
        &["this is CIFAR-100, expected CIFAR-10"],
    );
    let mut labels = [0; 2 * RECORD_OF_CIFAR10];
    labels[RECORD_OF_CIFAR10] = 10;
    check(
        "data_batch_2.bin",
        &labels,
        &["record 1 at offset 3073: expected a label in 0..=9, got 10"],
    );
    check(
        "data_batch_2.bin",
        &[0; 2 * RECORD_OF_CIFAR10],
        &["data_batch_2.bin: it has the same content as", "one batch occurs twice"],
    );
}

#[test]
fn run_directories() {
    let scene = Scene::new();
    for arguments in
        [&["launch", "--resume", "--run-dir", "none"][..], &["status", "none"], &["report", "none"]]
    {
        check(&scene, arguments, 64, &["none is not a run directory", "none/run.json"]);
    }
    fs::write(scene.path("file"), "").expect("a file");
    check_launch(&scene, &["--run-dir", "file", "digits_cnce"], 74, &["cannot make file"]);
    check_launch(
        &scene,
        &["--run-dir", "x", "--packs-dir", "file", "digits_cnce"],
        74,
        &["cannot write pack file/"],
    );

    scene.launch("run", 1, &SHORT).expect(0);
    check_launch(
        &scene,
        &["--run-dir", "run", "digits_cnce"],
        64,
        &["run already contains a run: add --resume"],
    );
    let other = ["--resume", "--run-dir", "run", "digits_cnce", "seed=1"];
    check_launch(
        &scene,
        &other,
        78,
        &["seed: the run has 0, this command 1", "without naming a preset"],
    );
    fs::remove_file(scene.path("run/results.json")).expect("it was written");
    check(&scene, &["report", "run"], 65, &["there are no results yet", "run/results.json"]);
    fs::write(scene.path("run/results.json"), "{").expect("a file");
    check(&scene, &["report", "run"], 65, &["run/results.json"]);
    change(&scene.path("run/steps.jsonl"), |bytes| {
        bytes.splice(..0, *b"not a step\n").for_each(drop)
    });
    check(&scene, &["status", "run"], 65, &["run/steps.jsonl, line 1: not a step"]);
    check_launch(
        &scene,
        &["--resume", "--run-dir", "run"],
        65,
        &["run/steps.jsonl, line 1: not a step"],
    );
    fs::write(scene.path("run/run.json"), "{}").expect("a file");
    check(&scene, &["status", "run"], 64, &["run/run.json is damaged"]);
}

#[test]
fn a_run_directory_in_use_names_its_holder() {
    let busy = Scene::new();
    let arguments = [
        "launch",
        "--threads-per-worker",
        "1",
        "--run-dir",
        "run",
        "digits_supcon",
        "train.epochs=100000",
    ];
    let mut running = busy.start(&arguments);
    running.wait_for_steps("run", 1);
    let run_dir = busy.path("run").display().to_string();
    let pid = coordinator(&busy.path("run")).expect("it is at work");
    let holder = format!("is in use by another coordinator (pid {pid} on ");
    let scene = Scene::new();
    check_launch(&scene, &["--run-dir", &run_dir, "digits_supcon"], 64, &[&run_dir, &holder]);
    check_launch(&scene, &["--resume", "--run-dir", &run_dir], 64, &[&run_dir, &holder]);
}

/// Checked by the worker that loads it: the exit code and the message come back through the
/// coordinator.
#[test]
fn checkpoints_of_backbones() {
    let scene = Scene::new();
    let check = |name: &str, parts: &[&str]| {
        let path = scene.path(name).display().to_string();
        let key = format!("backbones.0.checkpoint={name}");
        check_launch(
            &scene,
            &["digits_cnce", &key, "transfer.epochs=1"],
            65,
            &[&["cnce", path.as_str()], parts].concat(),
        );
    };
    check("none.safetensors", &["No such file"]);
    fs::write(scene.path("text.safetensors"), "not weights").expect("a file");
    check("text.safetensors", &["not a safetensors file"]);
    // A header that promises more than there is: 2^63 bytes.
    fs::write(scene.path("absurd.safetensors"), [0, 0, 0, 0, 0, 0, 0, 0x80, b'{', b'}'])
        .expect("a file");
    check("absurd.safetensors", &["not a safetensors file"]);
    fs::create_dir(scene.path("empty")).expect("a folder");
    check("empty", &["No such file"]);
    scene
        .launch(
            "other",
            1,
            &["digits_cae", "train.max_steps=2", "rows=[]", "model.encoder.vit.depth=1"],
        )
        .expect(0);
    let other = fs::read_to_string(scene.path("other/LATEST")).expect("LATEST");
    check(&format!("other/{}", other.trim()), &["tensor"]);
}

#[test]
fn an_address_that_is_not_this_machines() {
    let scene = Scene::new();
    let nowhere = Invitation { address: "127.0.0.1:1".into(), credentials: None };
    for (arguments, parts) in [
        (["--interface", "nope0"], ["--interface nope0 is not on this machine, which has ", "lo"]),
        (
            ["--host", "192.0.2.1"],
            ["--host 192.0.2.1 is not an address of this machine: ", "(os error 99)"],
        ),
        (
            ["--host", "no.such.name.invalid"],
            ["--host no.such.name.invalid is not an address of this machine", "lookup"],
        ),
    ] {
        let output = scene.worker(&nowhere, "w", &arguments).wait().expect(69).stderr;
        for part in parts {
            assert!(output.contains(part), "no `{part}` in {output}");
        }
    }
}

#[test]
fn an_address_that_is_taken() {
    let scene = Scene::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let parts = [&format!("cannot listen on {address}"), "Address already in use"];
    check_launch(&scene, &[&["--listen", &address][..], &SHORT].concat(), 69, &parts);
}

#[test]
fn packs() {
    let scene = Scene::new();
    check(&scene, &["data", "pack", "mnist"], 65, &["mnist needs a folder, but none is given"]);
    fs::write(scene.path("text"), "not a pack, but longer than the eight bytes of a length")
        .expect("a file");
    for verb in ["info", "verify"] {
        check(&scene, &["data", verb, "none"], 65, &["pack none: cannot be read: No such file"]);
        check(
            &scene,
            &["data", verb, "text"],
            65,
            &["pack text: ", "`thanos-coord data pack` writes a good one"],
        );
    }
}

/// What a launch could not do leaves the directory free: the same command with the mistake put
/// right runs in it.
#[test]
fn a_launch_that_was_refused_can_be_typed_again() {
    let scene = Scene::new();
    idx::write(&scene.path("idx"), 30, 20);
    check_launch(
        &scene,
        &["--run-dir", "run", "mnist_cnce", "train.max_steps=1", "rows=[]"],
        65,
        &["set data.dir=DIR"],
    );
    let small = "model.encoder.vit={patch: 7, width: 16, depth: 1, heads: 2, mlp: 16}";
    scene
        .launch("run", 1, &["mnist_cnce", "data.dir=idx", "train.max_steps=1", "rows=[]", small])
        .expect(0);
}
