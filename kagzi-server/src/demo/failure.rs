//! What the troubles of a file are called, and whether trying again can help.

use std::io;

use kagzi_sdk::StepError;

use super::path::RelativePath;
use super::stream::FileError;

/// Codes of failures that lie in the file and not in the backup.
pub const UNREADABLE: [&str; 6] =
    ["not_found", "permission_denied", "not_a_regular_file", "link_loop", "name_too_long", "read_failed"];

/// The failure of a step that could not read its file, or not write the compressed form.
pub fn of_file(path: &RelativePath, error: &FileError) -> StepError {
    match error {
        FileError::NotRegular(_) => {
            StepError::non_retryable("not_a_regular_file", format!("{path}: {error}"))
        }
        FileError::Write(error) => of_archive(path, error),
        FileError::Read(error) => match hopeless(error) {
            Some((code, why)) => StepError::non_retryable(code, format!("{path}: {why}")),
            None => StepError::retryable("read_failed", format!("{path}: {error}")),
        },
    }
}

/// The failure of a step that could not write to the archive.
pub fn of_archive(path: &RelativePath, error: &io::Error) -> StepError {
    StepError::retryable("archive_failed", format!("{path}: could not be written to the archive: {error}"))
}

fn hopeless(error: &io::Error) -> Option<(&'static str, &'static str)> {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => {
            Some(("not_found", "the file is gone, or is a link that leads nowhere"))
        }
        (io::ErrorKind::PermissionDenied, _) => {
            Some(("permission_denied", "there is no permission to read it"))
        }
        (_, Some(libc::ELOOP)) => Some(("link_loop", "it is a link that leads back to itself")),
        (_, Some(libc::ENAMETOOLONG)) => {
            Some(("name_too_long", "its path is longer than the system accepts"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kagzi_core::FailureKind;

    use super::*;

    fn failure_of(name: &str, root: &Path) -> kagzi_core::Failure {
        let path = RelativePath::new(Path::new(name));
        let error = crate::demo::stream::digest(&path.below(root)).unwrap_err();
        of_file(&path, &error).into_failure()
    }

    #[test]
    fn what_cannot_be_read_is_not_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("broken")).unwrap();
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        let long = "x".repeat(300);
        for (name, code) in [
            ("broken", "not_found"),
            ("loop", "link_loop"),
            ("directory", "not_a_regular_file"),
            (long.as_str(), "name_too_long"),
        ] {
            let failure = failure_of(name, dir.path());
            assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::NonRetryable, code));
            assert!(UNREADABLE.contains(&code) && failure.message.starts_with(name));
        }
    }

    #[test]
    fn a_full_disk_is_tried_again_and_is_not_the_fault_of_the_file() {
        let path = RelativePath::new(Path::new("a"));
        let error = FileError::Write(io::Error::from_raw_os_error(libc::ENOSPC));
        let failure = of_file(&path, &error).into_failure();
        assert_eq!(failure.kind, FailureKind::Retryable);
        assert!(!UNREADABLE.contains(&failure.code.as_str()));
    }
}
