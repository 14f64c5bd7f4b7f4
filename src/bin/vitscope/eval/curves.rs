//! `vitscope eval insertion-deletion` and `vitscope eval perturbation`.

use vitscope::eval::batched::BatchedModel;
use vitscope::eval::perturbation::{PATCHES, Perturbation, Protocol};

use super::suites::{self, Measured, SuiteArgs};
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct CurvesArgs {
    #[command(flatten)]
    suite: SuiteArgs,
    /// How it is measured, as the paper of that name does; several with commas.
    #[arg(long, value_name = "PROTOCOL,…", value_delimiter = ',')]
    protocol: Vec<String>,
}

/// Measures by the protocols that are asked for, or by the usual ones.
pub(super) fn run(
    args: &CurvesArgs,
    name: &'static str,
    known: &[Protocol],
) -> anyhow::Result<Exit> {
    let protocols = protocols(&args.protocol, known)?;
    let (model, data) = suites::open(&args.suite)?;
    let names: Vec<&str> = protocols.iter().map(|protocol| protocol.name).collect();
    let options = format!(" --protocol {}", names.join(","));
    let geometry = BatchedModel::of(&model, 1).geometry;
    let measured = Measured {
        name,
        suite: Box::new(Perturbation {
            protocols,
            geometry,
        }),
        options,
    };
    suites::run(&args.suite, &model, &*data, &measured)
}

fn protocols(asked: &[String], known: &[Protocol]) -> anyhow::Result<Vec<Protocol>> {
    if asked.is_empty() {
        // Patch by patch where there is that, for it is the cheapest and has no ties.
        let usual = known.iter().find(|known| known.name == PATCHES.name);
        return Ok(usual.map_or_else(|| known.to_vec(), |usual| vec![*usual]));
    }
    let asked = asked.iter().map(|name| Protocol::named(name, known));
    Ok(asked.collect::<vitscope::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope::eval::perturbation::INSERTION_DELETION;

    #[test]
    fn protocols_are_found_by_name_and_patches_are_the_usual_one() {
        let names = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
            let found = protocols(&asked, &INSERTION_DELETION);
            found.map(|found| found.iter().map(|known| known.name).collect::<Vec<_>>())
        };
        assert_eq!(vec!["patches"], names(&[]).unwrap());
        assert_eq!(vec!["tis", "rise"], names(&["tis", "rise"]).unwrap());
        let error = names(&["chefer"]).unwrap_err().to_string();
        assert!(
            error.starts_with("unknown protocol \"chefer\", known are rise"),
            "{error}"
        );
    }
}
