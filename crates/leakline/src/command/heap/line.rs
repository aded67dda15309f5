//! From a line of the server's source to the memory that it has allocated, by the samples of a worker's table.
use std::str::FromStr;

use super::super::report::holders::block;
use crate::analyze::evidence::{Frame, Worker};
use crate::heap::Graph;

/// `app.py:42`
#[derive(Clone, Debug)]
pub struct Line {
    file: String,
    line: u32,
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':').and_then(|(file, line)| Some((file, line.parse().ok()?)));
        let (file, line) =
            parts.filter(|(file, _)| !file.is_empty()).ok_or("a line is FILE:NUMBER, as reports show it")?;
        Ok(Self { file: file.to_owned(), line })
    }
}

impl Line {
    /// Is it this line of that file? The file may be named by the last parts of its path.
    fn is(&self, frame: &Frame) -> bool {
        let rest = frame.file.strip_suffix(&self.file);
        self.line == frame.line && rest.is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
    }

    /// Where what it has allocated lies, as far as it was sampled and was there when the snapshot was taken, and what that
    /// stands for.
    pub fn blocks(&self, worker: &Worker, graph: &Graph) -> Vec<(u64, f64)> {
        let is_here: Vec<bool> = worker.stacks.iter().map(|stack| stack.iter().any(|frame| self.is(frame))).collect();
        let samples = worker.samples.iter().enumerate();
        let of_line = samples.filter(|(_, sample)| sample.stack.is_some_and(|stack| is_here[stack.0 as usize]));
        of_line.filter_map(|(at, _)| block(worker, at, graph)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_known_by_the_last_parts_of_its_file() {
        let is = |line: &str, file: &str, number| {
            let frame = Frame { file: file.to_owned(), function: "f".to_owned(), line: number };
            line.parse::<Line>().unwrap().is(&frame)
        };
        assert!(is("app.py:42", "/srv/shop/app.py", 42));
        assert!(is("shop/app.py:42", "/srv/shop/app.py", 42));
        assert!(is("/srv/shop/app.py:42", "/srv/shop/app.py", 42));
        assert!(!is("app.py:41", "/srv/shop/app.py", 42));
        assert!(!is("app.py:42", "/srv/shop/wsgiapp.py", 42));
        assert!("app.py".parse::<Line>().is_err() && ":42".parse::<Line>().is_err());
    }
}
