//! Deinterlacing: one progressive frame from two fields captured one after the other.
//!
//! Each line of the second field becomes the median of itself and its neighbors, which are lines of the first field.
//! Without motion, it stays; with motion, it follows its neighbors. No combing is left. G. de Haan and E. B. Bellers,
//! "Deinterlacing: An overview", Proceedings of the IEEE 86 (9), 1998, compare this median with other filters.

/// Field that was captured first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstField {
    /// Lines 0, 2, 4, ...
    Top,
    /// Lines 1, 3, 5, ...
    Bottom,
}

/// Deinterlaces a plane of 8-bit samples whose rows are `stride` bytes apart.
pub(crate) fn deinterlace(plane: &mut [u8], stride: usize, first: FirstField) {
    for_second_field(plane, stride, first, |line, above, below| {
        for ((sample, &a), &b) in line.iter_mut().zip(above).zip(below) {
            *sample = median(*sample, a, b);
        }
    });
}

/// Like [`deinterlace`], for 16-bit little-endian samples.
pub(crate) fn deinterlace_deep(plane: &mut [u8], stride: usize, first: FirstField) {
    for_second_field(plane, stride, first, |line, above, below| {
        let (line, _) = line.as_chunks_mut();
        let neighbors = above.as_chunks().0.iter().zip(below.as_chunks().0);
        for (sample, (&a, &b)) in line.iter_mut().zip(neighbors) {
            let [a, b, own] = [a, b, *sample].map(u16::from_le_bytes);
            *sample = median(own, a, b).to_le_bytes();
        }
    });
}

/// Calls `replace` with each line of the second field and the lines above and below it.
fn for_second_field(
    plane: &mut [u8],
    stride: usize,
    first: FirstField,
    replace: impl Fn(&mut [u8], &[u8], &[u8]),
) {
    let mut lines: Vec<&mut [u8]> = plane.chunks_mut(stride.max(1)).collect();
    let second = match first {
        FirstField::Top => 1,
        FirstField::Bottom => 0,
    };
    for line_idx in (second..lines.len()).step_by(2) {
        let (before, rest) = lines.split_at_mut(line_idx);
        let Some((line, after)) = rest.split_first_mut() else {
            return;
        };
        // At the edge, the only neighbor is used twice.
        if let Some(above) = before.last().or(after.first())
            && let Some(below) = after.first().or(before.last())
        {
            replace(line, above, below);
        }
    }
}

fn median<T: Ord + Copy>(own: T, a: T, b: T) -> T {
    own.clamp(a.min(b), a.max(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comb_follows_the_first_field_and_a_slope_stays() {
        // One column: lines 10, 200, 10, 200 are a comb, lines 10, 20, 30, 30 are a slope.
        let check = |first, before: [u8; 4], after: [u8; 4]| {
            let mut plane = before;
            deinterlace(&mut plane, 1, first);
            assert_eq!(plane, after);
            let mut deep: Vec<u8> = before.iter().flat_map(|&v| [v, 1]).collect();
            deinterlace_deep(&mut deep, 2, first);
            let expected: Vec<u8> = after.iter().flat_map(|&v| [v, 1]).collect();
            assert_eq!(deep, expected);
        };
        check(FirstField::Top, [10, 200, 10, 200], [10, 10, 10, 10]);
        check(FirstField::Bottom, [10, 200, 10, 200], [200, 200, 200, 200]);
        check(FirstField::Top, [10, 20, 30, 30], [10, 20, 30, 30]);
    }

    #[test]
    fn planes_without_a_second_field_are_left_alone() {
        let mut plane = [7_u8, 9];
        deinterlace(&mut plane, 2, FirstField::Top);
        deinterlace(&mut plane, 2, FirstField::Bottom);
        assert_eq!(plane, [7, 9]);
        deinterlace(&mut [], 0, FirstField::Top);
    }
}
