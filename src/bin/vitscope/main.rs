//! The program `vitscope`.

fn main() {}
