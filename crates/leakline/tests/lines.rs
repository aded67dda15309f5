//! Line tables are decoded as every CPython on this machine decodes its own: for each instruction of each function of
//! some modules of the standard library, the interpreter's answer is the truth.
use std::path::PathBuf;
use std::process::Command;

use leakline::symbols;
use serde::Deserialize;

/// Prints, for each code object in some modules, its table and the line of each of its instructions. Lines come from
/// `co_lines`, or from `dis.findlinestarts` where that is missing (3.9 and earlier).
const DUMP: &str = r#"
import dis, json, sys, types

def lines(code):
    if hasattr(code, "co_lines"):
        for start, end, line in code.co_lines():
            for offset in range(start, end, 2):
                yield offset, line
    else:
        starts, line = dict(dis.findlinestarts(code)), code.co_firstlineno
        for offset in range(0, len(code.co_code), 2):
            line = starts.get(offset, line)
            yield offset, line

def dump(code):
    table = code.co_linetable if hasattr(code, "co_linetable") else code.co_lnotab
    print(json.dumps({"name": code.co_name, "first_line": code.co_firstlineno, "table": list(table),
                      "lines": list(lines(code))}))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            dump(constant)

for name in "argparse", "inspect", "typing", "dataclasses", "asyncio.base_events", "json.decoder":
    module = __import__(name, fromlist=["_"])
    with open(module.__file__, encoding="utf-8") as source:
        dump(compile(source.read(), name, "exec"))
"#;

#[derive(Deserialize)]
struct Code {
    name: String,
    first_line: u32,
    table: Vec<u8>,
    lines: Vec<(u32, Option<u32>)>,
}

/// Every interpreter there is: pyenv's and the system's.
fn pythons() -> Vec<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv")));
    let versions = root.and_then(|root| root.join("versions").read_dir().ok());
    let own = versions.into_iter().flatten().flatten().map(|version| version.path().join("bin/python3"));
    own.chain([PathBuf::from("/usr/bin/python3")]).filter(|python| python.exists()).collect()
}

/// Not every folder among pyenv's holds a CPython that we know.
fn minor_version(python: &PathBuf) -> Option<u8> {
    let script = "import sys; print(sys.implementation.name, *sys.version_info[:2])";
    let output = Command::new(python).args(["-c", script]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().strip_prefix("cpython 3 ")?.parse().ok().filter(|minor| (7..=13).contains(minor))
}

#[test]
fn every_instruction_has_the_line_that_its_own_interpreter_gives_it() {
    let mut compared_pythons = 0;
    for python in pythons() {
        let Some(minor) = minor_version(&python) else { continue };
        let output = Command::new(&python).args(["-c", DUMP]).output().expect("an interpreter that ran runs again");
        assert!(output.status.success(), "{}: {}", python.display(), String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let mut instructions = 0;
        for code in text.lines() {
            let code: Code = serde_json::from_str(code).expect("what DUMP prints");
            for (offset, truth) in code.lines {
                let decoded = symbols::line(minor, &code.table, code.first_line, offset);
                assert_eq!(decoded, truth, "3.{minor} {} at {offset}, first line {}", code.name, code.first_line);
                instructions += 1;
            }
        }
        assert!(instructions > 10_000, "3.{minor}: only {instructions} instructions were compared");
        println!("3.{minor}: {instructions} instructions");
        compared_pythons += 1;
    }
    assert!(compared_pythons > 0, "no Python to compare with");
}

#[test]
fn a_table_of_any_bytes_is_decoded_without_harm() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..20_000 {
        let length = random.usize(..200);
        let table: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        for minor in 7..=13 {
            symbols::line(minor, &table, random.u32(..), random.u32(..2000));
        }
    }
}
