//! Where live video comes from, as a user names it.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use url::Url;

/// What stands for a password wherever an address is shown.
const HIDDEN: &str = "***";

/// A source of live video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The camera at this index of the list of [`cameras`](super::cameras).
    Index(usize),
    /// The camera at this path.
    Path(PathBuf),
    /// The first camera whose name contains this, in letters of any size.
    Name(String),
    /// A network stream: RTSP, or MJPEG, HLS or a file over HTTP.
    Url(Url),
    /// The screen.
    Screen,
    /// A pattern of GStreamer's `videotestsrc`.
    Test(String),
}

impl FromStr for Address {
    type Err = Infallible;

    /// Never fails: what looks like nothing else is a camera's name.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        if let Ok(index) = text.parse() {
            return Ok(Self::Index(index));
        }
        if text == "screen" {
            return Ok(Self::Screen);
        }
        if let Some(pattern) = text.strip_prefix("test:") {
            let pattern = if pattern.is_empty() { "smpte" } else { pattern };
            return Ok(Self::Test(pattern.to_owned()));
        }
        if text.starts_with('/') {
            return Ok(Self::Path(text.into()));
        }
        // A name may have a colon in it, an address of the network has slashes behind it.
        match Url::parse(text) {
            Ok(url) if text.contains("://") => Ok(Self::Url(url)),
            _ => Ok(Self::Name(text.to_owned())),
        }
    }
}

impl Address {
    /// True where the video comes over a network, and may come back when it is gone.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Url(_))
    }

    /// `text` without this address's password, in case some element quotes it.
    pub(super) fn redacted(&self, text: &str) -> String {
        let Self::Url(url) = self else {
            return text.to_owned();
        };
        let Some(password) = url.password().filter(|password| !password.is_empty()) else {
            return text.to_owned();
        };
        // As it stands in the address, and as it is sent.
        let plain = percent_decode_str(password).decode_utf8_lossy();
        text.replace(password, HIDDEN).replace(&*plain, HIDDEN)
    }
}

impl fmt::Display for Address {
    /// Passwords are hidden.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "camera {index}"),
            Self::Path(path) => write!(f, "camera {path:?}"),
            Self::Name(name) => write!(f, "camera {name:?}"),
            Self::Url(url) => {
                let mut shown = url.clone();
                // Only addresses that cannot have a password refuse one.
                if url.password().is_some() && shown.set_password(Some(HIDDEN)).is_err() {
                    return f.write_str(url.scheme());
                }
                write!(f, "{shown}")
            }
            Self::Screen => f.write_str("the screen"),
            Self::Test(pattern) => write!(f, "test pattern {pattern:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        let Ok(address) = text.parse();
        address
    }

    #[test]
    fn what_is_no_index_path_url_or_pattern_is_a_name() {
        assert_eq!(address("0"), Address::Index(0));
        assert_eq!(address("/dev/video2"), Address::Path("/dev/video2".into()));
        assert_eq!(address("FakeCam"), Address::Name("FakeCam".into()));
        assert_eq!(address("Cam: front"), Address::Name("Cam: front".into()));
        assert_eq!(address("screen"), Address::Screen);
        assert_eq!(address("test:"), Address::Test("smpte".into()));
        assert_eq!(address("test:ball"), Address::Test("ball".into()));
        assert!(address("rtsp://host/stream").is_remote());
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let address = address("rtsp://user:s3%20cret@host:554/stream");
        assert_eq!(address.to_string(), "rtsp://user:***@host:554/stream");
        let quoted = address.redacted("no rtsp://user:s3%20cret@host, user is 's3 cret'");
        assert_eq!(quoted, "no rtsp://user:***@host, user is '***'");
    }
}
