//! How much of a server's time and disk recording may take: the options that `run` and `attach` share.
use clap::Args;

/// See the help of each.
#[derive(Debug, Args)]
pub struct Effort {
    /// Record every allocation instead of a sample: for short runs and tests, slow
    #[arg(long)]
    pub exact: bool,
    /// Leave native code out of stacks: what a C extension allocates is then blamed on the line of Python that called it, and
    /// not on its function
    #[arg(long)]
    pub no_native: bool,
    /// Processor time that recording may take, in percent of one core; at most four times as much of what the server itself
    /// takes. With the first requests, once, it may take 20 seconds' worth of it besides
    #[arg(long, value_name = "PERCENT", default_value_t = 0.3, value_parser = percent, conflicts_with = "exact")]
    budget: f64,
    /// Size of each process's table in MiB; when it is full, samples are thinned
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=1024))]
    table: u64,
    /// How many runs to keep, this one included
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub keep: u64,
}

impl Effort {
    /// The share of one core that recording may take.
    pub fn budget(&self) -> f64 {
        self.budget / 100.0
    }

    /// Bytes of a table.
    pub fn table_bytes(&self) -> u64 {
        self.table << 20
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 100.0 => Ok(value),
        _ => Err("a percentage above 0 and up to 100".into()),
    }
}
