//! The agent: turns allocations inside a Python server into samples in a table file.
