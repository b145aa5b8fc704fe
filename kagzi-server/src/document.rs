//! Files that a server reads again and again while it runs, and that may hang.
//!
//! On a network file system whose server has gone, to open or to read a file takes as long as it likes. So each is read
//! on a thread of its own, for which nobody waits for long: neither who asked, nor the end of the runtime, which waits
//! for its own blocking threads.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc as threads;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::time::timeout;

/// How long a look at a file may take.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// No file is longer.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// A file that is read again and again. While one look at it hangs, there is no second.
#[derive(Debug)]
pub(crate) struct Document {
    path: PathBuf,
    /// A look that has not ended, though nobody waits for it any more.
    hangs: Mutex<Option<oneshot::Receiver<io::Result<Found>>>>,
}

/// What was found in a file, and what is known of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) content: Vec<u8>,
    pub(crate) metadata: Metadata,
}

impl Document {
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), hangs: Mutex::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it, before the server serves: the thread that calls waits for some seconds at most.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no regular file, is too long, or hangs.
    pub(crate) fn read_now(&self) -> io::Result<Found> {
        let (tell, told) = threads::sync_channel(1);
        let path = self.path.clone();
        // Who has given up does not hear it.
        apart(move || drop(tell.send(read(&path))))?;
        told.recv_timeout(READ_WITHIN).map_err(|why| match why {
            threads::RecvTimeoutError::Timeout => late(READ_WITHIN),
            threads::RecvTimeoutError::Disconnected => gone(),
        })?
    }

    /// Reads it while the server serves, and gives up after some seconds. Cancel safe.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no regular file, is too long, or hangs.
    pub(crate) async fn read(&self) -> io::Result<Found> {
        let path = self.path.clone();
        self.read_by(READ_WITHIN, move || read(&path)).await
    }

    async fn read_by(
        &self,
        within: Duration,
        read: impl FnOnce() -> io::Result<Found> + Send + 'static,
    ) -> io::Result<Found> {
        let look = async {
            let mut hangs = self.hangs.lock().await;
            if let Some(earlier) = hangs.as_mut() {
                // What it finds at last may be long out of date.
                drop(earlier.await);
            }
            let (tell, told) = oneshot::channel();
            *hangs = None;
            apart(move || drop(tell.send(read())))?;
            let answer = hangs.insert(told).await;
            *hangs = None;
            answer.map_err(|_| gone())?
        };
        timeout(within, look).await.unwrap_or_else(|_| Err(late(within)))
    }
}

fn apart(look: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("file".to_owned()).spawn(look).map(drop)
}

fn late(within: Duration) -> io::Error {
    let why = format!("it was not read within {within:?}: its disk, or its server, hangs");
    io::Error::new(io::ErrorKind::TimedOut, why)
}

fn gone() -> io::Error {
    io::Error::other("the thread that reads it has ended")
}

/// Reads a file, for as long as that takes.
fn read(path: &Path) -> io::Result<Found> {
    // Before it is opened: to open a device may do something.
    check_regular(&std::fs::metadata(path)?)?;
    let file = open(path)?;
    let metadata = file.metadata()?;
    check_regular(&metadata)?;
    let mut content = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST_BYTES {
        let why = format!("it is longer than {MOST_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(Found { content, metadata })
}

/// To open a pipe would wait for whoever writes to it, should one have come meanwhile.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    options.open(path)
}

/// A pipe, a terminal and the like may keep everybody waiting, whether they read or write.
///
/// # Errors
///
/// What it is instead.
pub(crate) fn check_regular(there: &Metadata) -> io::Result<()> {
    if there.is_file() {
        return Ok(());
    }
    let what = if there.is_dir() { "a directory" } else { "a pipe, a device or a socket" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, and no regular file")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Longer than any test.
    const LONG: Duration = Duration::from_hours(1);

    fn written(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    /// A look that waits for leave, and finds what stands at `path` before.
    fn held(path: &Path) -> (threads::Sender<()>, impl FnOnce() -> io::Result<Found> + Send + use<>) {
        let (go, told) = threads::channel();
        let path = path.to_owned();
        let look = move || {
            let found = read(&path);
            told.recv().ok();
            found
        };
        (go, look)
    }

    #[tokio::test]
    async fn while_one_look_hangs_there_is_no_second_and_what_it_finds_at_last_is_not_believed() {
        let file = written("old");
        let document = Document::at(file.path());
        let (go, look) = held(file.path());
        let error = document.read_by(Duration::ZERO, look).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let looks = Arc::new(AtomicU32::new(0));
        for _ in 0..3 {
            let counted = Arc::clone(&looks);
            let look = move || {
                counted.fetch_add(1, Ordering::SeqCst);
                Err(io::Error::other("a second look"))
            };
            let error = document.read_by(Duration::ZERO, look).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        }
        std::fs::write(file.path(), "new").unwrap();
        go.send(()).unwrap();
        let path = file.path().to_owned();
        let found = document.read_by(LONG, move || read(&path)).await.unwrap();
        assert_eq!(found.content, b"new");
        assert_eq!(looks.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_look_that_hangs_does_not_hold_up_the_end_of_the_runtime() {
        let file = written("text");
        let (go, look) = held(file.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let document = Document::at(file.path());
        runtime.block_on(document.read_by(Duration::ZERO, look)).unwrap_err();
        let (ended, end) = threads::channel();
        std::thread::spawn(move || {
            drop(runtime);
            ended.send(()).unwrap();
        });
        let end = end.recv_timeout(Duration::from_mins(1));
        drop(go);
        end.unwrap();
    }

    #[tokio::test]
    async fn only_regular_files_are_read_and_no_longer_ones_than_may_be() {
        let directory = tempfile::tempdir().unwrap();
        let refusal = async |path: &Path| {
            let document = Document::at(path);
            let said = document.read().await.unwrap_err().to_string();
            assert_eq!(document.read_now().unwrap_err().to_string(), said);
            said
        };
        let said = refusal(directory.path()).await;
        assert!(said.contains("a directory"), "{said}");
        #[cfg(unix)]
        {
            let pipe = directory.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
            assert!(made.success());
            for path in [&pipe, Path::new("/dev/zero")] {
                let said = refusal(path).await;
                assert!(said.contains("a pipe, a device or a socket"), "{said}");
            }
            // One that has come after the first look.
            assert!(open(&pipe).unwrap().metadata().is_ok());
        }
        let (long, whole) = (directory.path().join("long"), directory.path().join("whole"));
        File::create(&long).unwrap().set_len(MOST_BYTES + 1).unwrap();
        let said = refusal(&long).await;
        assert!(said.contains("longer than"), "{said}");
        File::create(&whole).unwrap().set_len(MOST_BYTES).unwrap();
        let document = Document::at(&whole);
        assert_eq!(document.read().await.unwrap().content.len() as u64, MOST_BYTES);
        assert_eq!(document.read_now().unwrap().content.len() as u64, MOST_BYTES);
    }
}
