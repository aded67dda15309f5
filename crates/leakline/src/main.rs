//! `leakline`: finds out why a Python web server's memory grows, while it serves, and names the line.
use std::process::ExitCode;

use clap::Parser;
use leakline::command::{self, Arguments};

fn main() -> ExitCode {
    // Wrong usage ends in here, with an explanation and exit code 2.
    let arguments = Arguments::parse();
    arguments.carry_out().unwrap_or_else(|failure| {
        command::say(&failure.to_string());
        failure.exit.into()
    })
}
