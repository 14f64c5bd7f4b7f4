//! Addresses of live video sources as the user types them, and how to show them without secrets.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use url::Url;

use vitscope_core::picture::is_video_name;

/// Placeholder for a secret in a displayed address.
const HIDDEN: &str = "***";

/// Characters that end the user name or password in an address, and so occur in one only by mistake.
const ENDING: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'/').add(b'?').add(b'@');

/// A source of live video. Neither `Display` nor `Debug` shows possible secrets in a network address.
#[derive(Clone, PartialEq, Eq)]
pub enum Address {
    /// The camera with this index in the list of [`cameras`](super::cameras).
    Index(usize),
    /// The camera at this path.
    Path(PathBuf),
    /// A video file, played in real time.
    File(PathBuf),
    /// The first camera whose name contains this text, ignoring case.
    Name(String),
    /// A network stream: RTSP, or MJPEG, HLS or a file over HTTP.
    Url(Url),
    /// An invalid network address, as typed.
    NotAnAddress(String),
    /// The screen.
    Screen,
    /// A pattern of GStreamer's `videotestsrc`.
    Test(String),
}

impl FromStr for Address {
    type Err = Infallible;

    /// Never fails: text that looks like nothing else is a camera name, and an invalid address is reported when it is
    /// used, without its password.
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
        // A camera name may contain a colon; in a network address, slashes follow the colon.
        if text.contains("://") {
            return Ok(network(text));
        }
        let path = Path::new(text);
        if path.is_file() || is_video_name(path) {
            return Ok(Self::File(path.to_owned()));
        }
        if text.starts_with('/') {
            return Ok(Self::Path(path.to_owned()));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// Characters that may precede an address in a sentence.
const QUOTES: [char; 4] = ['\'', '"', '(', '`'];

/// URL schemes of cameras and servers.
const SCHEMES: [&str; 8] = [
    "rtsp", "rtsps", "rtspt", "http", "https", "rtmp", "rtmps", "srt",
];

/// Parses a network address. If it is invalid as typed, percent-encodes its user name and password and tries again.
fn network(text: &str) -> Address {
    let repaired = || {
        let (scheme, rest) = text.split_once("://")?;
        let (user, host) = rest.rsplit_once('@')?;
        let user = utf8_percent_encode(user, ENDING);
        Url::parse(&format!("{scheme}://{user}@{host}")).ok()
    };
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    let url = match !text.contains('@') && has_no_port(authority) {
        true => None,
        false => Url::parse(text).ok().or_else(repaired),
    };
    // If `/../` removes the key of a `key=value` pair, nothing would mark the rest as a secret.
    let url = url.filter(|url| n_equals(url.as_str()) >= n_equals(text));
    let Some(url) = url else {
        return Address::NotAnAddress(text.to_owned());
    };
    match url.to_file_path() {
        Ok(path) if url.scheme() == "file" => Address::File(path),
        _ => Address::Url(url),
    }
}

impl Address {
    /// Returns whether the video comes over a network and may come back after a loss.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Url(_))
    }

    /// Returns the path of a network address, without secrets.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Url(url) => shown(url.path()),
            _ => String::new(),
        }
    }

    /// Returns `text` without the possible secrets of this address, in case an element quotes them.
    pub(super) fn redacted(&self, text: &str) -> String {
        let Self::Url(url) = self else {
            return text.to_owned();
        };
        let mut text = text.replace(url.as_str(), &self.to_string());
        for secret in secrets(url) {
            // Both as written in the address and as sent.
            let plain = percent_decode_str(&secret).decode_utf8_lossy();
            text = text.replace(&*secret, HIDDEN).replace(&*plain, HIDDEN);
        }
        text
    }
}

/// Returns the parts of an address that must not be quoted.
fn secrets(url: &Url) -> Vec<String> {
    /// Shorter values, such as a channel number, occur in ordinary sentences.
    const LEAST: usize = 4;
    let password = url.password().into_iter();
    let user = Some(url.username()).filter(|_| url.password().is_none());
    let values = values(url.path())
        .chain(values(url.query().unwrap_or_default()))
        .filter(|value| value.len() >= LEAST);
    let token = url.query().filter(|query| equals(query).is_none());
    let all = password.chain(user).chain(values).chain(token);
    all.filter(|secret| !secret.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Returns the text after each equals sign, up to the next ampersand.
fn values(text: &str) -> impl Iterator<Item = &str> {
    let pairs = text.split('&');
    pairs.filter_map(|pair| Some(&pair[equals(pair)?..]))
}

/// Returns the end of the first equals sign, plain or percent-encoded.
fn equals(text: &str) -> Option<usize> {
    let plain = text.find('=').map(|at| at + 1);
    let encoded = text.to_ascii_lowercase().find("%3d").map(|at| at + 3);
    plain.into_iter().chain(encoded).min()
}

/// Counts the equals signs, plain or percent-encoded.
fn n_equals(text: &str) -> usize {
    text.matches('=').count() + text.to_ascii_lowercase().matches("%3d").count()
}

/// Returns a word without the user and password before its last `@`, as in `user:password@host`.
fn without_user(word: &str) -> Cow<'_, str> {
    match word.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => {
            let name = user.trim_start_matches(QUOTES);
            let quotes = &user[..user.len() - name.len()];
            Cow::Owned(format!("{quotes}{HIDDEN}@{host}"))
        }
        _ => Cow::Borrowed(word),
    }
}

/// Returns whether the last word of a text is the name of a scheme, quoted or not.
fn ends_in_scheme(text: &str) -> bool {
    let word = text.rsplit(char::is_whitespace).next().unwrap_or_default();
    let name = word.trim_start_matches(QUOTES);
    let is_sign = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
    name.starts_with(|letter: char| letter.is_ascii_alphabetic()) && name.chars().all(is_sign)
}

/// Returns an address as it may be shown: without user and password, without the values of `key=value` pairs, and
/// without its fragment.
fn shown(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((before, rest)) if ends_in_scheme(before) => (format!("{before}://"), rest),
        // Without a scheme, these characters may belong to a password.
        _ => (String::new(), text),
    };
    let (user, rest) = match rest.rsplit_once('@') {
        // Either a password with such characters ends here, or a value contains an `@`: all of it may be secret.
        Some((user, _)) if user.contains(['/', '?', '#', '=']) => {
            return format!("{scheme}{HIDDEN}");
        }
        Some((_, host)) => (format!("{HIDDEN}@"), host),
        // Possibly a user and a password without a host.
        None if !scheme.is_empty() && has_no_port(rest) => return format!("{scheme}{HIDDEN}"),
        None => (String::new(), rest),
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let mut in_query = false;
    let pairs: Vec<String> = rest
        .split('&')
        .map(|pair| {
            let was_in_query = in_query;
            in_query |= pair.contains('?');
            match (equals(pair), pair.find('?')) {
                (Some(end), _) => format!("{}{HIDDEN}", &pair[..end]),
                // A query that is not a pair: `?token`.
                (None, _) if was_in_query => without_word(pair, 0),
                (None, Some(at)) => without_word(pair, at + 1),
                (None, None) => pair.to_owned(),
            }
        })
        .collect();
    match format!("{scheme}{user}{}", pairs.join("&")) {
        shown if shown.is_empty() && !text.is_empty() => HIDDEN.into(),
        shown => shown,
    }
}

/// Hides the word of `text` that begins at `at`.
fn without_word(text: &str, at: usize) -> String {
    let (before, word) = text.split_at(at);
    match word.find(char::is_whitespace).unwrap_or(word.len()) {
        0 => text.to_owned(),
        end => format!("{before}{HIDDEN}{}", &word[end..]),
    }
}

/// Returns whether the text after the host and a colon is not a port.
fn has_no_port(rest: &str) -> bool {
    let ends = |letter: char| letter.is_whitespace() || "/?#".contains(letter);
    let authority = rest.split(ends).next().unwrap_or_default();
    // In a sentence, quotes, a colon or a period may follow.
    let authority = authority.trim_end_matches(|letter| ":.,)\"'`".contains(letter));
    if authority.starts_with('[') {
        return false;
    }
    // A user and a host with a percent-encoded `@` between them.
    if authority.to_ascii_lowercase().contains("%40") {
        return true;
    }
    let port = authority.split_once(':').map(|(_, port)| port);
    port.is_some_and(|port| port.parse::<u16>().is_err())
}

/// Returns `text` with the secrets of its network addresses hidden, for at most one address per line.
pub fn without_secrets(text: &str) -> String {
    let lines = text.split_inclusive('\n').map(|line| {
        let (line, end) = match line.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (line, ""),
        };
        match line.contains("://") {
            true => format!("{}{end}", shown(line)),
            false => {
                let words: Vec<_> = line.split(' ').map(without_user).collect();
                format!("{}{end}", words.join(" "))
            }
        }
    });
    lines.collect()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "camera {index}"),
            Self::Path(path) => write!(f, "camera {path:?}"),
            Self::File(path) => write!(f, "{path:?}"),
            // Possibly a user and a password.
            Self::Name(name) if !name.contains(char::is_whitespace) && name.contains(':') => {
                let user = name.split(':').next().unwrap_or_default();
                write!(f, "camera \"{user}:{HIDDEN}\"")
            }
            Self::Name(name) => write!(f, "camera {:?}", shown(name)),
            Self::Url(url) => {
                let text = shown(url.as_str());
                let hidden = format!("://{HIDDEN}@");
                // A name next to a password helps to see which of them is wrong; a name alone may be a key.
                // In text that only looks like an address, such as `admin://a:b@host`, it may be part of the password.
                match url.password() {
                    Some(_) if SCHEMES.contains(&url.scheme()) => {
                        let named = format!("://{}:{HIDDEN}@", url.username());
                        f.write_str(&text.replacen(&hidden, &named, 1))
                    }
                    _ => f.write_str(&text),
                }
            }
            Self::NotAnAddress(text) => f.write_str(&shown(text)),
            Self::Screen => f.write_str("the screen"),
            Self::Test(pattern) => write!(f, "test pattern {pattern:?}"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        let Ok(address) = text.parse();
        address
    }

    #[test]
    fn what_is_no_index_path_url_or_pattern_is_a_name() {
        assert_eq!(address("0"), Address::Index(0));
        assert_eq!(address("/dev/video2"), Address::Path("/dev/video2".into()));
        assert_eq!(address("clip.MP4"), Address::File("clip.MP4".into()));
        assert_eq!(
            address("/no/clip.mkv"),
            Address::File("/no/clip.mkv".into())
        );
        let file = Address::File("/no/a clip.mp4".into());
        assert_eq!(address("file:///no/a%20clip.mp4"), file);
        assert_eq!(address("FakeCam"), Address::Name("FakeCam".into()));
        assert_eq!(address("Cam: front"), Address::Name("Cam: front".into()));
        assert_eq!(address("screen"), Address::Screen);
        assert_eq!(address("test:"), Address::Test("smpte".into()));
        assert_eq!(address("test:ball"), Address::Test("ball".into()));
        assert!(address("rtsp://host/stream").is_remote());
        let climbing = "rtsp://host/user=admin&password=/../SECRET&channel=1";
        assert!(!address(climbing).is_remote());
        assert!(!address(climbing).to_string().contains("SECRET"));
        // All of it is a fragment, so a placeholder is shown instead.
        assert_eq!(address("#://").to_string(), HIDDEN);
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let address = address("rtsp://user:s3%20cret@host:554/stream");
        assert_eq!(address.to_string(), "rtsp://user:***@host:554/stream");
        assert_eq!(without_secrets("admin:s3cret://@host"), HIDDEN);
        let guessed = self::address("admin://s3cret:x@host").to_string();
        assert_eq!(guessed, "admin://***@host");
        assert_eq!(
            without_secrets("invalid 'rtsp://user:s3cret@host/x'"),
            "invalid 'rtsp://***@host/x'"
        );
        let quoted = address.redacted("no rtsp://user:s3%20cret@host, user is 's3 cret'");
        assert_eq!(quoted, "no rtsp://user:***@host, user is '***'");
    }

    #[test]
    fn a_password_of_letters_that_end_one_is_read_where_that_makes_an_address() {
        let Address::Url(url) = address("rtsp://admin:pa#s@s@host/x") else {
            panic!("is an address");
        };
        assert_eq!(url.host_str(), Some("host"));
        let password = percent_decode_str(url.password().unwrap_or_default());
        assert_eq!(password.decode_utf8_lossy(), "pa#s@s");
        assert_eq!(
            address("rtsp://a b:c/d"),
            Address::NotAnAddress("rtsp://a b:c/d".into())
        );
    }

    #[test]
    fn what_is_no_secret_stays_readable() {
        for text in [
            "rtsp://host:554/x",
            "http://[::1]:8080/video",
            "http://host/a/b.m3u8",
            "\"http://host:80\": nobody listens",
            "no server is listening on port 9: http://127.0.0.1:9",
        ] {
            assert_eq!(without_secrets(text), text);
        }
        assert_eq!(address("Cam: front").to_string(), "camera \"Cam: front\"");
        assert_eq!(address("admin:s3cr3t").to_string(), "camera \"admin:***\"");
    }

    /// Spellings used by people and camera makers, each with the characters that end the secret in it.
    const SPELLINGS: [(&str, &[char]); 13] = [
        ("rtsp://admin:SECRET@:host:/x", &[]),
        ("rtsp://admin:12/SECRET@host/x", &[]),
        ("rtsp://SECRET@host/x", &[':']),
        (
            "rtsp://host/user=admin&password=SECRET&channel=1",
            &['&', '?'],
        ),
        (
            "rtsp://host/user=admin_password=SECRET_channel=1.sdp?real",
            &['&', '?'],
        ),
        ("http://host/video?user=admin&pwd=SECRET", &['&']),
        ("http://host/video?token%3DSECRET", &['&']),
        ("http://host/video#SECRET", &[]),
        ("http://host/video?SECRET", &['=', '%']),
        ("rtsp://admin:SECRET", &['/', '?', '#', '@']),
        ("rtsp://admin:SECRET:554/x", &['/', '?', '#', '@']),
        ("rtsp://admin%3ASECRET%40host/x", &['/', '?', '#', '@']),
        ("admin:SECRET@host", &[]),
    ];

    proptest! {
        #[test]
        fn no_spelling_shows_a_secret(before in "[!-~]{0,6}", core in "[A-Z]{6}", behind in "[!-~]{0,6}") {
            let secret = format!("{before}{core}{behind}");
            for (spelling, others) in SPELLINGS.iter().filter(|(_, others)| !secret.contains(*others)) {
                let text = spelling.replace("SECRET", &secret);
                let address = address(&text);
                let mut told = vec![address.to_string(), format!("{address:?}")];
                told.push(without_secrets(&format!("unexpected argument '{text}' found")));
                told.push(without_secrets(&format!("no such file, expected a video: {text:?}")));
                if let Address::Url(url) = &address {
                    told.push(address.redacted(&format!("cannot open {url}")));
                }
                for told in told {
                    prop_assert!(!told.contains(&core), "{text} is shown as {told}, {others:?}");
                }
            }
        }

        #[test]
        fn any_text_is_an_address_of_some_kind(text in ".+") {
            prop_assert!(!address(&text).to_string().is_empty());
        }
    }
}
