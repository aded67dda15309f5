//! Turns stacks into the two lines that a reader wants: where the bytes were allocated, and the innermost line of the
//! application's own code on the way there.
use std::collections::HashSet;

use super::evidence::{Evidence, Frame};

/// Files that only an installed package has. Where one of them turns up outside of any `site-packages`, its folder holds
/// libraries all the same: that is how `pip install --target` leaves them. Mere package names would not do, for people
/// keep their own code in folders called `flask`.
const PACKAGE_MARKS: [&str; 7] = [
    "/werkzeug/serving.py",
    "/werkzeug/wrappers/",
    "/gunicorn/workers/",
    "/gunicorn/app/",
    "/waitress/task.py",
    "/django/core/handlers/",
    "/starlette/middleware/",
];

/// Tells the application's own files from those of libraries.
pub struct Libraries {
    roots: HashSet<String>,
}

impl Libraries {
    /// Learns from all stacks which folders hold installed packages.
    pub fn of(evidence: &Evidence) -> Self {
        let frames = evidence.workers.iter().flat_map(|worker| worker.stacks.iter().flatten());
        let roots = frames.filter_map(|frame| package_root(&frame.file)).map(str::to_owned).collect();
        Self { roots }
    }

    /// The innermost frame that is the application's own, if there is one. Frames come innermost first.
    pub fn application<'a>(&self, stack: &'a [Frame]) -> Option<&'a Frame> {
        stack.iter().find(|frame| !self.holds(&frame.file))
    }

    fn holds(&self, file: &str) -> bool {
        // `<frozen importlib._bootstrap>`, `<string>`, the code that the agent brings along.
        file.starts_with('<')
            || file.is_empty()
            || is_installed(file)
            || is_console_script(file)
            || self.roots.iter().any(|root| file.starts_with(root.as_str()))
    }
}

/// The standard library and everything below `site-packages` or `dist-packages`.
fn is_installed(file: &str) -> bool {
    file.contains("/site-packages/")
        || file.contains("/dist-packages/")
        || ["/lib/python3", "/lib64/python3"]
            .iter()
            .filter_map(|marker| file.split_once(marker))
            .any(|(_, rest)| rest.starts_with(['.', '/']) || rest.is_empty())
}

/// `bin/gunicorn`: the few lines that an installer writes to start a package.
fn is_console_script(file: &str) -> bool {
    let mut parts = file.rsplit('/');
    let name = parts.next().unwrap_or_default();
    !name.ends_with(".py") && matches!(parts.next(), Some("bin" | "sbin"))
}

/// The folder, with its last slash, that holds the server package which this file belongs to.
fn package_root(file: &str) -> Option<&str> {
    if is_installed(file) {
        return None;
    }
    PACKAGE_MARKS.iter().find_map(|mark| file.find(mark)).map(|at| &file[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::evidence::Worker;

    fn frame(file: &str) -> Frame {
        Frame { file: file.into(), function: "f".into(), line: 1 }
    }

    fn application(files: &[&str]) -> Option<String> {
        let stack: Vec<Frame> = files.iter().map(|file| frame(file)).collect();
        let evidence = Evidence { workers: vec![Worker { stacks: vec![stack.clone()], ..Worker::default() }] };
        Libraries::of(&evidence).application(&stack).map(|frame| frame.file.clone())
    }

    #[test]
    fn the_application_is_the_innermost_line_outside_of_libraries() {
        let stack = [
            "/venv/lib/python3.11/site-packages/codetiming/_timers.py",
            "/usr/lib/python3.11/contextlib.py",
            "<frozen importlib._bootstrap>",
            "/srv/shop/views.py",
            "/srv/shop/app.py",
            "/venv/lib/python3.11/site-packages/flask/app.py",
            "/venv/bin/gunicorn",
        ];
        assert_eq!(application(&stack).as_deref(), Some("/srv/shop/views.py"));
    }

    #[test]
    fn a_stack_of_libraries_alone_has_no_application() {
        assert_eq!(
            application(&["/venv/lib/python3.8/site-packages/gunicorn/http/body.py", "/venv/bin/gunicorn"]),
            None
        );
    }

    #[test]
    fn packages_installed_outside_of_site_packages_are_known_by_their_neighbours() {
        let stack = ["/opt/deps/codetiming/_timers.py", "/srv/app.py", "/opt/deps/werkzeug/serving.py"];
        assert_eq!(application(&stack).as_deref(), Some("/srv/app.py"));
    }

    #[test]
    fn a_folder_that_merely_begins_like_the_standard_library_is_the_applications() {
        assert_eq!(application(&["/srv/lib/python3tools/app.py"]).as_deref(), Some("/srv/lib/python3tools/app.py"));
    }
}
