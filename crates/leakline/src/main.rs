//! `leakline`: finds out why a Python web server's memory grows.
mod analyze;
fn main() {}
