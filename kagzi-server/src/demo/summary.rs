//! What a demo has to say at its end, for people and for programs.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::audit::Audit;
use super::walk::Skipped;
use super::workflow::STEPS;

/// A file that was not backed up.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// Its run.
    pub run_id: String,
    /// The file, below the directory, with escapes for what is not text.
    pub path: String,
    /// Why the engine gave it up.
    pub reason: String,
    /// What the failure is called.
    pub code: String,
    /// What the failure says; it names the file.
    pub message: String,
}

impl DeadLetter {
    /// Whether the file could have been read, so that missing it is a failure of the demo.
    fn is_our_fault(&self) -> bool {
        !super::failure::UNREADABLE.contains(&self.code.as_str())
    }
}

/// Everything that is known at the end.
#[derive(Debug)]
pub struct Report {
    /// Runs started: one for each file found.
    pub files: u64,
    /// The size of what was backed up.
    pub bytes: u64,
    /// What that takes in the archive.
    pub compressed_bytes: u64,
    /// Runs that completed.
    pub runs_completed: u64,
    /// Runs that were given up.
    pub dead_letters: Vec<DeadLetter>,
    /// Directories that were not looked into.
    pub skipped: Vec<Skipped>,
    /// Workers that were killed.
    pub workers_killed: u32,
    /// What the attempts table says.
    pub audit: Audit,
    /// From the first start to the last end, the time in which nobody was there to work included.
    pub elapsed: Duration,
}

/// The summary in `--json`. Field names are stable; fields may be added.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    files: u64,
    bytes: u64,
    compressed_bytes: u64,
    runs_completed: u64,
    dead_letters: usize,
    steps_executed: u64,
    attempts: u64,
    attempts_failed: u64,
    attempts_abandoned: u64,
    attempts_reexecuted: u64,
    steps_completed_twice: u64,
    workers_killed: u32,
    seconds: f64,
    runs_per_second: f64,
    manifest: String,
    directory: String,
    not_backed_up: &'a [DeadLetter],
    directories_skipped: Vec<SkippedView>,
}

#[derive(Debug, Serialize)]
struct SkippedView {
    path: String,
    reason: String,
}

impl Report {
    /// What a demo must show; otherwise what is wrong.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn verdict(&self) -> Result<(), String> {
        let lost = self.files.saturating_sub(self.runs_completed + self.dead_letters.len() as u64);
        let missed = self.dead_letters.iter().filter(|letter| letter.is_our_fault()).count();
        let Audit { completed, completed_twice, gaps, abandoned, .. } = self.audit;
        if lost > 0 {
            return Err(format!("{} cannot be found any more", counted(lost, "started run")));
        }
        if completed < self.runs_completed * STEPS {
            return Err(format!(
                "completed runs have {STEPS} completed steps each, but only {completed} are recorded"
            ));
        }
        if completed_twice > 0 {
            return Err(format!("{completed_twice} steps have more than one completed attempt"));
        }
        if gaps > 0 {
            return Err(format!("{gaps} steps have attempts that are not numbered without gaps"));
        }
        if self.workers_killed > 0 && abandoned == 0 {
            return Err(
                "a worker was killed inside a step, and no attempt is recorded as abandoned".to_owned()
            );
        }
        if missed > 0 {
            return Err(format!("{} could not be backed up", counted(missed as u64, "readable file")));
        }
        Ok(())
    }

    fn runs_per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "nobody counts 2^53 runs")]
        let runs = (self.runs_completed + self.dead_letters.len() as u64) as f64;
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { (runs / seconds * 1000.0).round() / 1000.0 } else { 0.0 }
    }

    /// The summary for programs.
    pub fn summary(&self, directory: &Path, manifest: &Path) -> Summary<'_> {
        Summary {
            files: self.files,
            bytes: self.bytes,
            compressed_bytes: self.compressed_bytes,
            runs_completed: self.runs_completed,
            dead_letters: self.dead_letters.len(),
            steps_executed: self.audit.completed,
            attempts: self.audit.attempts,
            attempts_failed: self.audit.failed,
            attempts_abandoned: self.audit.abandoned,
            attempts_reexecuted: self.audit.reexecuted,
            steps_completed_twice: self.audit.completed_twice,
            workers_killed: self.workers_killed,
            seconds: (self.elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
            runs_per_second: self.runs_per_second(),
            manifest: manifest.to_string_lossy().into_owned(),
            directory: directory.to_string_lossy().into_owned(),
            not_backed_up: &self.dead_letters,
            directories_skipped: self.skipped_views().collect(),
        }
    }

    fn skipped_views(&self) -> impl Iterator<Item = SkippedView> {
        self.skipped
            .iter()
            .map(|skipped| SkippedView { path: skipped.path.to_string(), reason: skipped.reason.clone() })
    }

    /// The summary for people.
    pub fn text(&self, directory: &Path, manifest: &Path) -> String {
        if self.files == 0 {
            let mut text = format!("Nothing to back up: there are no files in {}.\n", directory.display());
            self.list_what_is_missing(&mut text);
            return text.trim_end().to_owned();
        }
        let mut text = format!(
            "Backed up {} of {}, {} ({} compressed), in {:.1} s: {:.1} runs/s.\n\n",
            HumanCount(self.runs_completed),
            counted(self.files, "file"),
            HumanBytes(self.bytes),
            HumanBytes(self.compressed_bytes),
            self.elapsed.as_secs_f64(),
            self.runs_per_second(),
        );
        for (name, value) in self.lines(manifest) {
            // Writing to a string cannot fail.
            writeln!(text, "  {name:<10} {value}").ok();
        }
        self.list_what_is_missing(&mut text);
        if self.runs_completed > 0 {
            let (directory, manifest) = (shell_quoted(directory), shell_quoted(manifest));
            write!(text, "\nCheck it yourself:\n  cd {directory} && sha256sum --quiet -c {manifest}").ok();
        }
        text.trim_end().to_owned()
    }

    fn lines(&self, manifest: &Path) -> [(&'static str, String); 5] {
        let audit = &self.audit;
        [
            (
                "runs",
                format!(
                    "{} completed, {}",
                    HumanCount(self.runs_completed),
                    counted(self.dead_letters.len() as u64, "dead letter")
                ),
            ),
            ("steps", format!("{} executed to their end", HumanCount(audit.completed))),
            (
                "crash",
                format!(
                    "{} killed with SIGKILL; {} abandoned, {} executed again by the next one",
                    counted(self.workers_killed.into(), "worker"),
                    counted(audit.abandoned, "attempt"),
                    HumanCount(audit.reexecuted)
                ),
            ),
            (
                "proof",
                format!(
                    "{} rows in the attempts table; steps completed twice: {}",
                    HumanCount(audit.attempts),
                    audit.completed_twice
                ),
            ),
            ("manifest", manifest.display().to_string()),
        ]
    }

    fn list_what_is_missing(&self, text: &mut String) {
        const SHOWN: usize = 20;
        let letters =
            self.dead_letters.iter().map(|letter| format!("{} ({})", letter.message, letter.reason));
        let directories =
            self.skipped_views().map(|skipped| format!("{}/: {}", skipped.path, skipped.reason));
        let missing: Vec<String> = letters.chain(directories).collect();
        if missing.is_empty() {
            return;
        }
        text.push_str("\nNot backed up:\n");
        for line in missing.iter().take(SHOWN) {
            writeln!(text, "  {}", crate::cli::one_line(line)).ok();
        }
        if missing.len() > SHOWN {
            writeln!(text, "  and {} more; --json lists them all", missing.len() - SHOWN).ok();
        }
    }
}

/// So many of something, in words.
pub fn counted(count: u64, one: &str) -> String {
    format!("{} {one}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

/// A path as a shell takes it for one word.
pub fn shell_quoted(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:,@%".contains(&byte);
    let bytes = path.as_os_str().as_bytes();
    match path.to_str() {
        Some(text) if !bytes.is_empty() && bytes.iter().copied().all(harmless) => text.to_owned(),
        Some(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            bytes.iter().fold("$'".to_owned(), |word, byte| match byte {
                b'\'' | b'\\' => format!("{word}\\{}", char::from(*byte)),
                b' '..=b'~' => format!("{word}{}", char::from(*byte)),
                _ => format!("{word}\\x{byte:02x}"),
            }) + "'"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn report() -> Report {
        Report {
            files: 2,
            bytes: 2048,
            compressed_bytes: 512,
            runs_completed: 1,
            dead_letters: vec![DeadLetter {
                run_id: "r".to_owned(),
                path: "link".to_owned(),
                reason: "NON_RETRYABLE".to_owned(),
                code: "not_found".to_owned(),
                message: "link: it leads nowhere".to_owned(),
            }],
            skipped: Vec::new(),
            workers_killed: 1,
            audit: Audit {
                attempts: 7,
                completed: 5,
                abandoned: 1,
                reexecuted: 1,
                failed: 1,
                ..Audit::default()
            },
            elapsed: Duration::from_secs(2),
        }
    }

    #[test]
    fn programs_find_the_promised_fields() {
        let report = report();
        let json = serde_json::to_value(report.summary(Path::new("/d"), Path::new("/m"))).unwrap();
        for (field, expected) in [
            ("files", 2.into()),
            ("bytes", 2048.into()),
            ("runs_completed", 1.into()),
            ("dead_letters", 1.into()),
            ("steps_executed", 5.into()),
            ("attempts_abandoned", 1.into()),
            ("steps_completed_twice", 0.into()),
            ("runs_per_second", 1.0.into()),
            ("manifest", serde_json::Value::from("/m")),
        ] {
            assert_eq!(json[field], expected, "{field}");
        }
    }

    #[test]
    fn people_are_told_what_is_missing_and_how_to_check_the_rest() {
        let text = report().text(Path::new("/d"), Path::new("/m"));
        for part in
            ["1 of 2 files", "1 dead letter\n", "link: it leads nowhere", "cd /d && sha256sum --quiet -c /m"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let nothing = Report { files: 0, runs_completed: 0, dead_letters: Vec::new(), ..report() };
        assert_eq!(
            nothing.text(Path::new("/d"), Path::new("/m")),
            "Nothing to back up: there are no files in /d."
        );
    }

    #[test]
    fn unreadable_files_are_no_failure_and_everything_else_is() {
        assert_eq!(report().verdict(), Ok(()));
        let mut missed = report();
        missed.dead_letters[0].code = "changed".to_owned();
        assert!(missed.verdict().unwrap_err().contains("readable"));
        let mut twice = report();
        twice.audit.completed_twice = 1;
        assert!(twice.verdict().is_err());
        let mut traceless = report();
        traceless.audit.abandoned = 0;
        assert!(traceless.verdict().is_err());
        let mut forgotten = report();
        forgotten.files = 3;
        assert!(forgotten.verdict().unwrap_err().contains("cannot be found"));
        let mut unfinished = report();
        unfinished.audit.completed = 4;
        assert!(unfinished.verdict().is_err());
    }

    #[test]
    fn the_command_can_be_pasted_whatever_the_names_are() {
        for name in ["/plain/path", "/with space", "/it's", "/a\nb", "/$HOME `x`", ""] {
            let printed = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {}", shell_quoted(Path::new(name)))])
                .output()
                .unwrap();
            assert_eq!(printed.stdout, name.as_bytes());
        }
        assert_eq!(shell_quoted(Path::new(OsStr::from_bytes(b"/\xff'"))), r"$'/\xff\''");
    }
}
