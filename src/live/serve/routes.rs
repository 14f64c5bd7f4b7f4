//! The response to each request.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::feed::TOPICS;
use super::http::{self, Refusal, Request};
use super::{Change, Lesson, Shared};

const PAGE: &str = include_str!("page.html");

/// Content security policy of the page: it may use only its own content and this server.
const POLICY: &str = "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; \
    script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Time without news after which a stream checks whether its client is still connected.
const QUIET: Duration = Duration::from_secs(10);

/// Boundary between two pictures.
const BOUNDARY: &str = "vitscope-frame";

const COOKIE: &str = "vitscope";

/// Response to a request.
enum Answer {
    Whole {
        status: &'static str,
        content_type: &'static str,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    },
    Pictures,
    Events,
}

/// Reads and answers the request of a connection.
pub(super) fn serve(mut stream: TcpStream, number: u64, shared: &Shared) {
    let read = http::read(&mut stream);
    shared.waiting().retain(|(waiting, _)| *waiting != number);
    let answer = match read {
        Ok(None) => return,
        Ok(Some(request)) => answer(&request, shared),
        Err(refusal) => Err(refusal),
    };
    let written = match answer {
        Ok(Answer::Whole {
            status,
            content_type,
            headers,
            body,
        }) => {
            let mut all = vec![("content-type", content_type)];
            all.extend(headers.iter().map(|(name, value)| (*name, &**value)));
            http::write(&mut stream, status, &all, &body)
        }
        Ok(Answer::Pictures) => pictures(&mut stream, shared),
        Ok(Answer::Events) => events(&mut stream, shared),
        Err(refusal) => refuse(&mut stream, &refusal),
    };
    if let Err(error) = written {
        tracing::debug!("a client disconnected: {error}");
    }
    http::hang_up(stream);
}

/// Tells a client that there is no room, even if it may not read the response.
pub(super) fn turn_away(mut stream: TcpStream) {
    let refusal = Refusal::new("503 Service Unavailable", "too many clients, try again");
    // The response fits into the socket buffer, or it is dropped.
    if stream.set_nonblocking(true).is_ok() {
        let _ = refuse(&mut stream, &refusal);
    }
}

fn refuse(stream: &mut TcpStream, refusal: &Refusal) -> io::Result<()> {
    let headers = [("content-type", "text/plain; charset=utf-8")];
    http::write(stream, refusal.status, &headers, refusal.reason.as_bytes())
}

fn answer(request: &Request, shared: &Shared) -> Result<Answer, Refusal> {
    if let Some(answer) = admit(request, shared)? {
        return Ok(answer);
    }
    match (&*request.method, &*request.path) {
        ("GET", "/") => Ok(Answer::Whole {
            status: "200 OK",
            content_type: "text/html; charset=utf-8",
            headers: vec![("content-security-policy", POLICY.into())],
            body: PAGE.into(),
        }),
        ("GET", "/stream.mjpg") => Ok(Answer::Pictures),
        ("GET", "/events") => Ok(Answer::Events),
        ("GET", "/about") => match shared.host.about() {
            Some(about) => Ok(json(&about)),
            None => Err(Refusal::new(
                "503 Service Unavailable",
                "the model is still loading, try again",
            )),
        },
        ("GET", "/snapshot.png") => match shared.host.snapshot() {
            Ok(png) => Ok(whole("200 OK", "image/png", png)),
            Err(error) => Err(Refusal::new("503 Service Unavailable", error.to_string())),
        },
        ("POST", "/control") => take(request, |change: &Change| shared.host.change(change)),
        ("POST", "/teach") => take(request, |lesson: &Lesson| shared.host.teach(lesson)),
        (
            _,
            "/" | "/stream.mjpg" | "/events" | "/about" | "/snapshot.png" | "/control" | "/teach",
        ) => Err(Refusal::new(
            "405 Method Not Allowed",
            "expected GET, or POST for /control and /teach",
        )),
        _ => Err(Refusal::new("404 Not Found", "page not found")),
    }
}

fn whole(status: &'static str, content_type: &'static str, body: Vec<u8>) -> Answer {
    Answer::Whole {
        status,
        content_type,
        headers: Vec::new(),
        body,
    }
}

fn json(value: &impl Serialize) -> Answer {
    // Serializing plain data cannot fail.
    let body = serde_json::to_vec(value).unwrap_or_default();
    whole("200 OK", "application/json", body)
}

/// Admits a request with the token if one is set, otherwise only under a name of this machine, so that no page of
/// another origin can impersonate this one.
fn admit(request: &Request, shared: &Shared) -> Result<Option<Answer>, Refusal> {
    let host = request.header("host").unwrap_or_default();
    let is_foreign = request
        .header("origin")
        .is_some_and(|origin| origin.split_once("://").map(|(_, host)| host) != Some(host));
    if is_foreign {
        return Err(Refusal::new(
            "403 Forbidden",
            "the request comes from a page of a different origin",
        ));
    }
    let Some(token) = &shared.token else {
        return match is_loopback(host) {
            true => Ok(None),
            false => Err(Refusal::new(
                "403 Forbidden",
                "expected the host 127.0.0.1 or localhost",
            )),
        };
    };
    let bearer = request
        .header("authorization")
        .and_then(|value| value.strip_prefix("Bearer "));
    let shown = [request.cookie(COOKIE), bearer];
    if shown.into_iter().flatten().any(|shown| same(shown, token)) {
        return Ok(None);
    }
    match request.parameter("token") {
        Some(shown) if same(shown, token) && request.method == "GET" => {
            // Use a cookie from here on, so that the token appears in no address.
            let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/");
            Ok(Some(Answer::Whole {
                status: "303 See Other",
                content_type: "text/plain",
                headers: vec![("location", request.path.clone()), ("set-cookie", cookie)],
                body: Vec::new(),
            }))
        }
        _ => Err(Refusal::new(
            "401 Unauthorized",
            "expected the token, as in /?token=TOKEN",
        )),
    }
}

/// Returns whether `host` is a name of this machine that no name server can reassign.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Compares in a time that does not reveal where the two differ.
fn same(shown: &str, token: &str) -> bool {
    Sha256::digest(shown) == Sha256::digest(token)
}

/// Parses the JSON body of a request and passes it to `take`.
fn take<T: DeserializeOwned>(
    request: &Request,
    take: impl FnOnce(&T) -> vitscope_core::Result<()>,
) -> Result<Answer, Refusal> {
    let refused = |reason: String| Refusal::new("400 Bad Request", reason);
    let is_json = request
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("application/json"));
    // Pages of another origin cannot send this type without a preflight request.
    if !is_json {
        return Err(Refusal::new(
            "415 Unsupported Media Type",
            "expected application/json",
        ));
    }
    let value: T =
        serde_json::from_slice(&request.body).map_err(|error| refused(error.to_string()))?;
    take(&value).map_err(|error| refused(error.to_string()))?;
    Ok(whole("204 No Content", "text/plain", Vec::new()))
}

/// Sends the newest picture repeatedly, as fast as the client reads.
fn pictures(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let content_type = format!("multipart/x-mixed-replace; boundary={BOUNDARY}");
    http::write_head(stream, "200 OK", &[("content-type", &content_type)])?;
    write!(stream, "--{BOUNDARY}\r\n")?;
    let _viewer = shared.feed.viewer();
    let mut last: Option<(u64, Arc<[u8]>)> = None;
    while !shared.feed.is_over() {
        let seen = last.as_ref().map_or(0, |(number, _)| *number);
        last = shared.feed.picture_after(seen, QUIET).or(last);
        // If no new picture has come, repeat the last one: writing detects a client that is gone.
        let Some((_, picture)) = &last else {
            continue;
        };
        let head = format!(
            "content-type: image/jpeg\r\ncontent-length: {}\r\n\r\n",
            picture.len()
        );
        // Some browsers show a picture only when they see the next boundary.
        let end = format!("\r\n--{BOUNDARY}\r\n");
        stream.write_all(&[head.as_bytes(), picture, end.as_bytes()].concat())?;
    }
    Ok(())
}

/// Sends the newest event of each topic as soon as there is one.
fn events(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    http::write_head(stream, "200 OK", &[("content-type", "text/event-stream")])?;
    let mut seen = [0; TOPICS];
    while !shared.feed.is_over() {
        let events = shared.feed.events_after(&mut seen, QUIET);
        let mut text = String::new();
        for (topic, json) in &events {
            text.push_str(&format!("event: {}\ndata: {json}\n\n", topic.name()));
        }
        if text.is_empty() {
            text.push_str(": nothing new\n\n");
        }
        stream.write_all(text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:80",
            "192.168.0.2",
            "[::2]",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
