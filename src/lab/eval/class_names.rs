//! Matches the classes of the data to the classes of a model by name.
//!
//! Only letters and digits count: case is ignored, and any separators count as one space, so a folder `cup_of_coffee`
//! holds images of "Cup of coffee". If a label lists synonyms, as ImageNet's do (`"tabby, tabby cat"`), each of them is
//! a name. A model may know further names, its `label_aliases`.

use std::collections::BTreeMap;

use vitscope_core::error::{Error, Result};

/// Maximum number of names listed in a message.
const MAX_LISTED: usize = 12;

/// Returns for each class of the data the class of the model with the same name, or else the one that an alias names;
/// `None` if the model knows neither. Aliases for labels that the model lacks are ignored.
///
/// # Errors
/// [`Error::Model`] if the model has no classes; [`Error::Data`] if it knows none of the data's classes, or several by
/// one name.
pub fn matched_classes(
    labels: &[String],
    aliases: &BTreeMap<String, String>,
    classes: &[String],
) -> Result<Vec<Option<usize>>> {
    if labels.is_empty() {
        return Err(Error::Model(
            "model has no classifier, so it names no classes".into(),
        ));
    }
    let matched = searched(labels, aliases, classes)
        .into_iter()
        .collect::<Result<Vec<Option<usize>>>>()?;
    if matched.iter().all(Option::is_none) {
        return Err(Error::Data(format!(
            "the model knows none of the data's {} classes: the data have {}; the model has {}",
            classes.len(),
            listed(classes),
            listed(labels)
        )));
    }
    Ok(matched)
}

/// Returns for each class of the data the class of the model with the same name, like [`matched_classes`], but `None`
/// if several have that name. If the model knows none of the names and has the same number of classes, such as a model
/// with numbered classes, classes are matched by position.
pub fn meant_classes(
    labels: &[String],
    aliases: &BTreeMap<String, String>,
    classes: &[String],
) -> Vec<Option<usize>> {
    let found = searched(labels, aliases, classes);
    let knows_none = found.iter().all(|found| matches!(found, Ok(None)));
    if knows_none && labels.len() == classes.len() {
        return (0..classes.len()).map(Some).collect();
    }
    let found = found.into_iter();
    found.map(|found| found.ok().flatten()).collect()
}

/// Like [`matched_classes`], but requires the model to know all classes.
///
/// # Errors
/// [`Error::Data`] naming the first class that the model does not know; otherwise as for [`matched_classes`].
pub fn classes_by_name(labels: &[String], classes: &[String]) -> Result<Vec<usize>> {
    let matched = matched_classes(labels, &BTreeMap::new(), classes)?;
    let matched = matched.into_iter().zip(classes);
    matched
        .map(|(index, class)| {
            index.ok_or_else(|| {
                Error::Data(format!(
                    "the data have a class {class:?} that the model does not have"
                ))
            })
        })
        .collect()
}

/// Looks up each class of the data: [`Error::Data`] if several labels have its name.
fn searched(
    labels: &[String],
    aliases: &BTreeMap<String, String>,
    classes: &[String],
) -> Vec<Result<Option<usize>>> {
    let labels_and_words: Vec<(&str, String)> = labels
        .iter()
        .map(|label| (label.as_str(), words(label)))
        .collect();
    let find = |class: &String| match find(&labels_and_words, class)? {
        Some(index) => Ok(Some(index)),
        None => {
            let alias = aliases
                .iter()
                .find(|(alias, _)| words(alias) == words(class));
            alias.map_or(Ok(None), |(_, label)| self::find(&labels_and_words, label))
        }
    };
    classes.iter().map(find).collect()
}

/// Lists the first names, followed by an ellipsis if there are more.
pub fn listed<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_LISTED).map(T::as_ref).collect();
    let more = if names.len() > MAX_LISTED {
        ", …"
    } else {
        ""
    };
    shown.join(", ") + more
}

/// Returns the label with this name, or else the one that has it as a synonym.
fn find(labels: &[(&str, String)], name: &str) -> Result<Option<usize>> {
    let name = words(name);
    let having = |has: &dyn Fn(&(&str, String)) -> bool| -> Vec<usize> {
        let indices = 0..labels.len();
        indices.filter(|&index| has(&labels[index])).collect()
    };
    let mut found = having(&|(_, known)| *known == name);
    if found.is_empty() {
        found = having(&|(label, _)| label.split(',').any(|synonym| words(synonym) == name));
    }
    match found[..] {
        [] => Ok(None),
        [index] => Ok(Some(index)),
        _ => Err(Error::Data(format!(
            "the model's classes {found:?} are all called {name:?}"
        ))),
    }
}

/// Returns letters and digits in lower case, with one space between words; the whole name if it has none.
fn words(name: &str) -> String {
    let name = name.to_lowercase();
    let words = name.split(|letter: char| !letter.is_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    match words.is_empty() {
        true => name,
        false => words.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn matched(labels: &[&str], classes: &[&str]) -> Result<Vec<Option<usize>>> {
        let aliases = [("Face", "person"), ("ferry", "boat"), ("tug", "ship")];
        let aliases = aliases.map(|(alias, label)| (alias.to_owned(), label.to_owned()));
        matched_classes(&names(labels), &aliases.into(), &names(classes))
    }

    #[test]
    fn labels_mean_classes_by_name_or_else_by_position() {
        let meant = |labels: &[&str], classes: &[&str]| {
            meant_classes(&names(labels), &BTreeMap::new(), &names(classes))
        };
        assert_eq!(
            meant(&["cat", "dog", "truck"], &["dog", "truck"]),
            [Some(1), Some(2)]
        );
        assert_eq!(meant(&["cat", "dog"], &["dog", "owl"]), [Some(1), None]);
        let numbered = ["LABEL_0", "LABEL_1"];
        assert_eq!(meant(&numbered, &["cat", "dog"]), [Some(0), Some(1)]);
        assert_eq!(meant(&numbered, &["cat", "dog", "owl"]), [None; 3]);
        assert_eq!(meant(&[], &["cat"]), [None]);
        // Two labels with the same name are ambiguous, and matching by position does not apply.
        assert_eq!(meant(&["crane", "crane"], &["crane", "owl"]), [None; 2]);
    }

    #[test]
    fn names_meet_whatever_their_case_and_what_stands_between_words() {
        let labels = [
            "T-shirt",
            "cup of coffee",
            "potter's wheel",
            "tabby, tabby cat",
        ];
        let classes = [
            "Cup_of-Coffee",
            "potter_s_wheel",
            "t shirt",
            "tabby_cat",
            "cup",
        ];
        let found = matched(&labels, &classes).unwrap();
        assert_eq!(found, [Some(1), Some(2), Some(0), Some(3), None]);
    }

    #[test]
    fn an_alias_counts_only_where_no_label_has_the_name_and_its_own_label_exists() {
        let found = matched(&["boat", "person"], &["face", "FERRY", "tug", "boat"]).unwrap();
        assert_eq!(found, [Some(1), Some(0), None, Some(0)]);
        let found = matched(&["+", "-"], &["-", "+"]).unwrap();
        assert_eq!(found, [Some(1), Some(0)]);
        let found = matched(&["face", "person"], &["face"]).unwrap();
        assert_eq!(found, [Some(0)]);
    }

    #[test]
    fn what_cannot_be_matched_is_told_with_the_names() {
        let refused = |labels: &[&str], classes: &[&str]| {
            let refused = matched(labels, classes);
            refused.unwrap_err().to_string()
        };
        let text = refused(&["cat", "dog"], &["bed", "book"]);
        assert!(
            text.contains(
                "none of the data's 2 classes: the data have bed, book; the model has cat, dog"
            ),
            "{text}"
        );
        let text = refused(&["crane", "egret", "Crane"], &["egret", "crane"]);
        assert!(text.contains("[0, 2] are all called \"crane\""), "{text}");
        assert!(refused(&[], &["cat"]).contains("no classifier"));
        let text = classes_by_name(&names(&["cat"]), &names(&["cat", "emu"])).unwrap_err();
        assert!(text.to_string().contains("\"emu\""));
    }

    #[test]
    fn long_lists_end_early() {
        let many: Vec<String> = (0..13).map(|number| number.to_string()).collect();
        assert_eq!(listed(&many[..12]), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11");
        assert!(listed(&many).ends_with("10, 11, …"));
    }
}
