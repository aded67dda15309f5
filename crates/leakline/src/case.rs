//! Turns the folder `cases/`, which the command carries in itself, into servers that can be started and driven: each a
//! small application, its requirements, its command line and its traffic.
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Command;

use include_dir::{Dir, DirEntry, include_dir};
use serde::Deserialize;

use crate::drive::plan::Plan;

pub mod service;

static CASES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../cases");

/// A server with known behaviour.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its folder within `cases/`: `user-list`, `healthy/sessions`; where the folder's command names a `{module}`, and each
    /// module that expects something is a case, the module too: `holders/lru_cache`.
    pub name: String,
    /// What it shows, in one sentence.
    pub story: String,
    /// The Pythons that the tests run it on: `3.11`, or `system` for the one in `/usr/bin`.
    pub pythons: Vec<String>,
    /// What pip has to install, as a requirements file.
    pub requirements: &'static str,
    /// That file's name in the folder.
    pub requirements_file: String,
    /// Debian's packages that have to be installed beside.
    pub packages: Vec<String>,
    /// What `leakline run` is told besides the server's command.
    pub options: Vec<String>,
    /// The traffic that brings out its behaviour.
    pub traffic: Plan,
    command: String,
    /// What has to run beside the server, without leakline.
    service: Option<String>,
    /// The same at the size that the story had.
    large_service: Option<String>,
    without_packages: Option<WithoutPackages>,
    folder: &'static Dir<'static>,
    /// Without its `.py`.
    module: Option<String>,
}

/// `case.toml`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    story: String,
    pythons: Vec<String>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
    command: String,
    service: Option<String>,
    large_service: Option<String>,
    without_packages: Option<WithoutPackages>,
}

/// What a case is where Debian's packages can't be installed: it does without them, and without its service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WithoutPackages {
    requirements: String,
    command: String,
}

impl Case {
    /// Every case, by name.
    pub fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        let mut folders = vec![&CASES];
        while let Some(folder) = folders.pop() {
            match folder.get_file(folder.path().join("case.toml")) {
                Some(_) => cases.extend(Case::in_folder(folder)),
                None => folders.extend(folder.dirs()),
            }
        }
        cases.sort_by(|one, other| one.name.cmp(&other.name));
        cases
    }

    fn in_folder(folder: &'static Dir<'static>) -> Vec<Case> {
        let case = Case::new(folder);
        if !case.command.contains("{module}") {
            return vec![case];
        }
        let modules = case.sources().filter(|(_, text)| text.contains("# expect: "));
        let modules = modules.filter_map(|(path, _)| path.file_stem()?.to_str());
        modules.map(|module| case.clone().of_module(module)).collect()
    }

    fn of_module(mut self, module: &str) -> Case {
        self.name = format!("{}/{module}", self.name);
        self.command = self.command.replace("{module}", module);
        self.module = Some(module.to_owned());
        self
    }

    fn new(folder: &'static Dir<'static>) -> Case {
        let requirements_file = "requirements.txt".to_owned();
        let description: Description = toml::from_str(text(folder, "case.toml")).expect("case.toml is sound");
        let traffic = Plan::parse(text(folder, "traffic.toml")).expect("traffic.toml is sound");
        Case {
            name: folder.path().to_string_lossy().into_owned(),
            story: description.story,
            pythons: description.pythons,
            requirements: text(folder, &requirements_file),
            requirements_file,
            packages: description.packages,
            options: description.options,
            traffic,
            command: description.command,
            service: description.service,
            large_service: description.large_service,
            without_packages: description.without_packages,
            folder,
            module: None,
        }
    }

    /// Its folder within `cases/`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The case as it is where Debian's packages can't be installed, if it can do without.
    pub fn without_packages(&self) -> Option<Case> {
        let without = self.without_packages.clone()?;
        Some(Case {
            requirements: text(self.folder, &without.requirements),
            requirements_file: without.requirements,
            packages: Vec::new(),
            command: without.command,
            service: None,
            ..self.clone()
        })
    }

    /// The case at the size that its story had, if that is larger.
    pub fn large(&self) -> Option<Case> {
        Some(Case { service: Some(self.large_service.clone()?), ..self.clone() })
    }

    /// Are the packages that it needs installed?
    pub fn has_packages(&self) -> bool {
        self.packages.iter().all(|package| {
            let status = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
            status.is_ok_and(|status| status.stdout.ends_with(b" installed"))
        })
    }

    /// The server's command line with this Python and this port of 127.0.0.1; where the case has a service, at its port.
    pub fn command(&self, python: &Path, port: u16, service_port: Option<u16>) -> Vec<OsString> {
        words(&self.command, python, &[("{port}", Some(port)), ("{service_port}", service_port)])
    }

    /// The Python files that say what it does: name and text.
    pub fn sources(&self) -> impl Iterator<Item = (&'static Path, &'static str)> {
        let files = self.folder.files().filter(|file| file.path().extension().is_some_and(|kind| kind == "py"));
        let files = files.filter(|file| {
            self.module.as_deref().is_none_or(|module| file.path().file_stem().is_some_and(|stem| stem == module))
        });
        files.map(|file| (file.path(), file.contents_utf8().expect("cases are written in UTF-8")))
    }

    /// Writes its files into `folder`, which exists.
    pub fn unpack(&self, folder: &Path) -> io::Result<()> {
        for entry in self.folder.entries() {
            // A case is flat; where it was run in place, only Python's own cache of bytecode lies beside the files.
            if let DirEntry::File(file) = entry {
                let name = file.path().file_name().expect("a file has a name");
                std::fs::write(folder.join(name), file.contents())?;
            }
        }
        Ok(())
    }
}

/// The text of a case's file. The contents of a case were fixed when the command was built, and a test opens every one.
fn text(folder: &'static Dir<'static>, file: &str) -> &'static str {
    let file = folder.get_file(folder.path().join(file)).unwrap_or_else(|| panic!("{folder:?} lacks {file}"));
    file.contents_utf8().expect("cases are written in UTF-8")
}

/// A command line in words, with the Python and the ports put in.
fn words(line: &str, python: &Path, ports: &[(&str, Option<u16>)]) -> Vec<OsString> {
    let put = |word: &str| {
        ports.iter().fold(word.to_owned(), |word, (name, port)| match port {
            Some(port) => word.replace(name, &port.to_string()),
            None => word,
        })
    };
    line.split(' ').map(|word| if word == "python" { python.into() } else { put(word).into() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_whole_and_its_traffic_can_be_made() {
        let cases = Case::all();
        for case in &cases {
            case.traffic.check().unwrap_or_else(|error| panic!("{}: {error}", case.name));
            assert!(case.sources().any(|(_, text)| text.contains("# expect: ")), "{} expects nothing", case.name);
            let command = case.command(Path::new("/usr/bin/python3"), 8123, Some(8124));
            assert!(command.iter().any(|word| word.to_string_lossy().contains("8123")), "{} has no port", case.name);
            let (without, large) = (case.without_packages(), case.large());
            assert_eq!(without.is_some(), case.name == "story-site");
            assert!(without.is_none_or(|case| case.has_packages() && case.service.is_none()));
            assert_eq!(large.and_then(|case| case.service).is_some(), case.name == "s3-proxy");
        }
        assert!(cases.iter().any(|case| case.name == "user-list"));
        assert!(cases.iter().filter(|case| case.name.starts_with("healthy/")).count() >= 8);
    }
}
