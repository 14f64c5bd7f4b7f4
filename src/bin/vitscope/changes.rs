//! `--set KEY=VALUE`: changes of settings, in TOML.

use anyhow::Context;

/// What a change says, as a table; dots in its key make tables in it.
pub fn parse(change: &str) -> anyhow::Result<toml::Table> {
    toml::from_str(change)
        .or_else(|_| {
            // A bare word is text.
            let quoted = change.split_once('=');
            let quoted = quoted.map(|(key, value)| format!("{key} = {value:?}"));
            toml::from_str(&quoted.unwrap_or_else(|| change.to_owned()))
        })
        .with_context(|| format!("--set takes KEY=VALUE, got {change:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_toml_or_bare_words() {
        let check = |expected: &str, change: &str| {
            let expected: toml::Table = expected.parse().unwrap();
            assert_eq!(expected, parse(change).unwrap(), "{change}");
        };
        check("steps = 2000", "steps=2000");
        check("[gradmask]\ngroups = 12", "gradmask.groups=12");
        check("[gradmask]\nweight = 'logit'", "gradmask.weight=logit");
        assert!(parse("steps").is_err());
    }
}
