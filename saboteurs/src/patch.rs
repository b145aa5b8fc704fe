//! Changes to a text that must fit exactly, so that a saboteur cannot rot into a store that works.

use kagzi_conformance::FixtureError;

/// One place in a text, and what stands there instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// What stands there, exactly once.
    pub from: &'static str,
    /// What is to stand there.
    pub to: &'static str,
}

/// Patches a text.
///
/// # Errors
///
/// If the place is not there, or there more than once.
pub fn patched(text: &str, patch: &Patch) -> Result<String, FixtureError> {
    match text.matches(patch.from).count() {
        1 => Ok(text.replacen(patch.from, patch.to, 1)),
        count => {
            Err(format!("a saboteur no longer fits: its place is there {count} times: {}", patch.from).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_fits_exactly_once_or_not_at_all() {
        let patch = Patch { from: "b", to: "x" };
        assert!(matches!(patched("abc", &patch), Ok(text) if text == "axc"));
        assert!(patched("ac", &patch).is_err());
        assert!(patched("abcb", &patch).is_err());
    }
}
