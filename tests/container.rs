//! The image, as far as it can be checked without building it (`make image-test` trains in a built
//! one): what changes least is copied first, every manifest is there before the sources, nothing
//! runs as root, and licences come along.

use std::fs;
use std::path::Path;
use std::process::Command;
use thanos_tests::root;

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The instructions of a Containerfile, each on a line, by stage.
fn stages(text: &str) -> Vec<(String, Vec<String>)> {
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let instructions = lines.join("\n").replace("\\\n", " ");
    let mut stages: Vec<(String, Vec<String>)> = Vec::new();
    for line in instructions.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix("FROM ").and_then(|from| from.split(" AS ").nth(1)) {
            stages.push((name.to_owned(), Vec::new()));
        }
        if let Some((_, instructions)) = stages.last_mut() {
            instructions.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    stages
}

/// A stage's instructions after those of the stages that it is made from.
fn with_bases(stages: &[(String, Vec<String>)], name: &str) -> Vec<String> {
    let Some((_, own)) = stages.iter().find(|(stage, _)| stage == name) else { return Vec::new() };
    let base = own[0].trim_start_matches("FROM ").split(' ').next().expect("a base");
    [with_bases(stages, base), own[1..].to_vec()].concat()
}

#[test]
fn what_changes_least_is_copied_first() {
    let stages = stages(&read("deploy/container/Containerfile"));
    let manifest = read("Cargo.toml");
    let members = manifest
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("members");
    let members: Vec<&str> =
        members.split(',').map(|member| member.trim().trim_matches('"')).collect();
    assert!(members.len() >= 8, "{members:?}");
    for build in ["build-cpu", "build-cuda"] {
        let instructions = with_bases(&stages, build);
        let position = |wanted: &str| instructions.iter().position(|line| line == wanted);
        let at = |wanted: &str| {
            position(wanted)
                .unwrap_or_else(|| panic!("{build} lacks `{wanted}`: {instructions:#?}"))
        };
        let sources = at("COPY . .");
        assert!(
            at("RUN make libtorch") < at("COPY Cargo.toml Cargo.lock ./"),
            "libtorch does not change with Cargo.lock"
        );
        for member in &members {
            assert!(at(&format!("COPY {member}/Cargo.toml {member}/")) < sources, "{member}");
        }
        assert_eq!(
            instructions.iter().filter(|line| line.starts_with("COPY . ")).count(),
            1,
            "the sources, once, last"
        );
        assert_eq!(
            instructions.len(),
            sources + 2,
            "one step depends on the sources: {instructions:#?}"
        );
        assert!(instructions[sources + 1].contains("licenses.sh"), "{instructions:#?}");
    }
    let cuda = with_bases(&stages, "build-cuda");
    let position = |wanted: &str| cuda.iter().position(|line| line == wanted);
    assert!(
        position("RUN make libtorch-cuda").is_some()
            && position("RUN make libtorch-cuda") < position("COPY . .")
    );
}

#[test]
fn images_run_as_an_ordinary_user_without_a_shell() {
    let stages = stages(&read("deploy/container/Containerfile"));
    for image in ["cpu", "cuda"] {
        let instructions = with_bases(&stages, image);
        let last = |start: &str| {
            instructions.iter().rfind(|line| line.starts_with(start)).map(String::as_str)
        };
        assert_eq!(last("USER "), Some("USER 10001:10001"), "{image}");
        assert_eq!(last("ENTRYPOINT "), Some("ENTRYPOINT []"), "{image}");
        assert_eq!(last("CMD "), Some("CMD [\"thanos-coord\", \"--help\"]"), "{image}: no shell");
        assert_eq!(last("STOPSIGNAL "), Some("STOPSIGNAL SIGTERM"), "{image}");
        assert!(
            last("LABEL ").is_some_and(|label| label.contains("org.opencontainers.image.licenses")),
            "{image}"
        );
        assert!(
            instructions.iter().any(|line| line == &format!("COPY --from=build-{image} /image/ /")),
            "{image}"
        );
    }
    let cuda = with_bases(&stages, "cuda").join("\n");
    for package in ["libibverbs1", "librdmacm1", "ibverbs-providers"] {
        assert!(cuda.contains(package), "NCCL needs {package} for InfiniBand");
    }
    for base in ["BASE", "RUST_BASE"] {
        assert!(
            read("deploy/container/Containerfile").contains(&format!("\nARG {base}=")),
            "{base} can be replaced"
        );
    }
}

/// The script gives the workspace sources that cargo takes: it reads the whole workspace as it does
/// that of the image.
#[test]
fn empty_crates_are_a_workspace() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = |name: &str| {
        let target = folder.path().join(name);
        fs::create_dir_all(target.parent().expect("a folder")).expect("made");
        fs::copy(root().join(name), target).unwrap_or_else(|error| panic!("{name}: {error}"));
    };
    let containerfile = read("deploy/container/Containerfile");
    let copied = containerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| line.contains("Cargo"));
    for line in copied {
        line.split(' ').filter(|word| word.contains("Cargo.")).for_each(copy);
    }
    let script = root().join("deploy/container/empty_crates.sh");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .expect(program);
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("sh", &[script.to_str().expect("UTF-8")]);
    run("cargo", &["metadata", "--offline", "--locked", "--no-deps", "--format-version=1"]);
    for built in
        ["coordinator/src/main.rs", "worker/src/main.rs", "worker/c10d/build.rs", "proto/build.rs"]
    {
        assert!(folder.path().join(built).is_file(), "{built}");
    }
}

/// What is not for the image does not reach the build.
#[test]
fn secrets_and_outputs_are_not_sent_to_the_build() {
    let ignored = read(".dockerignore");
    for name in [".git", "**/target", "credentials", "runs", "packs"] {
        assert!(ignored.lines().any(|line| line == name), "{name}");
    }
    assert!(Path::new(root()).join("deploy/container/image_test.sh").is_file());
}
