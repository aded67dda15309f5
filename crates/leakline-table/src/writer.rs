//! The agent's half.
