//! Child processes that never outlive the command that started them.

use std::io::{self, Read as _};

/// Ends this process when its parent ends, however that happens: the other end of the standard input
/// closes even if the parent is killed.
pub fn end_with_the_parent() {
    std::thread::spawn(|| {
        // Nothing is ever sent: whatever ends the read, the parent is gone.
        io::stdin().lock().read_to_end(&mut Vec::new()).ok();
        std::process::exit(0);
    });
}
