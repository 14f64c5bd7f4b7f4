//! `vitscope eval insertion-deletion` and `vitscope eval perturbation`.

use anyhow::anyhow;
use vitscope::eval::perturbation::{
    INSERTION_DELETION, PATCHES, PERTURBATION, Perturbation, Protocol,
};
use vitscope::eval::suite::{SoftMask, Suite};
use vitscope::models::Model;
use vitscope_lab::eval::batched::BatchedModel;

use super::gates_of;
use super::suites::{self, Measured, SuiteArgs};
use crate::exit::Exit;

/// The protocol that masks embeddings instead of the picture.
const SOFT_MASK: &str = "soft-mask";

#[derive(Debug, clap::Args)]
pub(super) struct InsertionDeletionArgs {
    #[command(flatten)]
    suite: SuiteArgs,
    /// Protocols, comma-separated: rise, tis, ia-vit and gradmask follow the papers of those names; patches changes one
    /// patch at a time.
    #[arg(long, value_name = "PROTOCOL,…", value_delimiter = ',', default_value = PATCHES.name)]
    protocol: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct PerturbationArgs {
    #[command(flatten)]
    suite: SuiteArgs,
    /// Protocols, comma-separated: chefer and diffmask follow the papers of those names; soft-mask is the second
    /// routine in the Vision DiffMask code.
    #[arg(
        long,
        value_name = "PROTOCOL,…",
        value_delimiter = ',',
        default_value = "chefer,diffmask"
    )]
    protocol: Vec<String>,
}

pub(super) fn run_insertion_deletion(args: &InsertionDeletionArgs) -> anyhow::Result<Exit> {
    let protocols = protocols(&args.protocol, &INSERTION_DELETION)?;
    run(&args.suite, "insertion-deletion", protocols, &args.protocol)
}

pub(super) fn run_perturbation(args: &PerturbationArgs) -> anyhow::Result<Exit> {
    let on_pictures = args.protocol.iter().filter(|name| *name != SOFT_MASK);
    let on_pictures: Vec<String> = on_pictures.cloned().collect();
    let protocols = protocols(&on_pictures, &PERTURBATION);
    let protocols = protocols.map_err(|error| anyhow!("{error}, {SOFT_MASK}"))?;
    run(&args.suite, "perturbation", protocols, &args.protocol)
}

fn protocols(asked: &[String], known: &[Protocol]) -> vitscope::Result<Vec<Protocol>> {
    let asked = asked.iter().map(|name| Protocol::named(name, known));
    asked.collect()
}

fn run(
    args: &SuiteArgs,
    name: &'static str,
    protocols: Vec<Protocol>,
    asked: &[String],
) -> anyhow::Result<Exit> {
    let (model, data) = suites::open(args)?;
    let mut all: Vec<Box<dyn Suite>> = Vec::new();
    if !protocols.is_empty() {
        let geometry = BatchedModel::of(&model, 1).geometry;
        all.push(Box::new(Perturbation {
            protocols,
            geometry,
        }));
    }
    if asked.iter().any(|name| name == SOFT_MASK) {
        all.push(Box::new(soft_mask(&model, &args.compared.asked.model)?));
    }
    let measured = Measured {
        name,
        suite: Box::new(all),
        options: format!(" --protocol {}", asked.join(",")),
    };
    suites::run(args, &model, &*data, &measured)
}

fn soft_mask(model: &Model, name: &str) -> anyhow::Result<SoftMask> {
    let removal = gates_of(model, name)?.removal().detach();
    Ok(SoftMask { removal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_found_by_name() {
        let names = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
            let found = protocols(&asked, &INSERTION_DELETION);
            found.map(|found| found.iter().map(|known| known.name).collect::<Vec<_>>())
        };
        assert_eq!(vec!["tis", "rise"], names(&["tis", "rise"]).unwrap());
        let error = names(&["chefer"]).unwrap_err().to_string();
        assert!(
            error.starts_with("unknown protocol \"chefer\", expected one of rise"),
            "{error}"
        );
    }
}
