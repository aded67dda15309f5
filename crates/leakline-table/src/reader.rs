//! The command's half.
