//! `vitscope methods`: the table of methods.

use vitscope::explain::{Method, Parts};

use crate::exit::Exit;

/// Columns that the table takes at most.
const WIDTH: usize = 100;

/// What the columns mean.
const LEGEND: &str = "\
class      the map is of one class, which --target names
needs      parts that must be trained for the model
forwards   passes of the model per frame: L blocks, N patches, D channels; backward passes likewise
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
    let backwards = width(|method| method.entry().backwards);
    println!(
        "{:name$}  class  needs        {:forwards$}  {:backwards$}  pace",
        "method", "forwards", "backwards"
    );
    for method in Method::ALL {
        let entry = method.entry();
        // A method without its trained part cannot be built, and explains no class.
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
    println!("\n{LEGEND}");
    Ok(Exit::Whole)
}

/// The words of `text` in lines that fit behind the indent.
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
