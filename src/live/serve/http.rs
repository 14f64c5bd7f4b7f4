//! The part of HTTP that the page needs: one request per connection, limited in size and time.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Maximum size of a request's head and of its body, in bytes.
const MOST_HEAD: usize = 8 << 10;
const MOST_BODY: usize = 4 << 10;
const MOST_HEADERS: usize = 64;

/// Time within which a whole request must arrive.
const REQUEST: Duration = Duration::from_secs(5);

/// Time after which a client that reads nothing is considered gone.
const WRITE: Duration = Duration::from_secs(5);

/// Maximum number of bytes that a client may still send after the response, and for how long.
const MOST_IGNORED: usize = 64 << 10;
const HANGING_UP: Duration = Duration::from_millis(500);

/// A request as received.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// The part before a `?`.
    pub(super) path: String,
    /// The part after a `?`.
    pub(super) query: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

/// Status and reason of a refused request.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: &'static str,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn new(status: &'static str, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }
}

/// Reads a request; `Ok(None)` if the client hung up before sending anything.
pub(super) fn read(stream: &mut TcpStream) -> Result<Option<Request>, Refusal> {
    let deadline = Instant::now() + REQUEST;
    // Without the timeout, the cost is at most a thread until the client hangs up.
    let _ = stream.set_write_timeout(Some(WRITE));
    let mut bytes = Vec::new();
    let (mut request, head_len) = loop {
        if let Some(head) = parse(&bytes)? {
            break head;
        }
        if bytes.len() >= MOST_HEAD {
            return Err(Refusal::new(
                "431 Request Header Fields Too Large",
                format!("the request header is longer than {MOST_HEAD} bytes"),
            ));
        }
        if !read_some(stream, deadline, MOST_HEAD, &mut bytes)? {
            return match bytes.is_empty() {
                true => Ok(None),
                false => Err(Refusal::new("400 Bad Request", "the request is incomplete")),
            };
        }
    };
    if request.header("transfer-encoding").is_some() {
        return Err(Refusal::new(
            "411 Length Required",
            "expected a body with a content-length",
        ));
    }
    let length = match request.header("content-length") {
        None => 0,
        Some(length) => length
            .parse::<usize>()
            .map_err(|_| Refusal::new("400 Bad Request", "the content-length is not a number"))?,
    };
    if length > MOST_BODY {
        return Err(Refusal::new(
            "413 Content Too Large",
            format!("the body has {length} bytes, expected at most {MOST_BODY}"),
        ));
    }
    let whole = head_len + length;
    while bytes.len() < whole {
        if !read_some(stream, deadline, whole, &mut bytes)? {
            return Err(Refusal::new(
                "400 Bad Request",
                "the request body is incomplete",
            ));
        }
    }
    request.body = bytes[head_len..whole].to_vec();
    Ok(Some(request))
}

/// Appends received bytes, up to `most` in total; returns `false` if the client has hung up.
fn read_some(
    stream: &mut TcpStream,
    deadline: Instant,
    most: usize,
    bytes: &mut Vec<u8>,
) -> Result<bool, Refusal> {
    let too_slow = || Refusal::new("408 Request Timeout", "the request took too long");
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
        return Err(too_slow());
    }
    let mut buffer = [0; 2048];
    let room = buffer.len().min(most - bytes.len());
    match stream.read(&mut buffer[..room]) {
        Ok(n_bytes) => {
            bytes.extend_from_slice(&buffer[..n_bytes]);
            Ok(n_bytes > 0)
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(too_slow())
        }
        Err(_) => Ok(false),
    }
}

/// Returns the request without its body, and the length of its head; `None` while the head is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let malformed =
        |error| Refusal::new("400 Bad Request", format!("not an HTTP request: {error}"));
    let httparse::Status::Complete(head_len) = head.parse(bytes).map_err(malformed)? else {
        return Ok(None);
    };
    let target = head.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: (head.headers.iter())
            .map(|header| (header.name.to_ascii_lowercase(), text(header.value)))
            .collect(),
        body: Vec::new(),
    };
    Ok(Some((request, head_len)))
}

impl Request {
    /// Returns a header's value by its lowercase name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.trim())
    }

    /// Returns a cookie's value.
    pub(super) fn cookie(&self, name: &str) -> Option<&str> {
        let cookies = self.header("cookie")?.split(';');
        let mut pairs = cookies.filter_map(|cookie| cookie.trim().split_once('='));
        pairs
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// Returns the value of `key` in the query.
    pub(super) fn parameter(&self, key: &str) -> Option<&str> {
        let mut pairs = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value)
    }
}

/// Hangs up so that the client can read the response: if unread bytes of the client were left, the system would discard
/// the response.
pub(super) fn hang_up(mut stream: TcpStream) {
    let deadline = Instant::now() + HANGING_UP;
    let mut rest = Vec::new();
    let mut goes_on = stream.shutdown(Shutdown::Write).is_ok();
    while goes_on && rest.len() < MOST_IGNORED {
        goes_on = read_some(&mut stream, deadline, MOST_IGNORED, &mut rest).unwrap_or(false);
    }
}

/// Writes the head of a response; without a length, the body lasts as long as the connection.
///
/// # Errors
/// Fails if the client has hung up.
pub(super) fn write_head(
    stream: &mut impl Write,
    status: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\n");
    let common = [
        ("connection", "close"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ];
    for (name, value) in common.iter().chain(headers) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())
}

/// Writes a whole response.
///
/// # Errors
/// Fails if the client has hung up.
pub(super) fn write(
    stream: &mut impl Write,
    status: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<()> {
    let length = body.len().to_string();
    let headers: Vec<_> = (headers.iter().copied())
        .chain([("content-length", &*length)])
        .collect();
    write_head(stream, status, &headers)?;
    stream.write_all(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_path_a_query_headers_and_cookies() {
        let text = b"GET /a?x=1&token=T HTTP/1.1\r\nHost: h\r\nCookie: a=b; vitscope=C\r\n\r\n";
        let (request, length) = parse(text).unwrap().unwrap();
        assert_eq!(text.len(), length);
        assert_eq!(("GET", "/a"), (&*request.method, &*request.path));
        assert_eq!(Some("T"), request.parameter("token"));
        assert_eq!(Some("h"), request.header("host"));
        assert_eq!(Some("C"), request.cookie("vitscope"));
        assert!(parse(&text[..20]).unwrap().is_none());
        assert!(parse(b"\x16\x03\x01\x02\x00\x01\x00 garbage\r\n\r\n").is_err());
    }
}
