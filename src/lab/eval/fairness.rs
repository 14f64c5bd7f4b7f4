//! Fairness of a classifier toward two groups.
//!
//! One class of the model is the favorable prediction; each image belongs to one of two groups.
//!
//! | measure | compared quantity | zero means |
//! |---|---|---|
//! | accuracy gap | accuracy of each group | equally accurate for both |
//! | demographic parity (Dwork et al., 2012) | P(prediction = favorable) | equally favorable for both |
//! | equalized odds (Hardt et al., arXiv:1610.02413) | P(favorable \| class), for either class | equal rates for both |
//!
//! **Deviations** from the code of IA-ViT's authors: theirs swaps prediction and label, so its true positive rate is
//! actually a precision, and it drops the last batch.

use super::classification::answers;
use crate::data::Grouped;
use vitscope_core::error::{Error, Result};
use vitscope_core::vit::Vit;

/// An image that was classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Whether the image belongs to the second group.
    pub in_group: bool,
    /// Whether the true class is the favorable one.
    pub is_favorable: bool,
    /// Whether the model predicts the favorable class.
    pub answered_favorable: bool,
}

/// Rates of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Number of images in the group.
    pub pictures: usize,
    /// Share of correct predictions.
    pub accuracy: f64,
    /// Share of favorable predictions.
    pub favorable: f64,
    /// Share of favorable predictions among images of the favorable class.
    pub true_positive: f64,
    /// Share of favorable predictions among the other images.
    pub false_positive: f64,
}

impl Group {
    /// Mean accuracy over the two classes.
    pub fn balanced_accuracy(&self) -> f64 {
        (self.true_positive + 1.0 - self.false_positive) / 2.0
    }
}

/// Comparison of two groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fairness {
    /// Group without the attribute, then group with it.
    pub groups: [Group; 2],
}

impl Fairness {
    /// Evaluates all `cases`.
    ///
    /// # Errors
    /// [`Error::Data`] if a group has no images of either class, because its rates would be undefined.
    pub fn of(cases: &[Case]) -> Result<Self> {
        Ok(Self {
            groups: [group(cases, false)?, group(cases, true)?],
        })
    }

    /// Difference between the groups' accuracies.
    pub fn accuracy_gap(&self) -> f64 {
        self.gap(|group| group.accuracy)
    }

    /// Difference between the groups' shares of favorable predictions.
    pub fn demographic_parity(&self) -> f64 {
        self.gap(|group| group.favorable)
    }

    /// Mean of the differences between the groups' true and false positive rates.
    pub fn equalized_odds(&self) -> f64 {
        (self.gap(|group| group.true_positive) + self.gap(|group| group.false_positive)) / 2.0
    }

    fn gap(&self, value: impl Fn(&Group) -> f64) -> f64 {
        let [first, second] = &self.groups;
        (value(first) - value(second)).abs()
    }
}

/// Classifies all images. `favorable` is a class of the data, and `classes` maps each class of the data to a class of
/// the model.
///
/// # Errors
/// Fails if the images do not fit the model, or it has no classifier.
pub fn cases(
    vit: &Vit,
    data: &dyn Grouped,
    favorable: usize,
    classes: &[usize],
    normalization: ([f32; 3], [f32; 3]),
    batch: usize,
) -> Result<Vec<Case>> {
    let Some(&answer) = classes.get(favorable) else {
        return Err(Error::Config(format!("the data have no class {favorable}")));
    };
    let answers = answers(vit, data, normalization, batch)?;
    let cases = answers.into_iter().filter_map(|(index, answered)| {
        Some(Case {
            in_group: data.in_group(index)?,
            is_favorable: data.label(index)? == favorable,
            answered_favorable: answered == answer,
        })
    });
    Ok(cases.collect())
}

fn group(cases: &[Case], in_group: bool) -> Result<Group> {
    let of_group: Vec<&Case> = cases
        .iter()
        .filter(|case| case.in_group == in_group)
        .collect();
    let share = |of: &dyn Fn(&Case) -> bool, holds: &dyn Fn(&Case) -> bool| {
        let among: Vec<bool> = of_group
            .iter()
            .filter(|case| of(case))
            .map(|case| holds(case))
            .collect();
        if among.is_empty() {
            return Err(Error::Data(format!(
                "the group {} the attribute lacks pictures of one class",
                if in_group { "with" } else { "without" }
            )));
        }
        let n_true = among.iter().filter(|holds| **holds).count();
        Ok(n_true as f64 / among.len() as f64)
    };
    let answered = |case: &Case| case.answered_favorable;
    Ok(Group {
        pictures: of_group.len(),
        accuracy: share(&|_| true, &|case| {
            case.answered_favorable == case.is_favorable
        })?,
        favorable: share(&|_| true, &answered)?,
        true_positive: share(&|case| case.is_favorable, &answered)?,
        false_positive: share(&|case| !case.is_favorable, &answered)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns this number of identical cases.
    fn cases(n: usize, in_group: bool, is_favorable: bool, answered_favorable: bool) -> Vec<Case> {
        vec![
            Case {
                in_group,
                is_favorable,
                answered_favorable,
            };
            n
        ]
    }

    /// Counted by hand: 8 of 10 and 1 of 10 favorable in the first group, 5 of 10 and 4 of 20 in the second.
    #[test]
    fn gaps_are_those_counted_by_hand() {
        let all = [
            cases(8, false, true, true),
            cases(2, false, true, false),
            cases(1, false, false, true),
            cases(9, false, false, false),
            cases(5, true, true, true),
            cases(5, true, true, false),
            cases(4, true, false, true),
            cases(16, true, false, false),
        ]
        .concat();
        let found = Fairness::of(&all).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let [first, second] = found.groups;
        assert_eq!((first.pictures, second.pictures), (20, 30));
        assert!(near(first.accuracy, 0.85) && near(second.accuracy, 0.7));
        assert!(near(found.accuracy_gap(), 0.15));
        assert!(near(found.demographic_parity(), 0.45 - 0.3));
        assert!(near(found.equalized_odds(), (0.3 + 0.1) / 2.0));
        assert!(near(second.balanced_accuracy(), (0.5 + 0.8) / 2.0));
    }

    #[test]
    fn a_perfect_classifier_has_equal_odds_but_not_parity_where_classes_are_unequal() {
        let all = [
            cases(9, false, true, true),
            cases(1, false, false, false),
            cases(1, true, true, true),
            cases(9, true, false, false),
        ]
        .concat();
        let found = Fairness::of(&all).unwrap();
        assert_eq!((found.accuracy_gap(), found.equalized_odds()), (0.0, 0.0));
        assert!((found.demographic_parity() - 0.8).abs() < 1e-12);
    }

    #[test]
    fn a_group_without_one_of_the_classes_is_refused() {
        let all = [cases(3, false, true, true), cases(3, true, true, true)].concat();
        assert!(Fairness::of(&all).is_err());
    }
}
