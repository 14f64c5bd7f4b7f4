//! Changes of settings as text: `KEY=VALUE`, where the value is TOML or a bare word.

use crate::error::{Error, Result};

/// Parses a change into a table; dots in the key create nested tables.
///
/// # Errors
/// [`Error::Config`] if the key or the value is missing.
pub fn parse(change: &str) -> Result<toml::Table> {
    let table = toml::from_str(change).or_else(|_| {
        // A bare word is a string.
        let quoted = change.split_once('=');
        let quoted = quoted.map(|(key, value)| format!("{key} = {:?}", value.trim()));
        toml::from_str(&quoted.unwrap_or_else(|| change.to_owned()))
    });
    table.map_err(|_| Error::Config(format!("expected KEY=VALUE, got {change:?}")))
}

/// Parses several changes separated by commas; a later change overrides an earlier one of the same key.
///
/// # Errors
/// As [`parse`].
pub fn parse_list(changes: &str) -> Result<toml::Table> {
    // TOML values may contain commas.
    if let Ok(table) = toml::from_str::<toml::Table>(&format!("list = {{ {changes} }}"))
        && let Some(toml::Value::Table(table)) = table.into_iter().next().map(|(_, list)| list)
    {
        return Ok(table);
    }
    let mut table = toml::Table::new();
    for change in changes
        .split(',')
        .filter(|change| !change.trim().is_empty())
    {
        table.extend(parse(change)?);
    }
    Ok(table)
}

/// Sets `values` among the options of `method`, in a table of options by method.
pub fn set_options(options: &mut toml::Table, method: &str, values: toml::Table) {
    let own = options
        .entry(method)
        .or_insert_with(|| toml::Table::new().into());
    if let toml::Value::Table(own) = own {
        own.extend(values);
    }
}

/// Describes a value with the wrong type in one line, without the names of Rust types.
pub fn in_words(error: &impl std::fmt::Display) -> String {
    const WORDS: [(&str, &str); 7] = [
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected i64", "expected a whole number"),
        ("expected f32", "expected a number"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
    ];
    let reason = error.to_string().trim().replace('\n', " ");
    WORDS
        .iter()
        .fold(reason, |reason, (rust, words)| reason.replace(rust, words))
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

    #[test]
    fn a_value_of_another_type_is_told_in_words() {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only the failure to read it is looked at")]
        struct Options {
            groups: usize,
        }
        let error = toml::from_str::<Options>("groups = 'x'").unwrap_err();
        let told = in_words(&error);
        assert!(told.contains("expected a whole number"), "{told}");
        assert!(!told.contains("usize") && !told.contains('\n'), "{told}");
    }

    #[test]
    fn a_list_has_commas_between_its_changes() {
        let check = |expected: &str, changes: &str| {
            let expected: toml::Table = expected.parse().unwrap();
            assert_eq!(expected, parse_list(changes).unwrap(), "{changes}");
        };
        check("", "");
        check("groups = 12\nweight = 'logit'", "groups=12, weight=logit");
        check("blocks = [1, 2]\nn = 3", "blocks = [1, 2], n = 3");
        check("n = 4", "n=3,n=4");
        assert!(parse_list("n=3,four").is_err());
    }
}
