//! Turns the native code that ran inside of a line of Python into the library and function to blame: the innermost frame
//! that is neither an allocator nor CPython itself.
use super::evidence::{NativeFrame, Role};

/// How memory came from a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Taken {
    /// A module of Python's own standard library took it: Python's code by another name.
    ByPython,
    /// The library asked CPython for it: it made objects, or what objects hold.
    ThroughPython,
    /// The library took it by itself, and nobody but itself can free it.
    ByItself,
}

/// A library's function that took memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blamed {
    /// The library's file, as the process saw it.
    pub library: String,
    /// The function; `None` where the file does not say.
    pub symbol: Option<String>,
    /// Where the call is: in the function, or in the library where the function is not known; bytes.
    pub offset: u64,
    /// How the memory was taken.
    pub taken: Taken,
}

impl Blamed {
    /// Whom to blame for what these frames, innermost first, have taken; `None` where it was CPython alone.
    pub fn of(frames: &[NativeFrame]) -> Option<Self> {
        let at = frames.iter().position(|frame| !is_plumbing(frame))?;
        let (inside, outwards) = frames.split_at(at);
        let innermost = &outwards[0];
        let taken = if is_of_standard_library(&innermost.library) {
            Taken::ByPython
        } else if inside.iter().any(|frame| frame.role == Role::Interpreter) {
            Taken::ThroughPython
        } else {
            Taken::ByItself
        };
        // A library's own wrapper around malloc names nothing: of its frames in a row, the first that does.
        let in_a_row = || outwards.iter().take_while(|frame| frame.library == innermost.library);
        let named = in_a_row().find(|frame| frame.symbol.as_deref().is_some_and(|symbol| !allocates(symbol)));
        let frame = named.or_else(|| in_a_row().find(|frame| frame.symbol.is_some())).unwrap_or(innermost);
        Some(Self { library: frame.library.clone(), symbol: frame.symbol.clone(), offset: frame.offset, taken })
    }

    /// The library's file, without its folder.
    pub fn library_name(&self) -> &str {
        file_name(&self.library)
    }
}

/// Code that allocates on behalf of others: malloc's library, CPython, the runtimes of C and C++.
fn is_plumbing(frame: &NativeFrame) -> bool {
    const RUNTIMES: [&str; 8] =
        ["ld-linux", "libc.so", "libc-2.", "libgcc_s.so", "libm.so", "libpthread", "libstdc++.so", "linux-vdso"];
    let name = file_name(&frame.library);
    let is_python = name.strip_prefix("python").is_some_and(|rest| rest.is_empty() || rest.starts_with('3'));
    let is_new = frame.symbol.as_deref().is_some_and(|symbol| symbol.starts_with("operator new"));
    frame.role != Role::Library || is_python || is_new || RUNTIMES.iter().any(|runtime| name.starts_with(runtime))
}

/// `/usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so`
fn is_of_standard_library(library: &str) -> bool {
    library.contains("/lib-dynload/")
}

/// Does a function only pass an allocation on, as its name has it? Parameters of its type do not count.
fn allocates(symbol: &str) -> bool {
    let name = symbol.trim_start_matches('<').split(['(', '<']).next().unwrap_or_default();
    let standard = ["std::", "__gnu_cxx::", "alloc::", "core::"];
    let lower = name.to_ascii_lowercase();
    standard.iter().any(|space| name.starts_with(space)) || lower.contains("alloc") || lower.contains("getmem")
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON: (&str, Role) = ("/usr/lib/libpython3.13.so.1.0", Role::Interpreter);
    const LIBC: (&str, Role) = ("/lib/x86_64-linux-gnu/libc.so.6", Role::Allocator);

    fn blamed(frames: &[((&str, Role), &str)]) -> Option<(String, String, Taken)> {
        let frame = |&((library, role), symbol): &((&str, Role), &str)| NativeFrame {
            library: library.into(),
            symbol: (!symbol.is_empty()).then(|| symbol.into()),
            offset: 16,
            role,
        };
        let frames: Vec<NativeFrame> = frames.iter().map(frame).collect();
        let blamed = Blamed::of(&frames)?;
        Some((blamed.library_name().to_owned(), blamed.symbol.unwrap_or_default(), blamed.taken))
    }

    fn library(path: &str) -> (&str, Role) {
        (path, Role::Library)
    }

    #[test]
    fn the_innermost_library_is_blamed_by_the_function_behind_its_allocator() {
        let (hpdf, ctypes) =
            (library("/usr/lib/libhpdf.so.2.3.0"), library("/usr/lib/python3.13/lib-dynload/_ctypes.so"));
        let frames = [(LIBC, "strdup"), (hpdf, ""), (hpdf, "HPDF_GetMem"), (hpdf, "HPDF_Stream_New"), (ctypes, "call")];
        let expected = ("libhpdf.so.2.3.0".to_owned(), "HPDF_Stream_New".to_owned(), Taken::ByItself);
        assert_eq!(blamed(&frames), Some(expected));
    }

    #[test]
    fn objects_that_a_library_makes_are_taken_through_python() {
        let json = library("/venv/site-packages/ujson.so");
        let frames = [(PYTHON, "PyObject_Malloc"), (PYTHON, "PyUnicode_New"), (json, "decode"), (PYTHON, "cfunction")];
        assert_eq!(blamed(&frames), Some(("ujson.so".to_owned(), "decode".to_owned(), Taken::ThroughPython)));
    }

    #[test]
    fn pythons_own_modules_are_python() {
        let json = library("/usr/lib/python3.13/lib-dynload/_json.cpython-313-x86_64-linux-gnu.so");
        let frames = [(PYTHON, "PyDict_New"), (json, "scan_once"), (PYTHON, "cfunction")];
        assert_eq!(blamed(&frames).unwrap().2, Taken::ByPython);
        assert_eq!(blamed(&[(LIBC, ""), (library("/usr/bin/python3.13"), "main")]), None);
    }

    #[test]
    fn the_standard_library_of_cpp_blames_who_uses_it() {
        let (cpp, own) = (library("/usr/lib/libstdc++.so.6"), library("/venv/parser.so"));
        let vector = "std::vector<int, std::allocator<int> >::_M_realloc_insert<int>(int&&)";
        let parse = "parse(std::basic_string<char, std::char_traits<char>, std::allocator<char> > const&)";
        let frames = [(cpp, "operator new(unsigned long)"), (own, vector), (own, parse)];
        assert_eq!(blamed(&frames), Some(("parser.so".to_owned(), parse.to_owned(), Taken::ByItself)));
        assert_eq!(blamed(&[(own, ""), (own, "")]), Some(("parser.so".to_owned(), String::new(), Taken::ByItself)));
    }
}
