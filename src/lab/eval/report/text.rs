//! Names and numbers as HTML.

/// Placeholder for a number that is not finite.
pub(super) const DASH: &str = "–";

/// Returns the number of decimals that show at least three digits of the largest number.
pub(super) fn decimals(numbers: impl Iterator<Item = f64>) -> usize {
    let sizes = numbers.filter(|number| number.is_finite()).map(f64::abs);
    match sizes.fold(0.0, f64::max) {
        size if size > 0.0 => {
            let magnitude = size.log10().floor() as i32;
            let n_decimals = if magnitude < 0 {
                2 - magnitude
            } else {
                3 - magnitude
            };
            n_decimals.clamp(0, 9) as usize
        }
        _ => 3,
    }
}

/// Formats a number, with a dash if it is not finite.
pub(super) fn number(value: f64, n_decimals: usize) -> String {
    if !value.is_finite() {
        return DASH.into();
    }
    let text = format!("{value:.n_decimals$}");
    match text.strip_prefix('-') {
        Some(size) if size.contains(|digit| ('1'..='9').contains(&digit)) => format!("−{size}"),
        Some(zero) => zero.to_owned(),
        None => text,
    }
}

/// Returns the name of a row, in parentheses for a control.
pub(super) fn shown_name(name: &str, is_control: bool) -> String {
    let name = escaped(name);
    if is_control {
        format!("({name})")
    } else {
        name
    }
}

pub(super) fn arrow(higher_is_better: Option<bool>) -> &'static str {
    match higher_is_better {
        Some(true) => " <abbr title=\"higher is better\">↑</abbr>",
        Some(false) => " <abbr title=\"lower is better\">↓</abbr>",
        None => "",
    }
}

/// Opens a region that scrolls horizontally, also by keyboard.
pub(super) fn opened_region(name: &str) -> String {
    let name = escaped(name);
    format!("<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{name}\">\n")
}

/// Escapes text for HTML.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_three_digits_of_the_greatest() {
        let shown = |values: &[f64]| -> Vec<String> {
            let n_decimals = decimals(values.iter().copied());
            values
                .iter()
                .map(|&value| number(value, n_decimals))
                .collect()
        };
        assert_eq!(shown(&[0.1234, -0.98765]), ["0.123", "−0.988"]);
        assert_eq!(shown(&[12.3456, 0.5]), ["12.35", "0.50"]);
        assert_eq!(shown(&[0.001_234]), ["0.00123"]);
        assert_eq!(shown(&[12345.6, -0.2]), ["12346", "0"]);
        assert_eq!(shown(&[f64::NAN, 0.0]), ["–", "0.000"]);
    }

    #[test]
    fn names_cannot_end_what_they_are_in() {
        assert_eq!(escaped("<b a='\"'>&"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
        assert_eq!(shown_name("a<b", true), "(a&lt;b)");
    }
}
