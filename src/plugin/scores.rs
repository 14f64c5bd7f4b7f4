//! Where the JSON Lines of `scores-location` go: a file, or a socket that somebody listens at.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Who takes nothing for so long reads no more: frames do not wait for longer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Opens `location`: `tcp://HOST:PORT`, `unix:PATH`, or a file, which is made anew.
///
/// # Errors
/// Fails where it cannot be written, or nobody listens.
pub(super) fn open(location: &str) -> io::Result<Box<dyn Write + Send>> {
    if let Some(address) = location.strip_prefix("tcp://") {
        let socket = TcpStream::connect(address)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        return Ok(Box::new(Socket(socket)));
    }
    if let Some(path) = location.strip_prefix("unix:") {
        let socket = UnixStream::connect(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        return Ok(Box::new(Socket(socket)));
    }
    Ok(Box::new(File::create(location)?))
}

/// A socket; who reads no more has closed it, whatever the reason.
struct Socket<S>(S);

fn closed(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::Interrupted => error,
        _ => {
            tracing::warn!("nobody takes the scores any more: {error}");
            io::Error::new(ErrorKind::BrokenPipe, error)
        }
    }
}

impl<S: Write> Write for Socket<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(closed)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(closed)
    }
}
