//! Says one line on stderr, without allocating.

use crate::attach;

/// Says why the server runs without the agent, once for a process and those it starts. Whoever attached to the process
/// is told instead of its log.
pub(crate) fn refuse(reason: &str, detail: &str) {
    if attach::refuse(reason, detail) {
        return;
    }
    const TOLD: &std::ffi::CStr = c"LEAKLINE_REFUSED";
    // SAFETY: C strings; the process is about to start, or holds the GIL, as it does for os.putenv.
    unsafe {
        if !libc::getenv(TOLD.as_ptr()).is_null() {
            return;
        }
        libc::setenv(TOLD.as_ptr(), c"1".as_ptr(), 1);
    }
    say(&["leakline: the server runs without the agent: ", reason, detail, "\n"]);
}

/// Writes the parts to stderr with one system call, so that lines of several processes do not mix.
pub(crate) fn say(parts: &[&str]) {
    let mut line = [0; 512];
    let mut length = 0;
    for part in parts {
        let bytes = &part.as_bytes()[..part.len().min(line.len() - length)];
        line[length..length + bytes.len()].copy_from_slice(bytes);
        length += bytes.len();
    }
    // SAFETY: a buffer on the stack with its length. A message that cannot be written is given up.
    unsafe { libc::write(2, line.as_ptr().cast(), length) };
}
