//! Explanations that change slowly within a scene.

use std::sync::Arc;

use vitscope_core::frame::scene::Thumbnail;
use vitscope_video::pipeline::stages::{Finding, Map};

/// A moving average of a stream's explanations.
#[derive(Default)]
pub(super) struct Smoothing {
    last: Option<(Arc<Finding>, Thumbnail)>,
}

impl Smoothing {
    /// Returns the next explanation, blended with `share` of the previous one.
    pub(super) fn next(
        &mut self,
        finding: Arc<Finding>,
        thumbnail: Thumbnail,
        share: f32,
    ) -> Arc<Finding> {
        let before = self.last.take().filter(|(before, picture)| {
            share > 0.0
                && !thumbnail.is_of_another_scene(picture)
                && before.grid == finding.grid
                && before.maps.len() == finding.maps.len()
        });
        let finding = match before {
            Some((before, _)) => Arc::new(mixed(&before, &finding, share)),
            None => finding,
        };
        self.last = Some((Arc::clone(&finding), thumbnail));
        finding
    }

    /// Forgets the previous explanation, because another stream begins.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }
}

fn mixed(before: &Finding, now: &Finding, share: f32) -> Finding {
    let maps = before.maps.iter().zip(&now.maps);
    Finding {
        seq: now.seq,
        grid: now.grid,
        placement: now.placement,
        likeliest: now.likeliest.clone(),
        link: now.link,
        certainty: now.certainty,
        maps: maps
            .map(|(before, now)| Map {
                attribution: (before.attribution.iter().zip(&now.attribution))
                    .map(|(before, now)| share * before + (1.0 - share) * now)
                    .collect(),
                ..now.clone()
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope_core::frame::FrameSize;
    use vitscope_core::frame::placement::{Placement, ResizeRule};
    use vitscope_core::vit::Link;
    use vitscope_video::overlay::Range;

    fn placement() -> Placement {
        let size = FrameSize {
            width_px: 16,
            height_px: 16,
        };
        Placement::new(&ResizeRule::Stretch(size), size).unwrap()
    }

    fn finding(score: f32) -> Arc<Finding> {
        Arc::new(Finding {
            seq: 0,
            grid: (1, 1),
            placement: placement(),
            likeliest: Vec::new(),
            link: Link::Softmax,
            certainty: None,
            maps: vec![Map {
                method: "rollout",
                range: Range::Unit,
                attribution: vec![score],
                votes: None,
                unsmoothed: None,
                target: None,
                against: None,
            }],
        })
    }

    fn picture(value: u8) -> Thumbnail {
        Thumbnail::of_rgb(&[value; 16 * 16 * 3], 16)
    }

    #[test]
    fn an_explanation_moves_slowly_until_the_scene_changes() {
        let mut smoothing = Smoothing::default();
        let mut next = |score, value| {
            let shown = smoothing.next(finding(score), picture(value), 0.75);
            shown.maps[0].attribution[0]
        };
        assert_eq!(next(0.0, 100), 0.0);
        assert_eq!(next(1.0, 101), 0.25);
        assert_eq!(next(1.0, 110), 0.4375);
        assert_eq!(next(0.5, 200), 0.5, "another scene");
    }

    #[test]
    fn without_a_share_each_explanation_is_its_own() {
        let mut smoothing = Smoothing::default();
        for score in [0.0, 1.0, 0.25] {
            let shown = smoothing.next(finding(score), picture(9), 0.0);
            assert_eq!(shown.maps[0].attribution[0], score);
        }
    }
}
