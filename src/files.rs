//! The files of the content repository, and who waits for one to come.
//!
//! Under `media` in the data directory, `blobs` has what was uploaded, each content once and named after its SHA-256,
//! and `thumbnails` what can be made again from it. Files are written in `incoming` and moved to their place when they
//! are whole and on the disk, so what is left in `incoming` at the start belongs to nobody.

use std::{
    collections::HashMap,
    fs, io,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::AsyncWriteExt as _,
    sync::{Notify, RwLock, Semaphore},
};

use crate::storage::{
    MediaNid,
    media::{ContentHash, ThumbnailMethod, ThumbnailSize},
};

/// The most images that are decoded at the same time: each may take a few hundred megabytes of memory.
const MOST_DECODERS: usize = 2;

/// The files, as all requests share them.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    drafts: AtomicU64,
    awaited: Mutex<HashMap<MediaNid, Arc<Notify>>>,
    /// Read by who moves a file to its place, until its row is committed; written by who deletes what has no row.
    pub coming: RwLock<()>,
    /// Room for images being decoded.
    pub decoders: Arc<Semaphore>,
}

impl Files {
    /// The files under a data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        // Half of the cores are left for messages.
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let decoders = (cores / 2).clamp(1, MOST_DECODERS);
        Self {
            directory: data_dir.join("media"),
            drafts: AtomicU64::new(0),
            awaited: Mutex::default(),
            coming: RwLock::default(),
            decoders: Arc::new(Semaphore::new(decoders)),
        }
    }

    /// Makes the directories, and deletes what a crash left half written. Only the one server of a data directory may.
    ///
    /// # Errors
    /// If the directories cannot be used.
    pub fn prepare(&self) -> io::Result<()> {
        for name in ["blobs", "thumbnails", "incoming"] {
            fs::create_dir_all(self.directory.join(name))?;
        }
        for entry in fs::read_dir(self.directory.join("incoming"))? {
            fs::remove_file(entry?.path())?;
        }
        sync_directory(&self.directory)
    }

    /// Where a content is.
    #[must_use]
    pub fn blob(&self, hash: &ContentHash) -> PathBuf {
        self.place("blobs", hash, "")
    }

    /// Where a thumbnail of a content is.
    #[must_use]
    pub fn thumbnail(&self, hash: &ContentHash, size: ThumbnailSize) -> PathBuf {
        let method = match size.method {
            ThumbnailMethod::Crop => "crop",
            ThumbnailMethod::Scale => "scale",
        };
        let animated = if size.animated { "-animated" } else { "" };
        let suffix = format!("-{}x{}-{method}{animated}", size.width, size.height);
        self.place("thumbnails", hash, &suffix)
    }

    /// Where the contents whose hashes begin with this byte are, and their thumbnails.
    #[must_use]
    pub fn directories(&self, first: u8) -> [PathBuf; 2] {
        ["blobs", "thumbnails"].map(|kind| self.directory.join(kind).join(format!("{first:02x}")))
    }

    fn place(&self, kind: &str, hash: &ContentHash, suffix: &str) -> PathBuf {
        let name = hex(hash);
        let (first, rest) = name.split_at(2);
        let directory = self.directory.join(kind).join(first);
        directory.join(format!("{rest}{suffix}"))
    }

    /// A new file, to be written and then kept or dropped.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn draft(&self) -> io::Result<Draft> {
        let number = self.drafts.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join("incoming").join(number.to_string());
        let path = DraftPath(path);
        Ok(Draft {
            file: File::create_new(&path.0).await?,
            path,
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    /// Waits for the upload of a media: the waiting begins now, and ends when `notified()` of the answer does.
    #[must_use]
    pub fn wait(&self, media: MediaNid) -> Waiting<'_> {
        let notify = Arc::clone(self.lock_awaited().entry(media).or_default());
        Waiting {
            files: self,
            media,
            notify,
        }
    }

    /// Wakes those who wait for the upload of a media.
    pub fn wake(&self, media: MediaNid) {
        if let Some(notify) = self.lock_awaited().remove(&media) {
            notify.notify_waiters();
        }
    }

    /// Whether anybody waits for an upload.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        !self.lock_awaited().is_empty()
    }

    fn lock_awaited(&self) -> MutexGuard<'_, HashMap<MediaNid, Arc<Notify>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits for an upload.
#[derive(Debug)]
pub struct Waiting<'f> {
    files: &'f Files,
    media: MediaNid,
    notify: Arc<Notify>,
}

impl Waiting<'_> {
    /// What ends when the upload has come.
    #[must_use]
    pub fn notify(&self) -> &Notify {
        &self.notify
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut awaited = self.files.lock_awaited();
        // One count is the map's, one is this one's: nobody else waits.
        if let Some(notify) = awaited.get(&self.media)
            && Arc::ptr_eq(notify, &self.notify)
            && Arc::strong_count(notify) == 2
        {
            awaited.remove(&self.media);
        }
    }
}

/// A file being written. Dropped without [`Draft::keep`], it is deleted.
#[derive(Debug)]
pub struct Draft {
    file: File,
    path: DraftPath,
    hash: Sha256,
    bytes: u64,
}

#[derive(Debug)]
struct DraftPath(PathBuf);

impl Drop for DraftPath {
    fn drop(&mut self) {
        // After `keep` there is nothing here any more; what else fails here is deleted at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

impl Draft {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// If they cannot be written.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).await
    }

    /// How many bytes were written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash of what was written.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        self.hash.clone().finalize().into()
    }

    /// Moves the file to its place; when this returns, it is there also after a power cut. A file that is there
    /// already has the same content and is replaced.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn keep(mut self, place: PathBuf) -> io::Result<()> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        let Self { path, .. } = self;
        tokio::task::spawn_blocking(move || {
            let directory = place.parent().unwrap_or(Path::new("."));
            if !directory.exists() {
                fs::create_dir_all(directory)?;
                sync_directory(directory.parent().unwrap_or(directory))?;
            }
            fs::rename(&path.0, &place)?;
            sync_directory(directory)
        })
        .await
        .map_err(io::Error::other)?
    }
}

/// Makes the names in a directory last through a power cut.
fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// A hash in lower-case hexadecimal digits.
#[must_use]
pub fn hex(hash: &ContentHash) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    hash.iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waiting_is_forgotten() {
        let files = Files::new(Path::new("nowhere"));
        let (first, second) = (files.wait(MediaNid(1)), files.wait(MediaNid(1)));
        drop(first);
        assert_eq!(files.lock_awaited().len(), 1);
        drop(second);
        assert!(files.lock_awaited().is_empty());
    }

    #[test]
    fn what_a_crash_left_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path());
        files.prepare().unwrap();
        let left = directory.path().join("media/incoming/7");
        fs::write(&left, "half").unwrap();
        files.prepare().unwrap();
        assert!(!left.exists());
    }
}
