//! Turns a report into some forty lines for a terminal: the verdict first, then where, then why it can be believed,
//! then what to do.
use std::fmt::{self, Write};

use anstyle::{AnsiColor, Style};

use leakline_table::layout::{LOSS_NAMES, Loss};

use super::schema::{Call, Compared, Finding, Line, Process, Report, Site, Socket};
use crate::printable::printable;

/// Reads a line of a source file, if it is there to be read.
pub type Source<'a> = &'a dyn Fn(&str, u32) -> Option<String>;

/// How to print.
#[derive(Clone, Copy)]
pub struct Printed<'a> {
    /// Where source lines come from.
    pub source: Source<'a>,
    /// Whether to colour.
    pub colour: bool,
}

/// Findings that are told in full.
const TOLD_IN_FULL: usize = 2;
/// Findings that are told in a line each after these.
const TOLD_IN_SHORT: usize = 4;
/// Rows of the table of routes.
const ROUTES: usize = 8;
/// A peer is named beside a balloon where one request read at least this share of its height from there.
const WORTH_READING: f64 = 0.125;
/// What is lost is told where it is at least this share.
const WORTH_NAMING: f64 = 0.05;
/// The loss that is told in a sentence of its own.
const OTHER_INTERPRETERS: &str = LOSS_NAMES[Loss::OtherInterpreters as usize];
/// Killed processes that are told.
const KILLED: usize = 3;
/// Lines of a call path.
const PATH: usize = 6;
/// Columns of a route's name, and of a file's.
const NAME: usize = 36;

/// The report for people, with a closing newline.
pub fn text(report: &Report, how: Printed) -> String {
    let mut page = Page { text: String::new(), how };
    page.write(report).expect("a String takes whatever is written to it");
    page.text
}

struct Page<'a> {
    text: String,
    how: Printed<'a>,
}

impl Page<'_> {
    fn write(&mut self, report: &Report) -> fmt::Result {
        self.findings(report)?;
        if !report.findings.iter().any(|finding| finding.kind == "leak") {
            self.no_leak_found(report)?;
        }
        self.watched(report)?;
        self.routes(report)?;
        self.next_step(report)
    }

    fn styled(&self, style: Style, text: &str) -> String {
        match self.how.colour {
            true => format!("{style}{text}{style:#}"),
            false => text.to_owned(),
        }
    }

    fn strong(&self, text: &str) -> String {
        self.styled(Style::new().bold(), text)
    }

    fn faint(&self, text: &str) -> String {
        self.styled(Style::new().dimmed(), text)
    }

    fn no_leak_found(&mut self, report: &Report) -> fmt::Result {
        let verdict = self.styled(AnsiColor::Green.on_default().bold(), "NO LEAK FOUND");
        match report.evidence.smallest_visible_bytes_per_request {
            Some(visible) => {
                let visible = self.strong(&format!("{} per request", size(visible)));
                writeln!(self.text, "{verdict}: would have seen {visible} or more on the busiest route.\n")
            }
            None if report.window.requests == 0 => {
                writeln!(self.text, "{verdict}: no request has been seen yet, so none could be found.\n")
            }
            None => writeln!(self.text, "{verdict}: too few requests yet to see one of any size.\n"),
        }
    }

    fn findings(&mut self, report: &Report) -> fmt::Result {
        for finding in report.findings.iter().take(TOLD_IN_FULL) {
            match finding.kind {
                "balloon" => self.balloon(finding)?,
                "retained" => self.retained(finding)?,
                _ => self.leak(report, finding)?,
            }
        }
        for finding in report.findings.iter().skip(TOLD_IN_FULL).take(TOLD_IN_SHORT) {
            writeln!(self.text, "also: {}", printable(&finding.summary))?;
        }
        let told = TOLD_IN_FULL + TOLD_IN_SHORT;
        if report.findings.len() > told {
            writeln!(self.text, "and {} more, which `--json` has", report.findings.len() - told)?;
        }
        if report.findings.len() > TOLD_IN_FULL {
            writeln!(self.text)?;
        }
        Ok(())
    }

    /// `LEAK: GET /data`, with the route in bold.
    fn verdict(&self, finding: &Finding) -> String {
        let (colour, alternative) = match (finding.kind, finding.garbage) {
            ("leak", Some("untested")) => (AnsiColor::Red, " OR GARBAGE"),
            ("garbage", _) => (AnsiColor::Yellow, ""),
            _ => (AnsiColor::Red, ""),
        };
        let kind = self.styled(colour.on_default().bold(), &(finding.kind.to_uppercase() + alternative));
        let route = match &finding.routes[..] {
            [] => "what runs outside of requests".to_owned(),
            [route] => shorten(&printable(route), NAME),
            [busiest, others @ ..] => {
                format!("{} and {} more", shorten(&printable(busiest), NAME), plural(others.len() as u64, "route"))
            }
        };
        format!("{kind}: {}", self.strong(&route))
    }

    fn balloon(&mut self, finding: &Finding) -> fmt::Result {
        let (verdict, condition) = (self.verdict(finding), condition(finding.outcome));
        let peak = finding.peak_bytes.unwrap_or_default();
        let bytes = self.strong(&size(peak));
        let (low, high) = (size(finding.low), size(finding.high));
        let phase = match finding.phase {
            "streaming" => " while it sends the response",
            "closing" => " while it closes the response",
            "after" => " after the response",
            _ => "",
        };
        if let Some(pid) = finding.killed {
            writeln!(self.text, "{verdict} held {bytes} when process {pid} was killed in the midst of it")?;
            writeln!(self.text, "      ({low} to {high}, by one request{phase})\n")?;
        } else {
            writeln!(self.text, "{verdict} takes {bytes} at once{condition}")?;
            let outlives = finding.left_bytes.unwrap_or_default() > peak / 2.0;
            let given_back = match finding.collected {
                Some(false) => "not given back yet: no full collection has run since",
                _ if outlives => "given back when the collector runs",
                _ => "given back when it ends",
            };
            writeln!(self.text, "      ({low} to {high}, by one request{phase}, {given_back})\n")?;
        }
        self.path(finding)?;
        let reached =
            |of: &Compared| format!("{} of {} {}", count(of.reached.unwrap_or(0)), count(of.requests), of.outcome);
        let reached: Vec<String> = finding.outcomes.iter().map(reached).collect();
        let level = size(finding.level_bytes.unwrap_or_default() as f64);
        let usual = size(finding.usual_bytes.unwrap_or_default() as f64);
        let who = if finding.outcome == "any" { "all" } else { "the others" };
        if reached.is_empty() {
            writeln!(self.text, "  usual    not known: no other request of this route has ended")?;
        } else {
            writeln!(self.text, "  reached  {level} by {}", reached.join(", "))?;
            writeln!(self.text, "  usual    half of {who} stayed below {usual}")?;
        }
        for socket in &finding.sockets {
            if socket.most_read as f64 >= peak * WORTH_READING {
                self.read(socket, who)?;
            }
        }
        if finding.killed.is_some() {
            return writeln!(self.text);
        }
        let rss_peak = finding.rss_peak.unwrap_or_default() as f64;
        let (rss, share) = (size(rss_peak), peak / rss_peak.max(1.0) * 100.0);
        let live = size(finding.live_bytes);
        writeln!(
            self.text,
            "  resident {rss} at most in this process: the balloon is {share:.0} % of it; {live} still live"
        )?;
        if finding.collected == Some(false) {
            writeln!(
                self.text,
                "  waiting  cycles wait for the collector, as an exception does that its own frame holds;"
            )?;
            writeln!(self.text, "           what lives on after gc.collect() is a leak")?;
        }
        writeln!(self.text)
    }

    /// What one request read from a peer, and what is usual.
    fn read(&mut self, socket: &Socket, who: &str) -> fmt::Result {
        let peer = match socket.peer.as_str() {
            "client" => "its client".to_owned(),
            "other" => "several peers".to_owned(),
            address => shorten(&printable(address), NAME),
        };
        let most = self.strong(&size(socket.most_read as f64));
        let for_nobody = match socket.most_after_client_left {
            0 => String::new(),
            bytes => format!(", {} of it after its client had left", size(bytes as f64)),
        };
        writeln!(self.text, "  read     {most} from {peer} in one request{for_nobody}")?;
        match socket.usual_read {
            0 => writeln!(self.text, "           (half of {who} read nothing from there)"),
            usual => writeln!(self.text, "           (half of {who} read less than {})", size(usual as f64)),
        }
    }

    fn retained(&mut self, finding: &Finding) -> fmt::Result {
        let kind = self.styled(AnsiColor::Yellow.on_default().bold(), "RETAINED");
        let bytes = finding.retained_bytes.unwrap_or_default();
        let python = finding.retained_by_python.unwrap_or_default();
        let kept = self.strong(&size(bytes as f64));
        let resident = size(finding.resident_bytes.unwrap_or_default() as f64);
        writeln!(self.text, "{kind}: {kept} of {resident} resident are free memory, and no leak")?;
        let (native, python) = (size((bytes - python.min(bytes)) as f64), size(python as f64));
        writeln!(self.text, "      (malloc keeps {native} of it and Python's small objects' allocator {python})\n")?;
        if let (Some(route), Some(peak)) = (&finding.route, finding.peak_bytes) {
            let route = self.strong(&shorten(&printable(route), NAME));
            writeln!(self.text, "  after    {route}, of which one request held {} at once", size(peak))?;
        }
        let pins = |site: &Site| {
            let place = format!("{}:{}", shorten(&short_file(&site.line.file), 40), site.line.line);
            format!("{place} in {} ({:.0} %)", printable(&site.line.function), site.share * 100.0)
        };
        let mut pinned_by = finding.sites.iter().take(3).map(pins);
        if let Some(first) = pinned_by.next() {
            writeln!(self.text, "  between  {} that live, of {first}", size(finding.live_bytes))?;
            pinned_by.try_for_each(|more| writeln!(self.text, "           and of {more}"))?;
        }
        for (at, remedy) in finding.remedies.iter().enumerate() {
            writeln!(self.text, "  {:<8} {remedy}", if at == 0 { "helps" } else { "" })?;
        }
        writeln!(self.text)
    }

    fn leak(&mut self, report: &Report, finding: &Finding) -> fmt::Result {
        let (verdict, condition) = (self.verdict(finding), condition(finding.outcome));
        let rate = self.strong(&format!("{} per request", size(finding.bytes_per_request.unwrap_or_default())));
        let (low, high) = (size(finding.low), size(finding.high));
        writeln!(self.text, "{verdict} leaves {rate} behind{condition}\n      ({low} to {high})\n")?;
        self.path(finding)?;
        if let Some(holder) = &finding.holder {
            writeln!(self.text, "  held by  {}", self.strong(&printable(&holder.text)))?;
            if let Some(bound) = holder.bound_bytes {
                writeln!(self.text, "           (bounded: it will hold {} when it is full)", size(bound))?;
            }
        }
        for (at, beside) in finding.beside.iter().take(3).enumerate() {
            let place =
                |line: &Line| format!("{} ({}:{})", line.function, shorten(&short_file(&line.file), 40), line.line);
            let by = beside.site.as_ref().map(|line| format!(" by {}", printable(&place(line)))).unwrap_or_default();
            let title = if at == 0 { "beside" } else { "" };
            writeln!(self.text, "  {title:<8} {} per request{by}", size(beside.bytes_per_request))?;
        }
        if let Some(lost) = finding.definitely_lost.filter(|lost| *lost >= WORTH_NAMING) {
            writeln!(self.text, "  lost     definitely: {:.0} % of it has no pointer to it left", lost * 100.0)?;
        }
        if finding.outcome != "any" {
            let grown: Vec<String> =
                finding.outcomes.iter().filter(|of| of.outcome != finding.outcome).map(grown).collect();
            if !grown.is_empty() {
                writeln!(self.text, "  others   {}", grown.join("; "))?;
            }
        }
        let kept = size(finding.live_bytes);
        writeln!(self.text, "  so far   {kept} after {} requests", count(finding.requests))?;
        if let (Some(seconds), Some(limit)) = (finding.limit_reached_in_seconds, report.rss.limit) {
            let limit = size(limit as f64);
            writeln!(self.text, "  outlook  the limit of {limit} is reached in {} at this pace", duration(seconds))?;
        }
        let certainty = finding.confidence * 100.0;
        let caution = match (finding.kind, finding.garbage) {
            ("garbage", _) => ":\n           in cycles that nothing refers to and no full collection has met yet",
            (_, Some("yes")) => ":\n           in cycles, and the collector is switched off",
            (_, Some("untested")) => ",\n           as it may be cyclic garbage that no full collection has met yet",
            _ => "",
        };
        writeln!(
            self.text,
            "  evidence {} live samples, spread evenly over the requests; {certainty:.0} % sure{caution}\n",
            count(finding.samples.unwrap_or_default() as u64),
        )
    }

    /// The way from the application's line inwards to the line that allocates; where the application has no part in it, as
    /// when a server closes a response, from a few calls outside.
    fn path(&mut self, finding: &Finding) -> fmt::Result {
        let python = finding.stack.iter().filter_map(|call| match call {
            Call::Python(line) => Some(line),
            Call::Native(_) => None,
        });
        let innermost_first: Vec<&Line> = python.collect();
        let own = finding.application.as_ref();
        let is_own = |line: &&Line| own.is_some_and(|own| (&own.file, own.line) == (&line.file, line.line));
        let depth = innermost_first.iter().position(is_own).map_or(innermost_first.len().min(PATH), |at| at + 1);
        let inwards: Vec<&Line> = innermost_first[..depth].iter().rev().copied().collect();
        if inwards.is_empty() && finding.blamed.is_none() {
            return writeln!(self.text, "  the stacks of these samples are not known");
        }
        for (at, line) in inwards.iter().enumerate() {
            let is_last = at + 1 == inwards.len();
            if at >= PATH - 1 && !is_last {
                if at == PATH - 1 {
                    writeln!(self.text, "    … {} more calls …", inwards.len() - PATH)?;
                }
                continue;
            }
            let place = format!("{}:{}", shorten(&short_file(&line.file), 60), line.line);
            let place = if at == 0 || is_last { self.strong(&place) } else { place };
            let arrow = if at == 0 { "" } else { "→ " };
            writeln!(self.text, "  {arrow}{place} in {}", printable(&line.function))?;
            if let Some(source) = (self.how.source)(&line.file, line.line).filter(|_| at == 0 || is_last) {
                let source: String = printable(source.trim()).chars().take(72).collect();
                let source = self.faint(&source);
                writeln!(self.text, "      {source}")?;
            }
        }
        if let Some(blamed) = &finding.blamed {
            let library = self.strong(&file_name(&blamed.library));
            let function = match &blamed.symbol {
                // Without its parameters.
                Some(symbol) => printable(symbol.split('(').next().unwrap_or_default()),
                None => format!("at {:#x}", blamed.offset),
            };
            let caller = match inwards.last() {
                Some(line) => format!("called from {}:{}", file_name(&line.file), line.line),
                None => "in a thread that runs no Python".to_owned(),
            };
            writeln!(self.text, "  in {library} {}, {caller}", shorten(&function, 60))?;
            if finding.origin_is_certain == Some(false) {
                writeln!(self.text, "  (objects of Python's may hold it: samples are too far apart to show them)")?;
            }
        } else if finding.origin_is_certain == Some(false) {
            writeln!(self.text, "  (a library that it calls may have taken it: native code was left out of stacks)")?;
        }
        for other in finding.sites.iter().skip(1).take(2) {
            let place = format!("{}:{}", shorten(&short_file(&other.line.file), 50), other.line.line);
            writeln!(
                self.text,
                "  and {:.0} % of it at {place} in {}",
                other.share * 100.0,
                printable(&other.line.function)
            )?;
        }
        writeln!(self.text)
    }

    fn watched(&mut self, report: &Report) -> fmt::Result {
        let target = &report.target;
        let serving = target.workers.iter().filter(|worker| worker.requests > 0).count();
        let server = if target.server.is_empty() { "a process" } else { &target.server };
        writeln!(
            self.text,
            "Watched {} on Python {}: {} in {}, {}, one sample in {}.",
            printable(server),
            printable(&target.python),
            plural(report.window.requests, "request"),
            duration(report.window.seconds),
            plural(serving as u64, "worker"),
            size(report.evidence.mean_interval_bytes),
        )?;
        let rss = &report.rss;
        let (start, now, peak) = (size(rss.start as f64), size(rss.now as f64), size(rss.peak as f64));
        let outside = size(report.unattributed.live_bytes);
        writeln!(
            self.text,
            "Resident {start} at first, {now} now, {peak} at most; {outside} live outside of requests."
        )?;
        if let Some(earlier) = rss.earlier {
            let earlier = size(earlier as f64);
            writeln!(self.text, "In use since before leakline came: {earlier}; by which lines is not known.")?;
        }
        match &rss.ledger {
            Some(ledger) => self.text.push_str(&ledger.text().unwrap_or_default()),
            None if target.workers.iter().any(|worker| worker.alive) => {
                writeln!(self.text, "What the resident memory is used for, only the server's user or root may see.")?;
            }
            // `leakline run` looks all the while, and so does `leakline attach --for`.
            None => writeln!(self.text, "What the resident memory was used for is not known: nobody looked in time.")?,
        }
        self.killed(&target.workers)?;
        let lost: Vec<String> = report
            .evidence
            .lost
            .iter()
            .filter(|(cause, _)| **cause != OTHER_INTERPRETERS)
            .map(|(cause, times)| format!("{} ({})", cause.replace('_', " "), count(*times)))
            .collect();
        if !lost.is_empty() {
            writeln!(self.text, "Lost: {}.", lost.join(", "))?;
        }
        if report.evidence.lost.contains_key(OTHER_INTERPRETERS) {
            let makes = match target.server.starts_with("uwsgi") {
                true => " Without --single-interpreter uWSGI makes one for each mount but the first.",
                false => "",
            };
            writeln!(self.text, "Not seen: requests that other interpreters of the same process serve.{makes}")?;
        }
        writeln!(self.text)
    }

    /// Those that did not end by themselves, and whether the kernel was out of memory then.
    fn killed(&mut self, processes: &[Process]) -> fmt::Result {
        let killed: Vec<&Process> = processes.iter().filter(|process| process.killed).collect();
        for process in killed.iter().take(KILLED) {
            let rss = size(process.rss as f64);
            let by = match process.oom_kills {
                Some(kills) if kills > 0 => {
                    format!("when the kernel's OOM killer ended {} of its control group", plural(kills, "process"))
                }
                _ => "by a signal".to_owned(),
            };
            let who = self.strong(&format!("Process {} was killed", process.pid));
            writeln!(self.text, "{who} {by}; it had {rss} resident when it was last seen.")?;
        }
        match killed.len().saturating_sub(KILLED) {
            0 => Ok(()),
            more => writeln!(self.text, "And {more} more were killed."),
        }
    }

    fn routes(&mut self, report: &Report) -> fmt::Result {
        if report.routes.is_empty() {
            return Ok(());
        }
        // Few servers see their clients leave.
        let any_aborted = report.routes.iter().any(|route| route.aborted > 0);
        let aborted = |text: String| if any_aborted { format!(" {text:>7}") } else { String::new() };
        let header = format!(
            "{:<NAME$} {:>9} {:>7}{} {:>9} {:>7} {:>7}",
            "route",
            "requests",
            "errors",
            aborted("aborted".to_owned()),
            "live",
            "p50",
            "p99"
        );
        writeln!(self.text, "{}", self.faint(&header))?;
        for route in report.routes.iter().take(ROUTES) {
            let time = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.0}ms"));
            writeln!(
                self.text,
                "{:<NAME$} {:>9} {:>7}{} {:>9} {:>7} {:>7}",
                shorten(&printable(&route.route), NAME),
                count(route.requests),
                count(route.error),
                aborted(count(route.aborted)),
                size(route.live_bytes),
                time(route.p50_ms),
                time(route.p99_ms),
            )?;
        }
        if let Some(more) = report.routes.len().checked_sub(ROUTES).filter(|&more| more > 0) {
            writeln!(self.text, "… and {more} more that hold less")?;
        }
        writeln!(self.text)
    }

    fn next_step(&mut self, report: &Report) -> fmt::Result {
        // What is retained is no fault of a line's.
        let first = report.findings.iter().find(|finding| finding.kind != "retained");
        let found = first.and_then(|finding| finding.application.as_ref().or(finding.site.as_ref()));
        match found {
            Some(line) => {
                let place = format!("{}:{}", file_name(&line.file), line.line);
                match first.map_or("", |finding| finding.kind) {
                    "balloon" => {
                        writeln!(self.text, "Next: see what {place} takes as a whole, and if it could do in parts.")
                    }
                    "cache" => {
                        writeln!(self.text, "Next: see if what {place} fills may grow as large as its bound says.")
                    }
                    "garbage" => {
                        writeln!(self.text, "Next: see which cycle {place} makes; gc.collect() frees what lies in it.")
                    }
                    _ => writeln!(self.text, "Next: see what {place} adds to, and what should take it away again."),
                }
            }
            None if report.findings.is_empty() && report.window.requests == 0 => {
                writeln!(
                    self.text,
                    "Next: let it serve requests, then report again. If it has served some, its server is none of those that\n\
                     leakline knows, which its README lists."
                )
            }
            None if report.findings.is_empty() => {
                writeln!(self.text, "Next: let it serve more requests for a finer answer, then report again.")
            }
            None if first.is_none() => {
                writeln!(self.text, "Next: if the resident set is too large, try what helps; nothing leaks here.")
            }
            None => writeln!(self.text, "Next: `--json` has all that is known of the samples' lines."),
        }
    }
}

fn condition(outcome: &str) -> &'static str {
    match outcome {
        "ok" => ", only when it succeeds",
        "error" => ", only when it fails",
        "aborted" => ", only when the client goes away",
        _ => "",
    }
}

/// `ok leaves 12 B at most (1,200 requests)`
fn grown(of: &Compared) -> String {
    let left = match (of.bytes_per_request, of.high) {
        (Some(0.0), Some(high)) => format!("leaves nothing, or {} at most", size(high)),
        (Some(bytes), _) => format!("leaves {}", size(bytes)),
        _ => "had too few requests to tell".to_owned(),
    };
    format!("{} {left} ({})", of.outcome, plural(of.requests, "request"))
}

/// `40.2 kB`: three digits, powers of a thousand.
pub fn size(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = bytes.max(0.0);
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1_000.0;
        unit += 1;
    }
    let digits = if unit == 0 || scaled >= 99.95 { 0 } else { 1 };
    format!("{scaled:.digits$} {}", units[unit])
}

/// `12,345`
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 request`, `1,200 requests`
pub fn plural(n: u64, thing: &str) -> String {
    let ending = match thing.ends_with('s') {
        _ if n == 1 => "",
        true => "es",
        false => "s",
    };
    format!("{} {thing}{ending}", count(n))
}

/// `3 h 20 min`: the two largest units.
fn duration(seconds: f64) -> String {
    let total = seconds.round().max(0.0) as u64;
    let (days, hours, minutes) = (total / 86_400, total / 3_600 % 24, total / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{total} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", total % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) if days < 100 => format!("{} {hours} h", plural(days, "day")),
        (days, ..) => plural(days, "day"),
    }
}

/// What follows `site-packages`, or the file as it is.
fn short_file(file: &str) -> String {
    let inside = ["/site-packages/", "/dist-packages/"].iter().find_map(|folder| file.rsplit_once(folder));
    printable(inside.map_or(file, |(_, inside)| inside))
}

/// The file without its folder.
fn file_name(file: &str) -> String {
    shorten(&printable(file.rsplit('/').next().unwrap_or_default()), NAME)
}

/// The end of a text that is too long: that is where names differ.
fn shorten(text: &str, columns: usize) -> String {
    let letters = text.chars().count();
    match letters > columns {
        true => "…".chars().chain(text.chars().skip(letters - columns + 1)).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [(190.4, "190 B"), (999.7, "1.0 kB"), (40_180.0, "40.2 kB"), (419e6, "419 MB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        let cases = [(32.0, "32 s"), (125.0, "2 min 5 s"), (12_000.0, "3 h 20 min"), (90_000.0, "1 day 1 h")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(f64::INFINITY), plural(u64::MAX / 86_400, "day"));
    }

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(shorten("/srv/app/views.py", 9), "…views.py");
    }
}
