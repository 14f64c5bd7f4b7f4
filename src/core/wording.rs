//! Wording of counts.

/// Formats a count with its noun, which takes an "s" unless the count is 1.
pub fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(counted(0, "frame"), "0 frames");
        assert_eq!(counted(1, "frame"), "1 frame");
        assert_eq!(counted(2, "frame"), "2 frames");
    }
}
