//! Reading, compressing and verifying files of any size in bounded memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How much of a file is in memory at a time, beside what the compressor needs (a few MiB).
const CHUNK_BYTES: usize = 128 * 1024;

/// How much is written before it is brought to disk.
const SYNC_BYTES: usize = 8 * 1024 * 1024;

/// What a file was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// How many bytes were read.
    pub bytes: u64,
    /// When it was last modified, in nanoseconds since 1970; nothing where the file system does not say.
    pub modified_nanos: Option<u128>,
}

/// Why a file cannot be backed up.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Something that is not a regular file: a pipe, a socket, a device, a directory.
    #[error("not a regular file but a {0}")]
    NotRegular(&'static str),
    /// It cannot be opened or read.
    #[error(transparent)]
    Read(io::Error),
    /// It can be read, but the compressed form cannot be written.
    #[error(transparent)]
    Write(io::Error),
}

/// Reads a file once and takes its digest.
///
/// # Errors
///
/// [`FileError`] if it cannot be opened, is no regular file, or cannot be read to its end.
pub fn digest(source: &Path) -> Result<Fingerprint, FileError> {
    let mut file = open_regular(source)?;
    // Asked before the content is read: a change while reading shows as a later time.
    let modified_nanos = nanos(&file.metadata().map_err(FileError::Read)?);
    let mut sink = Hashing::new(io::sink());
    copy(&mut file, &mut sink)?;
    let (sha256, bytes, _) = sink.finish();
    Ok(Fingerprint { sha256, bytes, modified_nanos })
}

/// Compresses `source` into the new file `target`, on disk when this returns, and answers the digest of
/// what was read and the size of what was written.
///
/// # Errors
///
/// As [`digest`], and those of writing.
pub fn compress(source: &Path, target: &Path) -> Result<(String, u64), FileError> {
    let mut source = open_regular(source)?;
    let mut encoder = Hashing::new(encoder(target).map_err(FileError::Write)?);
    copy(&mut source, &mut encoder)?;
    let (sha256, _, encoder) = encoder.finish();
    let written = finish(encoder).map_err(FileError::Write)?;
    Ok((sha256, written))
}

type Encoder = zstd::Encoder<'static, BufWriter<SyncedAsWritten>>;

fn encoder(target: &Path) -> io::Result<Encoder> {
    let writer = BufWriter::with_capacity(CHUNK_BYTES, SyncedAsWritten::create(target)?);
    zstd::Encoder::new(writer, zstd::DEFAULT_COMPRESSION_LEVEL)
}

fn finish(encoder: Encoder) -> io::Result<u64> {
    let SyncedAsWritten { file, .. } =
        encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// Decompresses a file that [`compress`] wrote and takes the digest of what comes out.
///
/// # Errors
///
/// If it cannot be read, or is damaged.
pub fn digest_compressed(archived: &Path) -> io::Result<String> {
    let mut decoder = zstd::Decoder::new(File::open(archived)?)?;
    let mut sink = Hashing::new(io::sink());
    io::copy(&mut decoder, &mut sink)?;
    Ok(sink.finish().0)
}

/// Whether a file still looks as it did when `before` was taken, going by its size and its time.
///
/// # Errors
///
/// Those of asking the file system, also that the file is gone.
pub fn is_unchanged(source: &Path, before: &Fingerprint) -> io::Result<bool> {
    let now = fs::metadata(source)?;
    Ok(now.is_file() && now.len() == before.bytes && nanos(&now) == before.modified_nanos)
}

/// Opens a regular file and nothing else, without ever waiting: opening a pipe would block until
/// somebody writes, and opening some devices does things. What it is is asked again once it is open.
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    check_regular(&fs::metadata(path).map_err(FileError::Read)?)?;
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = open.map_err(FileError::Read)?;
    check_regular(&file.metadata().map_err(FileError::Read)?)?;
    Ok(file)
}

fn check_regular(metadata: &fs::Metadata) -> Result<(), FileError> {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(());
    }
    Err(FileError::NotRegular(if kind.is_dir() {
        "directory"
    } else if kind.is_fifo() {
        "named pipe"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    }))
}

fn nanos(metadata: &fs::Metadata) -> Option<u128> {
    let since = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_nanos())
}

/// Like [`io::copy`], telling a failure to read from a failure to write.
fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), FileError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).map_err(FileError::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileError::Read(error)),
        }
    }
}

/// A file that is brought to disk piece by piece. Left to the end, one sync of a gigabyte would hold up
/// every commit of the store beside it, and with them the heartbeats that keep this very run.
struct SyncedAsWritten {
    file: File,
    unsynced_bytes: usize,
}

impl SyncedAsWritten {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::create(path)?, unsynced_bytes: 0 })
    }
}

impl Write for SyncedAsWritten {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.unsynced_bytes += count;
        if self.unsynced_bytes >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced_bytes = 0;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A writer that takes the digest of what passes through it.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (String, u64, W) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let nibbles = self.hasher.finalize().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let hex = nibbles.map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect();
        (hex, self.bytes, self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digests_are_those_of_the_standard() {
        let dir = tempfile::tempdir().unwrap();
        for (content, expected) in [("", EMPTY), ("abc", ABC)] {
            let path = dir.path().join("file");
            fs::write(&path, content).unwrap();
            let found = digest(&path).unwrap();
            assert_eq!((found.sha256.as_str(), found.bytes), (expected, content.len() as u64));
        }
    }

    #[test]
    fn what_is_compressed_comes_back_to_the_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (source, packed) = (dir.path().join("source"), dir.path().join("packed"));
        for size in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 5 * CHUNK_BYTES + 7] {
            let content: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
            fs::write(&source, &content).unwrap();
            let before = digest(&source).unwrap();
            let (sha256, compressed_bytes) = compress(&source, &packed).unwrap();
            assert_eq!(sha256, before.sha256);
            assert_eq!(compressed_bytes, fs::metadata(&packed).unwrap().len());
            assert_eq!(digest_compressed(&packed).unwrap(), before.sha256);
        }
    }

    #[test]
    fn a_damaged_archive_is_never_taken_for_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (source, packed) = (dir.path().join("source"), dir.path().join("packed"));
        fs::write(&source, "some content that is long enough to be compressed ".repeat(99)).unwrap();
        let (sha256, _) = compress(&source, &packed).unwrap();
        let whole = fs::read(&packed).unwrap();
        for cut in 0..whole.len() {
            fs::write(&packed, &whole[..cut]).unwrap();
            assert!(digest_compressed(&packed).map_or(true, |found| found != sha256), "cut at {cut}");
        }
    }

    #[test]
    fn pipes_sockets_devices_and_directories_are_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _listener = UnixListener::bind(&socket).unwrap();
        for (path, kind) in [
            (pipe.as_path(), "named pipe"),
            (&socket, "socket"),
            (Path::new("/dev/null"), "device"),
            (dir.path(), "directory"),
        ] {
            let error = digest(path).unwrap_err().to_string();
            assert!(error.contains(kind), "{error}");
        }
    }

    #[test]
    fn a_change_of_size_or_time_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let before = digest(&path).unwrap();
        assert!(is_unchanged(&path, &before).unwrap());
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(!is_unchanged(&path, &before).unwrap());
        fs::write(&path, "other").unwrap();
        assert!(!is_unchanged(&path, &before).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(is_unchanged(&path, &before).is_err());
    }
}
