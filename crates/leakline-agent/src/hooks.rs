//! What stands between the program and its allocators, and between it and its sockets. The fast paths subtract, test and
//! jump; everything else is in [`crate::sampler`] and in [`crate::sockets`].
//!
//! The allocators' fast paths are instructions of our own, since no compiler makes so few of them. They touch no register
//! that carries an argument, and jump to a function with the same arguments. malloc is 3 instructions more than without us,
//! free 6.

/// Jumps to `tracked` if the filter may hold the block in that register. Takes rax and rcx.
macro_rules! jump_if_tracked {
    ($block:literal) => {
        concat!(
            "imul eax, ",
            $block,
            ", {spread}\n",
            "shr eax, {shift}\n",
            "lea rcx, [rip + {filter}]\n",
            "cmp byte ptr [rcx + rax], 0\n",
            "jne {tracked}",
        )
    };
}

pub(crate) mod mapping;
pub(crate) mod native;
pub(crate) mod python;
pub(crate) mod socket;
