//! What people see while a demo runs: sentences about what happens, and a bar. All of it on the standard
//! error; programs get silence.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::{Audience, complain};

/// Tells people what happens.
#[derive(Debug)]
pub struct Narrator {
    audience: Audience,
    bar: ProgressBar,
}

impl Narrator {
    /// One who talks to `audience`, or is silent.
    pub fn new(audience: Audience) -> Self {
        Self { audience, bar: hidden() }
    }

    /// Says a sentence, above the bar if there is one.
    pub fn say(&self, sentence: impl Display) {
        match self.audience {
            Audience::Programs => {}
            Audience::People if self.bar.is_hidden() => complain(sentence),
            Audience::People => self.bar.println(sentence.to_string()),
        }
    }

    /// Shows a bar for this many files, if the standard error is a terminal.
    pub fn begin(&mut self, files: u64) {
        if self.audience == Audience::Programs {
            return;
        }
        let style = ProgressStyle::with_template(
            "{spinner} [{bar:40}] {human_pos}/{human_len} files  {elapsed}  {wide_msg}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar = ProgressBar::with_draw_target(Some(files), ProgressDrawTarget::stderr());
        self.bar.set_style(style.progress_chars("=> "));
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    /// How many files are through.
    pub fn progress(&self, files: u64) {
        self.bar.set_position(files);
    }

    /// What is going on right now, beside the bar.
    pub fn status(&self, status: impl Into<Cow<'static, str>>) {
        self.bar.set_message(status);
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        self.bar.finish_and_clear();
        self.bar = hidden();
    }
}

fn hidden() -> ProgressBar {
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden())
}

impl Drop for Narrator {
    fn drop(&mut self) {
        self.end();
    }
}
