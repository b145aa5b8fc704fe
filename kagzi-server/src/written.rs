//! A log in memory, for tests of what is logged.

use std::io;
use std::sync::{Mutex, PoisonError};

/// What was written since it was last taken.
#[derive(Debug, Default)]
pub(crate) struct Written(Mutex<Vec<u8>>);

impl Written {
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl io::Write for &Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
