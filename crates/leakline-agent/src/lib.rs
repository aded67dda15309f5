//! The agent: turns allocations inside a Python server into samples in a table file.
//!
//! ```text
//! hooks/native   malloc and its family, by LD_PRELOAD ──┐
//! hooks/mapping  mmap and its like, called by libraries ┤
//! hooks/python   PyMem obj and mem, 512 bytes or less ──┴► sampler ► recorder (one lock) ► table (leakline-table)
//! hooks/socket   recv, send and their like ───────────────► sockets ──┘
//! python/        what is known of CPython: its API, frames, free lists; how the agent gets in
//! native/        what is known of native code: modules, unwinding; the agent's own memory
//! stack          one stack of both
//! requests       begin, end, route: what the shim calls; the current request, a ContextVar
//! gunicorn       its hooks, which begin and end a request
//! wsgi           the application that other WSGI servers are given
//! response       what a WSGI server iterates over and closes, so that we learn of the closing
//! exchange       what an ASGI server awaits for one request
//! uvicorn, starlette, werkzeug   functions of theirs that are called for each request, in C's manner
//! threads        threads that a request starts work for it
//! fork           a child gets a table of its own
//! attach         how a command that came later brings the agent in, and out again
//! end            what ends by itself says so, so that the others are known to have been killed
//! snapshot       a copy of the process writes down all objects, when the command calls for it
//! ```
//!
//! The laws of this crate: hooks never allocate through themselves, never wait for long, never panic and never call
//! into Python for more than the current context's variable. When something is not as it is known, the server runs
//! without the agent.
#![allow(clippy::missing_safety_doc)]

mod attach;
mod clock;
mod config;
mod end;
mod exchange;
mod fork;
mod gunicorn;
mod hooks;
mod message;
mod native;
mod python;
mod recorder;
mod requests;
mod response;
mod sampler;
mod snapshot;
mod sockets;
mod stack;
mod starlette;
mod table;
mod threads;
mod uvicorn;
mod werkzeug;
mod wsgi;

/// Runs when the dynamic loader has loaded the agent: before the program's `main`, or in the middle of its life.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;

extern "C" fn on_load() {
    if !attach::came_with_the_program() {
        return;
    }
    hooks::native::resolve_all();
    hooks::mapping::resolve_all();
    hooks::socket::resolve_all();
    if !config::load() {
        return;
    }
    if python::api::load() {
        clock::prepare();
        native::prepare();
        fork::watch();
        sampler::await_interpreter();
    } else {
        // A program that carries no Python is none of our business: its hooks stay idle for good.
        table::remove_predecessor();
    }
}
