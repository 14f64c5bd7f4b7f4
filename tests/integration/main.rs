//! All integration tests, in one binary because each would link candle and GStreamer.

fn main() {}
