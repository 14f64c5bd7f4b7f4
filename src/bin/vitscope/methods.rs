//! `vitscope methods`: the table of methods.
#![expect(
    clippy::print_stdout,
    reason = "what a command is asked for goes to standard output"
)]

use vitscope::explain::{Method, Parts};

use crate::exit::Exit;

/// What the columns mean.
const LEGEND: &str = "\
class      the map is of one class, which --target names
needs      parts that must be trained for the model
forwards   passes of the model a frame: L blocks, N patches, D channels; backward passes likewise
pace       A: a few passes, as live as the model; B: about ten; C: dozens to hundreds; D: thousands";

/// Prints the table.
pub fn run() -> anyhow::Result<Exit> {
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
    let paper = width(|method| method.entry().paper);
    println!(
        "{:name$}  class  needs        {:forwards$}  backwards  pace  {:paper$}  summary",
        "method", "forwards", "paper"
    );
    for method in Method::ALL {
        let entry = method.entry();
        // A method without its trained part cannot be built, and explains no class.
        let explainer = method.build(Parts::default()).ok();
        let class = explainer.is_some_and(|explainer| explainer.explains_classes());
        let class = if class { "yes" } else { "no" };
        let needs = method.trained_part().unwrap_or_default();
        println!(
            "{:name$}  {class:5}  {needs:11}  {:forwards$}  {:9}  {:4}  {:paper$}  {}",
            entry.name, entry.forwards, entry.backwards, entry.pace, entry.paper, entry.summary
        );
    }
    println!("\n{LEGEND}");
    Ok(Exit::Whole)
}
