//! The way to an object in Python's words: `module app → users_list: list[2,500,000]`.
use super::graph::{Graph, Node, Root};
use crate::reader::printable;
use crate::report::count;

/// A way in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// Each step for itself, the root first.
    pub path: Vec<String>,
    /// The whole, with what stands at its end.
    pub text: String,
}

/// Steps that are told; of a longer way those in the middle are left out.
const MOST_STEPS: usize = 10;
/// What an object's attributes are in.
const DICT: &str = "__dict__";

/// The shortest way to an object in words. It begins at the last module, class, cache or task on the way: what leads there
/// is known to whoever knows that.
pub fn words(graph: &Graph, node: Node) -> Words {
    let (root, why, steps) = graph.way(node);
    let start = steps.iter().rposition(|(_, node)| is_landmark(graph, *node)).map_or(0, |at| at + 1);
    let first = if start == 0 { root } else { steps[start - 1].1 };
    let mut path = vec![match (start, why) {
        (0, Root::Unknown) if !is_landmark(graph, root) => {
            format!("held from outside of all objects (a frame that runs, a C extension): {}", thing(graph, first))
        }
        (0, Root::Nobody) => format!("held by nothing (garbage to be collected): {}", thing(graph, first)),
        _ => thing(graph, first),
    }];
    let mut holder = first;
    let mut in_attributes = false;
    let mut was_named = false;
    for (edge, target) in &steps[start..] {
        let name = edge.name.map(|name| printable(&graph.heap.names[name as usize]));
        let is_dict = !in_attributes && is_mapping(graph.type_name(holder), graph, holder);
        match name {
            Some(name) if name == DICT => {
                in_attributes = true;
                holder = *target;
                continue;
            }
            // What is told of a frame is its function; before 3.11 a generator's is an object of its own.
            Some(_) if graph.type_name(*target) == "frame" => {
                if !is_coroutine(graph.type_name(holder)) {
                    path.push(thing(graph, *target));
                }
            }
            Some(name) if is_dict => push(&mut path, &format!("['{name}']")),
            Some(name) => path.push(name),
            None if is_dict || graph.object(holder).length.is_some() => push(&mut path, "[…]"),
            None => path.push(thing(graph, *target)),
        }
        was_named = true;
        in_attributes = false;
        holder = *target;
    }
    if path.len() > MOST_STEPS {
        path.splice(MOST_STEPS / 2..path.len() - MOST_STEPS / 2, ["…".to_owned()]);
    }
    let mut text = path.join(" → ");
    if was_named && path.last().is_none_or(|last| *last != thing(graph, node)) {
        text += &format!(": {}", thing(graph, node));
    }
    Words { path, text }
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

const LRU_CACHE: &str = "functools._lru_cache_wrapper";

fn is_coroutine(of: &str) -> bool {
    matches!(of, "coroutine" | "generator" | "async_generator")
}

fn is_mapping(of: &str, graph: &Graph, node: Node) -> bool {
    graph.object(node).length.is_some() && (of.to_lowercase().contains("dict") || of.contains("Counter"))
}

/// What an object is called by itself: `module app`, `class app.Timer`, `list[3]`.
pub fn thing(graph: &Graph, node: Node) -> String {
    let of = printable(graph.type_name(node));
    let label = graph.label(node).map(printable);
    if of == LRU_CACHE {
        return lru_cache(graph, node);
    }
    match (label, graph.object(node).length) {
        (Some(label), _) if graph.object(node).is_class => format!("class {label}"),
        (Some(label), _) => format!("{of} {label}"),
        (None, Some(length)) => match graph.object(node).bound {
            Some(bound) => format!("{of}[{} of at most {}]", count(length), count(bound)),
            None => format!("{of}[{}]", count(length)),
        },
        (None, None) => of,
    }
}

/// `functools.lru_cache(maxsize=None) on app.price (31,204 entries)`
fn lru_cache(graph: &Graph, node: Node) -> String {
    let size = graph.object(node).bound.map_or("None".to_owned(), |bound| bound.to_string());
    let function = graph.edges(node).find(|(_, target)| graph.type_name(*target) == "function");
    let function = function.and_then(|(_, target)| graph.label(target)).map_or("a function".to_owned(), printable);
    let entries = entries(graph, node).map_or(String::new(), |entries| format!(" ({} entries)", count(entries)));
    format!("functools.lru_cache(maxsize={size}) on {function}{entries}")
}

/// The items that a container holds; of a cache those of its dict.
pub fn entries(graph: &Graph, node: Node) -> Option<u64> {
    if graph.type_name(node) != LRU_CACHE {
        return graph.object(node).length;
    }
    let dicts = graph.edges(node).filter(|(edge, target)| edge.name.is_none() && graph.type_name(*target) == "dict");
    dicts.filter_map(|(_, dict)| graph.object(dict).length).max()
}
