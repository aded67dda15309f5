//! `leakline`: finds out why a Python web server's memory grows.
fn main() {}
