//! What stands between the program and its allocators. The fast paths subtract, test and jump; everything else is in
//! [`crate::sampler`].

pub(crate) mod native;
pub(crate) mod python;
