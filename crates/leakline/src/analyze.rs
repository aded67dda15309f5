//! Turns evidence into findings. No file, clock or process is touched below this module.
pub mod evidence;
