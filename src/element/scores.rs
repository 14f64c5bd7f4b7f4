//! Destinations for the JSON Lines of `scores-location`: a file, or a socket with a listener.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Time after which a reader that accepts no data is considered gone; frames wait no longer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Opens `location`: `tcp://HOST:PORT`, `unix:PATH`, or a file, which is overwritten when the first line is written.
///
/// # Errors
/// Fails if it cannot be written or nothing listens.
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
    Ok(Box::new(Lines::open(location.into())?))
}

/// A file that keeps its earlier content until there is something to write, so that a failed run loses nothing.
struct Lines {
    file: File,
    path: PathBuf,
    is_new: bool,
    begun: bool,
}

impl Lines {
    fn open(path: PathBuf) -> io::Result<Self> {
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        Ok(Self {
            // Anything but a regular file, such as a pipe, cannot be truncated.
            begun: !file.metadata()?.is_file(),
            file,
            path,
            is_new,
        })
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.begun {
            self.file.set_len(0)?;
            self.begun = true;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if self.is_new && !self.begun {
            // An empty file is useless and would be in the way of the next run.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket; any write error counts as closed by the reader.
struct Socket<S>(S);

fn closed(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::Interrupted => error,
        _ => {
            tracing::warn!("score reader disconnected: {error}");
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
