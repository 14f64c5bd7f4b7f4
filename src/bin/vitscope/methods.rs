//! `vitscope methods`: the table of methods, or the details of one.

use vitscope::explain::{Method, MethodOption, Parts};

use crate::exit::Exit;

/// Maximum number of columns of the table.
const WIDTH: usize = 100;

/// Explanation of the columns.
const LEGEND: &str = "\
class      whether the map explains one class, set with --target
needs      parts that must be trained for the model
forwards   forward passes per frame, for L blocks, N patches, D channels; backwards likewise
pace       A: a few passes, suited to live video; B: about ten; C: dozens to hundreds; D: thousands";

/// Options of `vitscope methods`.
#[derive(Debug, clap::Args)]
pub struct MethodsArgs {
    /// Show one method and its options.
    #[arg(value_name = "NAME")]
    name: Option<Method>,
}

/// Prints the table, or one method with its options.
pub fn run(args: &MethodsArgs) -> anyhow::Result<Exit> {
    match args.name {
        Some(method) => print_method(method),
        None => print_table(),
    }
    Ok(Exit::Whole)
}

fn print_method(method: Method) {
    let entry = method.entry();
    println!("{}", entry.name);
    for line in wrapped(&format!("{} ({})", entry.summary, entry.paper)) {
        println!("    {line}");
    }
    println!(
        "    {} forward and {} backward passes per frame, pace {}",
        entry.forwards, entry.backwards, entry.pace
    );
    if let Some(part) = method.trained_part() {
        println!("    needs {part} trained for the model");
    }
    let options = method.options();
    let Some(MethodOption { key, default, .. }) = options.first() else {
        println!("\nIt has no options.");
        return;
    };
    println!("\noptions with their defaults:");
    for option in &options {
        match option.default.as_str() {
            "" => println!("  {}", option.key),
            default => println!("  {} = {default}", option.key),
        }
        let words = match option.words.as_slice() {
            [] => String::new(),
            words => format!(" One of {}.", words.join(", ")),
        };
        for line in wrapped(&format!("{}{words}", option.help)) {
            println!("    {line}");
        }
    }
    println!(
        "\nSet one with `--set {method}.{key}={default}` or, in `vitscope eval`, `--methods {method}+{key}={default}`."
    );
}

fn print_table() {
    let width = |column: fn(Method) -> &'static str| {
        Method::ALL
            .iter()
            .map(|&method| column(method))
            .map(str::len)
            .max()
            .unwrap_or(0)
    };
    let name = width(Method::name);
    let forwards = width(|method| method.entry().forwards);
    let backwards = width(|method| method.entry().backwards);
    println!(
        "{:name$}  class  needs        {:forwards$}  {:backwards$}  pace",
        "method", "forwards", "backwards"
    );
    for method in Method::ALL {
        let entry = method.entry();
        // A method without its trained part cannot be built and explains no class.
        let explainer = method.build(Parts::default()).ok();
        let class = explainer.is_some_and(|explainer| explainer.explains_classes());
        let class = if class { "yes" } else { "no" };
        let needs = method.trained_part().unwrap_or_default();
        println!(
            "{:name$}  {class:5}  {needs:11}  {:forwards$}  {:backwards$}  {}",
            entry.name, entry.forwards, entry.backwards, entry.pace
        );
        for line in wrapped(&format!("{} ({})", entry.summary, entry.paper)) {
            println!("    {line}");
        }
    }
    println!("\n{LEGEND}\n\n`vitscope methods NAME` shows the options of a method.");
}

/// Wraps `text` into lines that fit after the indent.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if 4 + line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
