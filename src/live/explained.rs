//! The explanation event that the page receives.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gstreamer as gst;
use serde::Serialize;

use vitscope_video::pipeline::stages::{Class, Finding, Map};
use vitscope_video::sidecar;

/// An explanation as the page's `explained` event.
#[derive(Debug, Serialize)]
pub(super) struct Explained {
    /// Timestamp of the frame in seconds.
    t: f64,
    seq: u64,
    classes: Vec<sidecar::Class>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_sure: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unfamiliar: Option<bool>,
    maps: Vec<ExplainedMap>,
    /// Rows and columns of the patch grid.
    grid: (usize, usize),
    /// Position of the grid in the frame: left, top, width and height, as fractions of the frame size.
    region: [f64; 4],
    votes: Option<Votes>,
}

#[derive(Debug, Serialize)]
struct ExplainedMap {
    method: &'static str,
    target: Option<sidecar::Class>,
    kept: Option<f32>,
}

#[derive(Debug, Serialize)]
struct Votes {
    gates: usize,
    /// Base64 of one byte per patch, gate by gate, row by row; 255 certainly keeps the patch.
    keep: String,
}

impl Explained {
    pub(super) fn new(finding: &Finding, time: gst::ClockTime) -> Self {
        let votes = finding.maps.iter().find_map(|map| map.votes.as_deref());
        Self {
            t: time.nseconds() as f64 / 1e9,
            seq: finding.seq,
            classes: finding.likeliest.iter().map(Class::record).collect(),
            not_sure: finding.not_sure(),
            unfamiliar: finding.unfamiliar(),
            maps: finding.maps.iter().map(map).collect(),
            grid: finding.grid,
            region: region(finding),
            votes: votes.map(|votes| Votes {
                gates: votes.len(),
                keep: STANDARD.encode(bytes(votes)),
            }),
        }
    }

    /// Returns the event as JSON on one line.
    pub(super) fn json(&self) -> String {
        // Serializing plain data cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn map(map: &Map) -> ExplainedMap {
    ExplainedMap {
        method: map.method,
        target: map.target.as_ref().map(Class::record),
        kept: map.kept().map(sidecar::rounded),
    }
}

fn bytes(votes: &[Vec<f32>]) -> Vec<u8> {
    let all = votes.iter().flatten();
    all.map(|keep| (keep.clamp(0.0, 1.0) * 255.0).round() as u8)
        .collect()
}

/// Returns the position of the patch grid in the frame.
fn region(finding: &Finding) -> [f64; 4] {
    let (frame, region) = (finding.placement.frame, finding.placement.region);
    let (width, height) = (frame.width_px.max(1) as f64, frame.height_px.max(1) as f64);
    [
        region.left / width,
        region.top / height,
        region.width / width,
        region.height / height,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitscope_core::frame::FrameSize;
    use vitscope_core::frame::placement::{Placement, ResizeRule};
    use vitscope_core::vit::Link;
    use vitscope_video::overlay::Range;
    use vitscope_video::pipeline::stages::Certainty;

    fn finding() -> Finding {
        let size = FrameSize {
            width_px: 16,
            height_px: 16,
        };
        let map = Map {
            method: "diffmask",
            range: Range::Unit,
            attribution: vec![0.25, 0.75],
            votes: Some(vec![vec![0.5, 1.0], vec![0.5, 0.75]]),
            unsmoothed: None,
            target: None,
            against: None,
        };
        Finding {
            seq: 3,
            grid: (1, 2),
            placement: Placement::new(&ResizeRule::Stretch(size), size).unwrap(),
            likeliest: vec![Class {
                index: 1,
                label: Some("cat".into()),
                probability: 0.5,
            }],
            link: Link::Softmax,
            certainty: Some(Certainty::Unfamiliar),
            maps: vec![map],
        }
    }

    #[test]
    fn an_explanation_is_a_line_of_json_with_votes_as_bytes() {
        let json = Explained::new(&finding(), gst::ClockTime::from_mseconds(1500)).json();
        let expected = r#"{"t":1.5,"seq":3,"classes":[{"index":1,"label":"cat","probability":0.5}],"not_sure":true,"unfamiliar":true,"#;
        assert!(json.starts_with(expected), "{json}");
        assert!(json.contains(r#""region":[0.0,0.0,1.0,1.0]"#), "{json}");
        let keep = STANDARD.encode([128, 255, 128, 191]);
        assert!(
            json.contains(&format!(r#""votes":{{"gates":2,"keep":"{keep}"}}"#)),
            "{json}"
        );
    }
}
