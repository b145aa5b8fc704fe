//! The log of one process: lines appended in one write each, so that they survive its kill.
//!
//! They are not flushed to the disk: processes die here, not the machine.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kagzi_core::RunId;

use crate::Failed;
use crate::event::{Answer, Call, Deed, Heard, Line, Moment, now};

/// A log that is written.
#[derive(Debug)]
pub struct Log {
    file: File,
    calls: AtomicU64,
}

impl Log {
    /// Creates the file.
    pub fn create(path: &Path) -> Result<Self, Failed> {
        let file = OpenOptions::new().create_new(true).append(true).open(path)?;
        Ok(Self { file, calls: AtomicU64::new(0) })
    }

    /// Appends a line. A process that cannot say what it does must not do it.
    pub fn note(&self, line: &Line) {
        let written = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            (&self.file).write_all(&line)
        });
        if let Err(error) = written {
            crate::end_process(&format!("cannot write its log: {error}"));
        }
    }

    /// Notes that a call goes out; gives its number.
    pub fn called(&self, namespace: &str, run: RunId, call: Call) -> u64 {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        self.note(&Line::Called { id, at: now(), namespace: namespace.to_owned(), run, call });
        id
    }

    /// Notes the answer to a call.
    pub fn answered(&self, id: u64, answer: Answer) {
        self.note(&Line::Answered { id, at: now(), answer });
    }
}

/// Everything that all processes noted.
#[derive(Debug, Default)]
pub struct History {
    /// Calls, in the order in which they went out.
    pub heard: Vec<Heard>,
    /// Deeds of workflow code, in order.
    pub deeds: Vec<Deed>,
}

impl History {
    /// Adds the log of a process. The last line may be cut by its death.
    pub fn read(&mut self, path: &Path) -> Result<(), Failed> {
        let who: Arc<str> = path.file_stem().unwrap_or_default().to_string_lossy().into();
        let mut open: HashMap<u64, usize> = HashMap::new();
        let mut namespaces: HashMap<String, Arc<str>> = HashMap::new();
        let mut shared = |name: String| -> Arc<str> {
            Arc::clone(namespaces.entry(name).or_insert_with_key(|name| name.as_str().into()))
        };
        let mut lines = BufReader::new(File::open(path)?).lines().peekable();
        while let Some(text) = lines.next() {
            let line: Line = match serde_json::from_str(&text?) {
                Ok(line) => line,
                Err(_) if lines.peek().is_none() => break,
                Err(error) => return Err(format!("{}: {error}", path.display()).into()),
            };
            match line {
                Line::Called { id, at, namespace, run, call } => {
                    open.insert(id, self.heard.len());
                    let (who, namespace) = (Arc::clone(&who), shared(namespace));
                    let (returned, answer) = (Moment::MAX, Answer::Unknown);
                    self.heard.push(Heard { who, namespace, run, called: at, returned, call, answer });
                }
                Line::Answered { id, at, answer } => {
                    let at_call =
                        open.remove(&id).ok_or_else(|| format!("{}: answer {id}", path.display()))?;
                    // Of an outcome that is unknown only its effect may still come.
                    let returned = if answer == Answer::Unknown { Moment::MAX } else { at };
                    (self.heard[at_call].returned, self.heard[at_call].answer) = (returned, answer);
                }
                Line::Saw { called, at, namespace, run, call } => {
                    let (who, namespace) = (Arc::clone(&who), shared(namespace));
                    let answer = Answer::Done;
                    self.heard.push(Heard { who, namespace, run, called, returned: at, call, answer });
                }
                Line::Executes { at, run, claims, step } => {
                    self.deeds.push(Deed { who: Arc::clone(&who), run, at, claims, step, got: None });
                }
                Line::Got { at, run, claims, step, output } => {
                    let who = Arc::clone(&who);
                    self.deeds.push(Deed { who, run, at, claims, step, got: Some(output) });
                }
            }
        }
        Ok(())
    }

    /// Puts everything in order of time, once all logs are read.
    pub fn sort(&mut self) {
        self.heard.sort_by_key(|heard| heard.called);
        self.deeds.sort_by_key(|deed| deed.at);
    }
}
