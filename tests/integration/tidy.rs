//! Architectural rules for the sources: layers, locations of threads and GStreamer, headers.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::{Path, PathBuf};

/// Layers inside the packages of several modules, lowest first; a module imports only from lower layers.
const LAYERS: [&[&str]; 5] = [
    &[
        "error",
        "changes",
        "demux",
        "files",
        "weights",
        "wording",
        "companion",
        "picture",
        "rng",
        "flow",
        "frame",
    ],
    &["vit", "gates", "interpreter", "overlay"],
    &["explain", "data", "media"],
    &["train", "eval", "models", "sidecar"],
    &["pipeline", "request"],
];

/// Packages of several modules.
const PACKAGES: [&str; 3] = ["core", "video", "lab"];

/// Imports allowed inside a layer, and of `error` in the lowest one.
const ARROWS: [(&str, &str); 13] = [
    ("changes", "error"),
    ("companion", "error"),
    ("companion", "files"),
    ("companion", "weights"),
    ("files", "error"),
    ("frame", "error"),
    ("picture", "error"),
    ("rng", "error"),
    ("flow", "error"),
    ("flow", "rng"),
    ("gates", "vit"),
    ("interpreter", "vit"),
    ("train", "eval"),
];

/// A source file: its path from the root, its lines without comments, and its first line.
struct Source {
    path: String,
    code: Vec<String>,
    header: String,
}

impl Source {
    /// Returns the package of `src` it belongs to; `bin` for the program, `lib` for the library of everything.
    fn package(&self) -> &str {
        let inside = self.path.trim_start_matches("src/");
        let end = inside.find(['/', '.']).unwrap();
        &inside[..end]
    }

    /// Returns the module it belongs to; for a package of one module, the name of the package.
    fn module(&self) -> &str {
        let package = self.package();
        if !PACKAGES.contains(&package) {
            return package;
        }
        let inside = &self.path["src/".len() + package.len() + 1..];
        let end = inside.find(['/', '.']).unwrap();
        &inside[..end]
    }

    /// Returns the numbered lines of code that contain `needle`, for the message of a failed test.
    fn lines_with(&self, needle: &str) -> Vec<String> {
        let lines = self.code.iter().enumerate();
        lines
            .filter(|(_, line)| line.contains(needle))
            .map(|(line_idx, line)| format!("{}:{}: {}", self.path, line_idx + 1, line.trim()))
            .collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all Rust files below the folders.
fn sources(folders: &[&str]) -> Vec<Source> {
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut sources = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            waiting.extend(entries.map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().map(|line| {
                let comment = line.trim_start().starts_with("//");
                if comment { String::new() } else { line.into() }
            });
            sources.push(Source {
                path: path.strip_prefix(root()).unwrap().to_str().unwrap().into(),
                code: code.collect(),
                header: text.lines().next().unwrap_or_default().into(),
            });
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(
        sources.len() > 5,
        "the sources are not where they are looked for"
    );
    sources
}

/// Fails with all lines that break a rule.
fn check_none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

/// Fails with every line of code that contains one of `needles`, in files for which `applies` returns true.
fn check_absent(rule: &str, needles: &[&str], applies: impl Fn(&Source) -> bool) {
    let sources = sources(&["src", "tests", "examples"]);
    let broken = sources
        .iter()
        // This file itself spells out the forbidden texts.
        .filter(|source| source.path != "tests/integration/tidy.rs" && applies(source))
        .flat_map(|source| needles.iter().flat_map(|needle| source.lines_with(needle)))
        .collect();
    check_none(rule, broken);
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Returns the modules that a line names by `crate::`.
fn imports(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        match &rest[..end.unwrap_or(rest.len())] {
            "Error" | "Result" => Some("error"),
            "" => None,
            module => Some(module),
        }
    })
}

#[test]
fn modules_import_from_lower_layers_only() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let module = source.module();
        if !PACKAGES.contains(&source.package()) || module == "lib" {
            continue;
        }
        let Some(own) = layer(module) else {
            broken.push(format!("{}: module {module:?} has no layer", source.path));
            continue;
        };
        for (line_idx, line) in source.code.iter().enumerate() {
            for import in imports(line).filter(|import| *import != module) {
                let below = layer(import).is_some_and(|layer| layer < own);
                if !below && !ARROWS.contains(&(module, import)) {
                    broken.push(format!("{}:{}: {import}", source.path, line_idx + 1));
                }
            }
        }
    }
    check_none("imports from the same or a higher layer", broken);
}

#[test]
fn packages_depend_on_those_before_them() {
    let manifest = |folder: &str| -> toml::Table {
        let path = root().join(folder).join("Cargo.toml");
        std::fs::read_to_string(path).unwrap().parse().unwrap()
    };
    let workspace = manifest("");
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let mut known = Vec::new();
    for member in members.iter().map(|member| member.as_str().unwrap()) {
        let member = manifest(member);
        let name = member["package"]["name"].as_str().unwrap().to_owned();
        let needed = member["dependencies"].as_table().unwrap().keys();
        let ours: Vec<&String> = needed.filter(|name| name.starts_with("vitscope")).collect();
        let above: Vec<&&String> = ours.iter().filter(|name| !known.contains(**name)).collect();
        assert!(above.is_empty(), "{name} needs {above:?}");
        known.push(name);
    }
}

#[test]
fn the_layers_have_no_way_around_them() {
    let broken = sources(&["src"])
        .iter()
        .filter(|source| PACKAGES.contains(&source.package()))
        .flat_map(|source| source.lines_with("use crate::{"))
        .filter(|line| !line.ends_with("use crate::{Error, Result};"))
        .collect();
    check_none(
        "several modules in one `use`, which the test of the layers cannot read",
        broken,
    );
}

#[test]
fn vit_and_kernels_know_nothing_of_video() {
    check_absent(
        "frames, files and threads in tensor code",
        &["crate::frame", "std::fs", "std::thread"],
        |source| {
            ["src/core/vit/", "src/kernels/"]
                .iter()
                .any(|part| source.path.starts_with(part))
        },
    );
}

#[test]
fn only_media_element_plugin_and_live_import_gstreamer() {
    check_absent(
        "gstreamer outside of media, element, plugin and live",
        &["gstreamer", "gst::"],
        |source| {
            source.path.starts_with("src/")
                && !["media", "element", "gst", "live"].contains(&source.module())
        },
    );
}

#[test]
fn only_pipeline_starts_threads() {
    let needles = [
        "thread::spawn",
        "thread::Builder",
        "thread::scope",
        "rayon::spawn",
    ];
    check_absent("a thread outside of pipeline", &needles, |source| {
        source.path.starts_with("src/") && source.module() != "pipeline"
    });
}

#[test]
fn every_channel_is_bounded() {
    check_absent(
        "a channel without a bound",
        &["unbounded", "mpsc::channel"],
        |_| true,
    );
}

#[test]
fn only_kernels_and_element_are_unsafe() {
    check_absent("unsafe code", &["unsafe ", "unsafe{"], |source| {
        !["kernels", "element"].contains(&source.module())
    });
}

#[test]
fn lints_are_lifted_by_expect_with_a_reason() {
    check_absent(
        "a lint lifted by `allow`",
        &["#[allow(", "#![allow("],
        |_| true,
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    let broken = sources(&["src", "tests", "examples"])
        .into_iter()
        .filter(|source| !source.header.starts_with("//! "))
        .map(|source| source.path)
        .collect();
    check_none("files that do not begin with `//!`", broken);
}

#[test]
fn no_module_is_called_after_what_does_not_fit_elsewhere() {
    let broken = sources(&["src", "tests", "examples"])
        .into_iter()
        .map(|source| source.path)
        .filter(|path| path.contains("utils") || path.contains("helper"))
        .collect();
    check_none("names that say nothing", broken);
}

#[test]
fn tests_neither_sleep_nor_are_skipped() {
    check_absent(
        "a test that waits for time to pass, or never runs",
        &["sleep(", "#[ignore"],
        |_| true,
    );
}

#[test]
fn every_integration_file_is_part_of_the_binary() {
    let main = std::fs::read_to_string(root().join("tests/integration/main.rs")).unwrap();
    let broken = std::fs::read_dir(root().join("tests/integration"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "main" && !main.contains(&format!("mod {name};")))
        .collect();
    check_none("integration tests that nobody runs", broken);
}
