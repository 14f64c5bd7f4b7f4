//! `vitscope run`: runs a command and its options from a TOML file.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory};
use toml::{Table, Value};

use vitscope_core::error::unknown;

use crate::args::Args;
use crate::toml_file;

/// Options of `vitscope run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct RunArgs {
    /// TOML file with a command and a key per option, named as on the command line.
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    /// Options that override the file's, e.g. `--overwrite --target dog`.
    #[arg(
        value_name = "OPTION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    options: Vec<OsString>,
}

const EXAMPLE: &str = "\
Positional arguments are lowercase keys (`in`, `out`, `src`). A method may be a table with its options.
Paths are relative to the current directory. See pipelines/ for examples.

  command = \"file\"
  in = \"street.mp4\"
  out = \"street.explained.mp4\"
  target = [\"predicted\", \"dog\"]
  overwrite = true
  method = [\"chefer\", { name = \"gradmask\", groups = 12 }]";

/// Keys that are not options.
const COMMAND: &str = "command";
const METHOD: &str = "method";

/// Returns the command line that the file stands for.
///
/// # Errors
/// Fails if the file cannot be read, or if it has a key or a kind of value that its command does not know.
pub fn expand(args: &RunArgs) -> anyhow::Result<Vec<OsString>> {
    let path = &args.file;
    let table: Table = toml_file::read(path, "the run file")?;
    command_line(&table, &args.options).with_context(|| format!("{path:?}"))
}

fn command_line(table: &Table, replaced: &[OsString]) -> anyhow::Result<Vec<OsString>> {
    let (words, command) = command_of(table)?;
    if let Some(word) = argument_in(&command, replaced) {
        bail!(
            "unexpected argument {word:?}; only options may follow the run file, which names all inputs and outputs"
        );
    }
    let replaced_keys = keys_of(replaced, &command);
    let positionals: Vec<String> = command
        .get_positionals()
        .flat_map(positional_keys)
        .collect();
    let mut line = words;
    for (key, value) in table {
        if key == COMMAND || positionals.contains(key) || replaced_keys.contains(key) {
            continue;
        }
        let Some(option) = options_of(&command).find(|option| is_called(option, key)) else {
            bail!(unknown_key(key, &command, &positionals));
        };
        match (value, option.get_action()) {
            (Value::Boolean(is_on), ArgAction::SetTrue) => {
                line.extend(is_on.then(|| format!("--{key}")));
            }
            (_, ArgAction::SetTrue) => bail!("key {key:?} takes true or false, not {value}"),
            (Value::Array(methods), _) if option.get_long() == Some(METHOD) => {
                line.extend(methods_of(methods)?)
            }
            (Value::Table(_), _) if option.get_long() == Some(METHOD) => {
                line.extend(methods_of(std::slice::from_ref(value))?);
            }
            (Value::Array(values), action) => {
                let takes_many = matches!(action, ArgAction::Append);
                if !takes_many {
                    bail!("key {key:?} takes one value, not a list");
                }
                for value in values {
                    line.push(format!("--{key}={}", plain(key, value)?));
                }
            }
            (value, _) => line.push(format!("--{key}={}", plain(key, value)?)),
        }
    }
    let mut line: Vec<OsString> = line.into_iter().map(OsString::from).collect();
    line.extend_from_slice(replaced);
    line.push("--".into());
    for key in positionals {
        match table.get(&key) {
            None => {}
            Some(Value::Array(values)) => {
                for value in values {
                    line.push(plain(&key, value)?.into());
                }
            }
            Some(value) => line.push(plain(&key, value)?.into()),
        }
    }
    Ok(line)
}

/// Returns the words of the command line up to the command that the file names, and that command.
fn command_of(table: &Table) -> anyhow::Result<(Vec<String>, clap::Command)> {
    let mut command = Args::command();
    let known = |command: &clap::Command| {
        let names = command.get_subcommands().map(clap::Command::get_name);
        let names: Vec<&str> = names
            .filter(|name| !["run", "help"].contains(name))
            .collect();
        names.join(", ")
    };
    let name = match table.get(COMMAND) {
        Some(Value::String(name)) => name,
        Some(other) => bail!("key {COMMAND:?} takes the name of a command, not {other}"),
        None => bail!(
            "key {COMMAND:?} is missing, expected one of {}",
            known(&command)
        ),
    };
    let mut words = vec![command.get_name().to_owned()];
    for word in name.split_whitespace().filter(|word| *word != "run") {
        let Some(next) = command.find_subcommand(word) else {
            bail!(
                "unknown command {name:?}, expected one of {}",
                known(&command)
            );
        };
        command = next.clone();
        words.push(word.to_owned());
    }
    if words.len() == 1 {
        bail!(
            "unknown command {name:?}, expected one of {}",
            known(&command)
        );
    }
    if command.has_subcommands() {
        let names = command.get_subcommands().map(clap::Command::get_name);
        let names: Vec<String> = names.map(|part| format!("\"{name} {part}\"")).collect();
        bail!(
            "{name:?} is a group of commands, expected one of {}",
            names.join(", ")
        );
    }
    // Flattened options exist only after the command is built.
    command.build();
    Ok((words, command))
}

fn options_of(command: &clap::Command) -> impl Iterator<Item = &clap::Arg> {
    let no_options = [Some("help"), Some("version")];
    command.get_arguments().filter(move |argument| {
        !argument.is_positional() && !no_options.contains(&argument.get_long())
    })
}

fn is_called(option: &clap::Arg, key: &str) -> bool {
    let names = option.get_long_and_visible_aliases();
    names.is_some_and(|names| names.contains(&key))
}

/// Returns the keys of a positional argument: its name in the help, in lowercase.
fn positional_keys(argument: &clap::Arg) -> Vec<String> {
    let names = argument.get_value_names().unwrap_or_default();
    let words = names.iter().flat_map(|name| name.split_whitespace());
    words
        .map(|word| word.trim_end_matches('.').to_lowercase())
        .collect()
}

/// Returns the first of the `options` after `command` that is neither an option nor the value of one.
fn argument_in(command: &clap::Command, options: &[OsString]) -> Option<OsString> {
    let arguments = command.get_positionals().map(clap::Arg::get_id);
    let names: Vec<&str> = arguments.map(clap::Id::as_str).collect();
    let line = std::iter::once(OsString::new()).chain(options.iter().cloned());
    // Invalid or missing options are reported when they are read together with the file's.
    let alone = command.clone().ignore_errors(true);
    let parsed = alone.try_get_matches_from(line).ok()?;
    let typed = names
        .iter()
        .filter(|name| parsed.value_source(name) == Some(ValueSource::CommandLine));
    let mut values = typed.flat_map(|name| parsed.get_raw(name)).flatten();
    values.next().map(OsStr::to_owned)
}

/// Returns the options in `line` as keys.
fn keys_of(line: &[OsString], command: &clap::Command) -> HashSet<String> {
    let words = line.iter().filter_map(|word| word.to_str());
    words
        .filter_map(|word| {
            if let Some(long) = word.strip_prefix("--") {
                return long.split('=').next().map(str::to_owned);
            }
            let short = word.strip_prefix('-')?.chars().next()?;
            let mut options = options_of(command);
            let option = options.find(|option| option.get_short() == Some(short))?;
            option.get_long().map(str::to_owned)
        })
        .collect()
}

/// Returns options that request `methods`, each given as a name or as a table of its name and options.
fn methods_of(methods: &[Value]) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut changes = Vec::new();
    for method in methods {
        match method {
            Value::String(name) => names.push(name.clone()),
            Value::Table(table) => {
                let Some(Value::String(name)) = table.get("name") else {
                    bail!(
                        "a table in {METHOD:?} needs a name, as in {{ name = \"gradmask\", groups = 12 }}"
                    );
                };
                let options = table.iter().filter(|(key, _)| *key != "name");
                changes.extend(options.map(|(key, value)| format!("--set={name}.{key}={value}")));
                names.push(name.clone());
            }
            other => bail!("key {METHOD:?} takes names and tables, not {other}"),
        }
    }
    Ok(std::iter::once(format!("--{METHOD}={}", names.join(",")))
        .chain(changes)
        .collect())
}

/// Formats a value as it is typed.
fn plain(key: &str, value: &Value) -> anyhow::Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
            bail!("key {key:?} takes text or a number, not {value}")
        }
    })
}

fn unknown_key(key: &str, command: &clap::Command, positionals: &[String]) -> String {
    let options = options_of(command).filter_map(clap::Arg::get_long);
    let known = options.chain(positionals.iter().map(String::as_str));
    unknown("key", key, known)
}

/// Parses the command line that the file stands for; errors are reported as the file's.
///
/// # Errors
/// See [`expand`]; also fails if an option does not accept its value.
pub fn read(args: &RunArgs) -> anyhow::Result<Args> {
    let line = expand(args)?;
    let parsed = <Args as clap::Parser>::try_parse_from(line);
    parsed.map_err(|usage| wrong(&args.file, &usage))
}

/// Returns the first sentence of `usage`, with the file it refers to.
fn wrong(path: &Path, usage: &clap::Error) -> anyhow::Error {
    let text = usage.render().to_string();
    let sentence: Vec<&str> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    let sentence = sentence.join(" ");
    anyhow!("{path:?}: {}", sentence.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, replaced: &[&str]) -> anyhow::Result<String> {
        let replaced: Vec<OsString> = replaced.iter().map(OsString::from).collect();
        let line = command_line(&text.parse().unwrap(), &replaced)?;
        let words: Vec<String> = line
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        Ok(words.join(" "))
    }

    #[test]
    fn keys_are_options_and_names_are_arguments() {
        let text = "command = \"file\"\nin = \"a.mp4\"\nout = \"b.mp4\"\ntarget = [\"dog\", \"cat\"]\n\
                    every = 2\nalpha = 0.5\noverwrite = true\nquiet = false\n\
                    method = [\"chefer\", { name = \"gradmask\", groups = 12, by = \"x\" }]";
        assert_eq!(
            line(text, &[]).unwrap(),
            "vitscope file --alpha=0.5 --every=2 --method=chefer,gradmask --set=gradmask.by=\"x\" \
             --set=gradmask.groups=12 --overwrite --target=dog --target=cat -- a.mp4 b.mp4"
        );
        let several = "command = \"still\"\nin = [\"a.png\", \"b.png\"]\nout = \"folder\"";
        assert_eq!(
            line(several, &[]).unwrap(),
            "vitscope still -- a.png b.png folder"
        );
        let nested = "command = \"eval gates\"\nmodel = \"cifar10\"";
        assert_eq!(
            line(nested, &[]).unwrap(),
            "vitscope eval gates --model=cifar10 --"
        );
    }

    #[test]
    fn options_behind_the_file_replace_its_own() {
        let text = "command = \"live\"\nsrc = \"0\"\nevery = 2\nmethod = { name = \"gradmask\", groups = 2 }";
        assert_eq!(
            line(text, &["--every", "3", "--method=chefer"]).unwrap(),
            "vitscope live --every 3 --method=chefer -- 0"
        );
    }

    #[test]
    fn files_behind_the_run_are_refused() {
        let text = "command = \"file\"\nin = \"a.mp4\"\nout = \"b.mp4\"";
        for replaced in [
            &["c.mp4"][..],
            &["--every", "3", "c.mp4"],
            &["c.mp4", "--overwrite"],
        ] {
            let told = line(text, replaced).unwrap_err().to_string();
            assert!(
                told.starts_with("unexpected argument \"c.mp4\"; "),
                "{told}"
            );
        }
        line(text, &["--every", "3", "--target", "c.mp4"]).unwrap();
    }

    #[test]
    fn files_to_start_from_are_command_lines() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
        let files = std::fs::read_dir(folder).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let mut n_files = 0;
        for path in paths.filter(|path| path.extension().is_some_and(|kind| kind == "toml")) {
            n_files += 1;
            let args = RunArgs {
                file: path.clone(),
                options: Vec::new(),
            };
            if let Err(error) = read(&args) {
                panic!("{path:?}: {error:#}");
            }
        }
        assert!(n_files >= 4);
    }

    #[test]
    fn what_the_command_does_not_know_is_told() {
        let check = |text: &str, expected: &str| {
            let told = line(text, &[]).unwrap_err().to_string();
            assert!(told.starts_with(expected), "{told}");
        };
        check(
            "in = \"a\"",
            "key \"command\" is missing, expected one of file, live, still",
        );
        check(
            "command = \"fiel\"",
            "unknown command \"fiel\", expected one of file, live",
        );
        check(
            "command = [\"file\"]",
            "key \"command\" takes the name of a command, not [\"file\"]",
        );
        check(
            "command = \"models\"",
            "\"models\" is a group of commands, expected one of \"models list\", ",
        );
        check(
            "command = \"file\"\nhelp = true",
            "unknown key \"help\", expected one of every",
        );
        check(
            "command = \"run\"",
            "unknown command \"run\", expected one of file",
        );
        check(
            "command = \"file\"\ntargte = \"dog\"",
            "unknown key \"targte\"; did you mean target?",
        );
        check(
            "command = \"file\"\ncolour-of-the-sky = 1",
            "unknown key \"colour-of-the-sky\", expected one of every, start",
        );
        check(
            "command = \"file\"\noverwrite = \"yes\"",
            "key \"overwrite\" takes true or false, not \"yes\"",
        );
        check(
            "command = \"file\"\nevery = [1, 2]",
            "key \"every\" takes one value, not a list",
        );
        check(
            "command = \"file\"\nmodel = true",
            "key \"model\" takes text or a number, not true",
        );
        check(
            "command = \"file\"\nmethod = [3]",
            "key \"method\" takes names and tables, not 3",
        );
        check(
            "command = \"file\"\nmethod = [{ groups = 1 }]",
            "a table in \"method\" needs a name",
        );
    }
}
