//! Turns what clients have downloaded into the answer to whether all of them got the same.
use std::{cell::RefCell, collections::HashMap};

use crc32fast::Hasher;

use super::client::Failure;

/// The checksum of each object, by its path, as the first client got it.
#[derive(Debug, Default)]
pub struct Objects(RefCell<HashMap<String, u32>>);

impl Objects {
    /// Compares an object with what others got at this path.
    pub fn compare(&self, path: &str, checksum: Hasher) -> Result<(), Failure> {
        let checksum = checksum.finalize();
        match *self.0.borrow_mut().entry(path.to_owned()).or_insert(checksum) == checksum {
            true => Ok(()),
            false => Err(Failure::WrongObject),
        }
    }
}
