//! Payloads that only those with the key can read.

mod envelope;
mod keys;

use std::path::Path;
use std::sync::Arc;

use kagzi_core::{ContentType, Payload, StoreError};

use crate::error::ClientError;
use crate::payload_codec::{PayloadCodec, PayloadError, PayloadPlace};
use keys::KeyRing;

/// Encrypts payloads before they leave the process, so that server and store never see plain text.
///
/// ```
/// use std::sync::Arc;
/// use kagzi_sdk::{Client, Context, Encryption, MemoryStore, Start, Worker, WorkflowError};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = std::env::temp_dir().join(format!("kagzi-keys-{}", std::process::id()));
/// # std::fs::write(&path, "2026-11:Zm9yIHRoaXMgZXhhbXBsZSBvbmx5LCAzMiBieXRlcyE=")?;
/// // Lines of `key-id:base64`, each key 32 random bytes: `openssl rand -base64 32`.
/// let encryption = Encryption::from_file(&path)?;
/// # std::fs::remove_file(&path)?;
/// let client = Client::embedded(Arc::new(MemoryStore::default())).with_payload_codec(Arc::new(encryption));
///
/// // Workers of this client encrypt and decrypt too; the workflow sees none of it.
/// let worker = Worker::builder(client.clone())
///     .queue("default")
///     .register("mask", |ctx: Context, card: String| async move {
///         ctx.step("last four", || async { Ok(card[card.len() - 4..].to_owned()) }).await
///     })
///     .build()?;
/// tokio::spawn(worker.run());
/// let run = client.start(Start::workflow("mask").input("4111 1111 1111 1111")?).await?;
/// assert_eq!(run.result::<String>().await?, "1111");
/// # Ok(()) }
/// ```
///
/// # What is encrypted, and what is not
///
/// Encrypted are inputs, outputs of steps and runs and the details of failures, with their content types.
/// **In the clear** stay names and ids (namespaces, queues, workflow types, steps, workers), labels,
/// idempotency keys, trace contexts, times, sizes, and **codes and messages of failures**, among them the
/// texts of panics and the reasons of cancellations: put nothing secret into them, use
/// [`with_details`](crate::StepError::with_details).
///
/// Each payload is bound to its place. An output opens only as that of its run and step, an input only
/// within its namespace, for its workflow type and its idempotency key; what is moved elsewhere or changed is
/// refused. A store could still give an input that it was given for another run of the same type without an
/// idempotency key, or an earlier output of the same step (none but its latest is ever completed), and
/// withhold anything.
///
/// # How
///
/// AES-256-GCM under a key of its own for nearly every payload, which HKDF-SHA256 derives from the key in the
/// ring and half of a nonce of 192 bits. Nonces are random, so one key lasts for as many payloads as anyone can write.
/// Only the input of a start **with an idempotency key** has a synthetic nonce, the HMAC-SHA256 of its place
/// and content: a start sent again must be the same to the byte. It shows that two starts under one key, in
/// one namespace, of one type had the same input, as the store is to tell, and nothing about others.
///
/// Content type: `application/vnd.kagzi.encrypted`. A payload grows by 43 bytes, its content type and the key
/// id: 66 bytes for JSON under a key id of seven. Limits of stores (2 MiB by default) count what is stored.
///
/// # Rotation
///
/// The first key is written with, all are read with. Add the new key at the end, everywhere; then move it to
/// the front, everywhere; remove the old one when no run that anybody will read or requeue has it. Keys are
/// read once: restart to take on new ones. A process that meets a key it does not have says which
/// ([`PayloadError::UnknownKey`]); a run fails with that by its retry policy, so that it goes on once the
/// worker was given the key. A start sent again under another key is compared by content.
///
/// # Cost and limits
///
/// Some microseconds and a copy for each payload. The keys are in the memory of the process, not erased when
/// it ends. A lost key makes its payloads unreadable for ever.
#[derive(Clone, Debug)]
pub struct Encryption {
    keys: Arc<KeyRing>,
    plaintext: Plaintext,
}

/// What to do with a payload that is not encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plaintext {
    Refuse,
    Accept,
}

impl Encryption {
    /// The content type of encrypted payloads.
    pub const CONTENT_TYPE: &'static str = "application/vnd.kagzi.encrypted";

    /// Encryption with the keys in `text`: `key-id:base64`, one a line or between white space, the one to
    /// write with first; what follows a `#` is a comment. Keep keys out of source code and arguments:
    /// [`from_file`](Self::from_file) and [`from_variable`](Self::from_variable) are the ways for them
    /// to come.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] with the line and what is wrong, never the key.
    pub fn from_keys(text: impl AsRef<str>) -> Result<Self, ClientError> {
        Self::parse("the given keys", text.as_ref())
    }

    /// Encryption with the keys in a file.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] if it cannot be read, or as for [`from_keys`](Self::from_keys).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let from = format!("the file {}", path.as_ref().display());
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&from, &text),
            Err(error) => Err(ClientError::Credentials { from, problem: error.to_string() }),
        }
    }

    /// Encryption with the keys in the environment variable `name`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] if it is not set, or as for [`from_keys`](Self::from_keys).
    pub fn from_variable(name: &str) -> Result<Self, ClientError> {
        let from = format!("the variable {name}");
        let problem = match std::env::var(name) {
            Ok(text) => return Self::parse(&from, &text),
            Err(std::env::VarError::NotPresent) => "it is not set",
            Err(std::env::VarError::NotUnicode(_)) => "it is not UTF-8",
        };
        Err(ClientError::Credentials { from, problem: problem.to_owned() })
    }

    fn parse(from: &str, text: &str) -> Result<Self, ClientError> {
        match KeyRing::parse(text) {
            Ok(keys) => Ok(Self { keys: Arc::new(keys), plaintext: Plaintext::Refuse }),
            Err(problem) => Err(ClientError::Credentials { from: from.to_owned(), problem }),
        }
    }

    /// Takes payloads that are not encrypted as they are, too, to go over to encryption while there are
    /// runs from before. What is written is encrypted all the same. Until this is gone again, whoever can
    /// write to the store can put in payloads of their own.
    #[must_use]
    pub const fn accept_plaintext(mut self) -> Self {
        self.plaintext = Plaintext::Accept;
        self
    }

    /// The id of the key to write with.
    pub fn active_key_id(&self) -> &str {
        &self.keys.active.id
    }
}

impl PayloadCodec for Encryption {
    fn encode(&self, payload: Payload, place: &PayloadPlace<'_>) -> Result<Payload, PayloadError> {
        let sealed = envelope::seal(&self.keys.active, place, &payload)?;
        let content_type = ContentType::new(Self::CONTENT_TYPE).map_err(|error| refused(&error))?;
        Ok(Payload::new(content_type, sealed))
    }

    fn decode(&self, payload: Payload, place: &PayloadPlace<'_>) -> Result<Payload, PayloadError> {
        if payload.content_type.as_str() == Self::CONTENT_TYPE {
            return envelope::open(&self.keys, place, &payload.bytes);
        }
        match self.plaintext {
            Plaintext::Accept => Ok(payload),
            Plaintext::Refuse => Err(PayloadError::NotEncrypted { content_type: payload.content_type }),
        }
    }
}

fn refused(error: &StoreError) -> PayloadError {
    PayloadError::Refused { problem: error.to_string() }
}
