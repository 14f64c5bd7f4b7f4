//! All integration tests, in one binary because each would link candle and GStreamer.

// Files through GStreamer and back, judged by ffmpeg and ffprobe.
#[cfg(feature = "media")]
mod media;
