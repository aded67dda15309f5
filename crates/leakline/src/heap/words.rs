//! The way to an object in Python's words: `module app → users_list: list[2,500,000]`.
use super::graph::{Graph, Node, Root};
use crate::printable::printable;
use crate::report::count;

/// A way in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// Each step for itself, the root first.
    pub path: Vec<String>,
    /// The whole, with what stands at its end.
    pub text: String,
    /// The path without numbers of items, by which the same way is known in another snapshot.
    pub place: String,
}

/// Tells what an object is called by itself.
type Namer = fn(&Graph, Node) -> String;

/// Steps that are told; of a longer way those in the middle are left out.
const MOST_STEPS: usize = 10;
/// What an object's attributes are in.
const DICT: &str = "__dict__";

/// The shortest way to an object in words. It begins at the last module, class, cache or task on the way: what leads there
/// is known to whoever knows that.
pub fn words(graph: &Graph, node: Node) -> Words {
    let (path, was_named) = way(graph, node, thing);
    let (place, _) = way(graph, node, name);
    let mut text = path.join(" → ");
    if was_named && path.last().is_none_or(|last| *last != thing(graph, node)) {
        text += &format!(": {}", thing(graph, node));
    }
    Words { path, text, place: place.join(" → ") }
}

/// The steps of the way, and whether any of them has a name of its own.
fn way(graph: &Graph, node: Node, called: Namer) -> (Vec<String>, bool) {
    let (root, why, steps) = graph.way(node);
    let start = steps.iter().rposition(|(_, node)| is_landmark(graph, *node)).map_or(0, |at| at + 1);
    let first = if start == 0 { root } else { steps[start - 1].1 };
    let mut path = vec![match (start, why) {
        (0, Root::Unknown) if !is_landmark(graph, root) => format!("{}: {}", OUTSIDE, called(graph, first)),
        (0, Root::Nobody) => format!("{}: {}", GARBAGE, called(graph, first)),
        _ if is_coroutine(graph.type_name(first)) => coroutine(graph, first),
        _ => called(graph, first),
    }];
    let mut holder = first;
    let mut was_named = false;
    for (edge, target) in &steps[start..] {
        let name = edge.name.map(|name| printable(&graph.heap.names[name as usize]));
        was_named |= step(graph, holder, name, *target, called, &mut path);
        holder = *target;
    }
    if path.len() > MOST_STEPS {
        path.splice(MOST_STEPS / 2..path.len() - MOST_STEPS / 2, ["…".to_owned()]);
    }
    (path, was_named)
}

/// Tells of one step. False where there is nothing to tell: what leads only from an object to the inside of it.
fn step(
    graph: &Graph,
    holder: Node,
    name: Option<String>,
    target: Node,
    called: Namer,
    path: &mut Vec<String>,
) -> bool {
    let (of, into) = (graph.type_name(holder), graph.type_name(target));
    if name.as_deref() == Some(DICT) || is_inside(graph, holder, target) {
        return false;
    }
    // What it is says more than what it is called.
    let is_shown = is_context(into) || into == LOCAL;
    match name {
        _ if into == "traceback" => path.push("exception traceback".to_owned()),
        _ if into == "frame" => path.push(called(graph, target)),
        Some(name) if of == "frame" || is_coroutine(of) => path.push(format!("frame local '{name}'")),
        Some(name) if is_mapping(graph, holder) => push(path, &format!("['{name}']")),
        Some(name) => path.push(name),
        None if graph.object(holder).length.is_some() => push(path, "[…]"),
        None if is_shown => {}
        None => path.push(called(graph, target)),
    }
    if is_shown {
        path.push(called(graph, target));
    }
    true
}

/// Is what stands at the end of this step a part of what stands at its beginning, and of no interest by itself? The frame
/// of a generator (an object of its own before 3.11), the next frame of a traceback, the tree that a context keeps its
/// values in, the dicts of a `threading.local`.
fn is_inside(graph: &Graph, holder: Node, target: Node) -> bool {
    let (of, into) = (graph.type_name(holder), graph.type_name(target));
    (is_coroutine(of) && into == "frame")
        || (of == "traceback" && into == "traceback")
        || (into.starts_with("hamt") && (is_context(of) || of.starts_with("hamt")))
        || is_dict_of_local(graph, target)
}

/// A `threading.local` has a dict of dicts, one for each thread.
fn is_dict_of_local(graph: &Graph, node: Node) -> bool {
    let is_dict = |node: &Node| graph.type_name(*node) == "dict";
    let dict = graph.before(node).filter(|_| is_dict(&node));
    let above = |node: Node| graph.type_name(node) == LOCAL;
    dict.is_some_and(|dict| above(dict) || is_dict(&dict) && graph.before(dict).is_some_and(above))
}

fn push(path: &mut [String], index: &str) {
    if let Some(last) = path.last_mut() {
        last.push_str(index);
    }
}

/// Where a way may begin.
fn is_landmark(graph: &Graph, node: Node) -> bool {
    let of = graph.type_name(node);
    of == "module" || of == LRU_CACHE || is_coroutine(of) || graph.object(node).is_class
}

/// `tp_name` of what `functools.lru_cache` returns.
const LRU_CACHE: &str = "functools._lru_cache_wrapper";
/// `tp_name` of `threading.local`.
const LOCAL: &str = "_thread._local";
/// What more references lead to than objects have.
const OUTSIDE: &str = "unknown holder outside of all objects (a frame that runs or a C extension)";
/// What no reference leads to.
const GARBAGE: &str = "nobody (garbage to be collected)";

fn is_coroutine(of: &str) -> bool {
    matches!(of, "coroutine" | "generator" | "async_generator")
}

fn is_context(of: &str) -> bool {
    of.trim_start_matches("_contextvars.") == "Context"
}

/// The dict of an object's attributes, or of a module's variables.
fn is_attributes(graph: &Graph, node: Node) -> bool {
    let owner = graph.before(node).map(|before| {
        graph.edges(before).any(|(edge, target)| {
            target == node && edge.name.is_some_and(|name| graph.heap.names[name as usize] == DICT)
        })
    });
    owner.unwrap_or(false)
}

/// A coroutine that a task runs is told of as the task, with what it waits for: `Task <handler> awaiting Future`.
fn coroutine(graph: &Graph, node: Node) -> String {
    let Some(_) = graph.before(node).filter(|task| graph.type_name(*task).ends_with("Task")) else {
        return thing(graph, node);
    };
    let name = graph.label(node).map_or("coroutine".to_owned(), printable);
    // What it awaits lies on its stack, without a name; before 3.11 in a frame of its own.
    let frame = graph.edges(node).map(|(_, target)| target).find(|target| graph.type_name(*target) == "frame");
    let on_stack = graph.edges(frame.unwrap_or(node)).filter(|(edge, _)| edge.name.is_none());
    let awaited = on_stack.map(|(_, target)| target).find(|target| is_awaitable(graph.type_name(*target)));
    let awaited = awaited.map(|awaited| match graph.label(awaited) {
        Some(label) => printable(label),
        // `_asyncio.FutureIter` stands for the future.
        None => printable(last_part(graph.type_name(awaited)).trim_end_matches("Iter")),
    });
    awaited.map_or_else(|| format!("Task <{name}>"), |awaited| format!("Task <{name}> awaiting {awaited}"))
}

fn is_awaitable(of: &str) -> bool {
    is_coroutine(of) || of.ends_with("Task") || of.ends_with("Future") || of.ends_with("FutureIter")
}

fn last_part(of: &str) -> &str {
    of.rsplit('.').next().unwrap_or(of)
}

/// Are its items told by their keys? Not those of a dict that stands for an object's attributes, or a module's variables.
fn is_mapping(graph: &Graph, node: Node) -> bool {
    let of = graph.type_name(node);
    graph.object(node).length.is_some()
        && (of.to_lowercase().contains("dict") || of.contains("Counter"))
        && !is_attributes(graph, node)
        && !is_dict_of_local(graph, node)
}

/// What an object is called by itself, with the number of its items: `module app`, `class app.Timer`, `list[3]`.
pub fn thing(graph: &Graph, node: Node) -> String {
    let name = name(graph, node);
    if graph.type_name(node) == LRU_CACHE {
        return match entries(graph, node) {
            None => name,
            Some(1) => name + " (1 entry)",
            Some(entries) => format!("{name} ({} entries)", count(entries)),
        };
    }
    match (graph.label(node), graph.object(node).length, graph.object(node).bound) {
        (None, Some(length), Some(bound)) => format!("{name}[{} of at most {}]", count(length), count(bound)),
        (None, Some(length), None) => format!("{name}[{}]", count(length)),
        _ => name,
    }
}

/// The same without the number of items: `list`, `functools.lru_cache(maxsize=None) on app.price`.
fn name(graph: &Graph, node: Node) -> String {
    let of = printable(match graph.type_name(node) {
        LRU_CACHE => return lru_cache(graph, node),
        LOCAL => "threading.local",
        of if is_context(of) => "contextvars.Context",
        of => of,
    });
    match graph.label(node).map(printable) {
        Some(label) if graph.object(node).is_class => format!("class {label}"),
        Some(label) if of == "frame" => format!("frame of {label}"),
        Some(label) => format!("{of} {label}"),
        None => of,
    }
}

fn lru_cache(graph: &Graph, node: Node) -> String {
    let size = graph.object(node).bound.map_or("None".to_owned(), |bound| bound.to_string());
    let function = graph.edges(node).find(|(_, target)| graph.type_name(*target) == "function");
    let function = function.and_then(|(_, target)| graph.label(target)).map_or("a function".to_owned(), printable);
    format!("functools.lru_cache(maxsize={size}) on {function}")
}

/// The items that a container holds; of a cache those of its dict.
pub fn entries(graph: &Graph, node: Node) -> Option<u64> {
    if graph.type_name(node) != LRU_CACHE {
        return graph.object(node).length;
    }
    let dicts = graph.edges(node).filter(|(edge, target)| edge.name.is_none() && graph.type_name(*target) == "dict");
    dicts.filter_map(|(_, dict)| graph.object(dict).length).max()
}
