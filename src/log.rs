//! The log: every change is appended here, gets its positions, and is durable before its caller hears of it.
//!
//! One task writes. It takes all changes that wait, allocates their positions, writes each table once, commits once,
//! tells the readers ([`OnCommit`]), answers every caller, and then wakes the readers that sleep. So the position order is
//! the commit order, a caller's own reads see its write, and many callers share one `fsync`. See `ARCHITECTURE.md`, "The log".

mod writer;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    bus::{Effect, Told},
    rooms::Room,
    storage::{self, Db, Pos, Position, Transactor, Write, rooms::HeadRow},
};
use writer::LogWriter;

/// The most changes in one commit.
const BATCH_CHANGES: usize = 256;
/// The most changes that may wait; beyond this callers wait before they can append.
const QUEUE: usize = 8192;
/// How many ids are reserved at once.
const ID_BLOCK: i64 = 1 << 20;

/// One atomic change to what the server knows: all of it is durable, or none.
#[derive(Debug, Default)]
pub struct Change {
    writes: Vec<Write>,
    heads: Vec<(Arc<Room>, HeadRow)>,
    effects: Vec<Effect>,
    positions: u32,
}

impl Change {
    /// A change that does nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing would be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.heads.is_empty()
    }

    /// Asks for one more position. Positions of a change are consecutive.
    pub fn position(&mut self) -> Position {
        self.positions += 1;
        Position(self.positions - 1)
    }

    /// Adds a write.
    pub fn write(&mut self, write: Write) -> &mut Self {
        self.writes.push(write);
        self
    }

    /// Adds what memory learns when the change is committed.
    pub fn effect(&mut self, effect: Effect) -> &mut Self {
        self.effects.push(effect);
        self
    }

    /// Makes the change depend on the room's head being at `row.base`, and moves it on.
    pub fn head(&mut self, room: Arc<Room>, row: HeadRow) -> &mut Self {
        self.heads.push((room, row));
        self
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else changed the room meanwhile: compute the change again.
    #[error("the room changed meanwhile")]
    Conflict,
    /// A unique key was taken already.
    #[error("the key is taken")]
    Duplicate,
    /// A [`Write::Expect`] met another number of rows.
    #[error("the rows were not as expected")]
    Unexpected,
    /// A text has a null character, which cannot be stored.
    #[error("a text has a null character")]
    NullCharacter,
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(Arc<storage::Error>),
    /// More is asked for than can be written.
    #[error("the log is busy")]
    Busy,
    /// The server is going down.
    #[error("the server is going down")]
    Closed,
}

/// What the readers of the log are told after each commit, in order.
#[derive(Debug)]
pub struct Committed {
    /// The head of the log from now on.
    pub head: Pos,
    /// The effects of each change, with the change's first position.
    pub changes: Vec<(Pos, Vec<Effect>)>,
    /// How long the commit took.
    pub took: Duration,
}

/// Called after each commit, before the callers are answered; says who is to be woken when they are. Must be quick and
/// must not block.
pub type OnCommit = Box<dyn Fn(Committed) -> Told + Send + Sync>;

/// A handle to the log.
#[derive(Clone, Debug)]
pub struct Log {
    queue: mpsc::Sender<Entry>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    head: AtomicI64,
    /// Whether the database failed at the newest batch.
    failing: AtomicBool,
    /// How many changes have been handed over.
    handed: AtomicU64,
    /// Of how many of these it is known what became of them, readers included.
    settled: watch::Sender<u64>,
    /// Reserved ids, used from the front.
    ids: Mutex<VecDeque<Range<i64>>>,
}

impl Shared {
    fn ids_left(&self) -> i64 {
        self.lock_ids()
            .iter()
            .map(|block| block.end - block.start)
            .sum()
    }

    fn add_ids(&self, block: Range<i64>) {
        self.lock_ids().push_back(block);
    }

    fn lock_ids(&self) -> MutexGuard<'_, VecDeque<Range<i64>>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Entry {
    change: Change,
    answer: oneshot::Sender<Result<Pos, AppendError>>,
}

/// A change that waits for its commit.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Pos, AppendError>>);

impl Pending {
    /// Waits until the change is durable and every reader of the log knows of it. Answers its first position.
    ///
    /// # Errors
    /// If the change was refused or the database failed; then nothing of it was made.
    pub async fn committed(self) -> Result<Pos, AppendError> {
        self.0.await.unwrap_or(Err(AppendError::Closed))
    }
}

/// A place in the log's queue, so that handing over a change need not wait.
#[derive(Debug)]
pub struct Place<'a> {
    permit: mpsc::Permit<'a, Entry>,
    shared: &'a Shared,
}

impl Place<'_> {
    /// Hands the change over. Changes are made in the order in which they are handed over.
    #[must_use]
    pub fn append(self, change: Change) -> Pending {
        let (answer, pending) = oneshot::channel();
        if change.writes.iter().any(Write::has_null_character) {
            // The caller holds the other end.
            drop(answer.send(Err(AppendError::NullCharacter)));
        } else {
            self.shared.handed.fetch_add(1, Ordering::AcqRel);
            self.permit.send(Entry { change, answer });
        }
        Pending(pending)
    }
}

impl Log {
    /// Starts the writing task; `on_commit` hears of every commit.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn start(db: &Db, on_commit: OnCommit) -> storage::Result<Self> {
        let head = storage::commits::head(db).await?;
        let shared = Arc::new(Shared {
            head: AtomicI64::new(head),
            failing: AtomicBool::new(false),
            handed: AtomicU64::new(0),
            settled: watch::Sender::new(0),
            ids: Mutex::default(),
        });
        let mut writer = LogWriter {
            db: db.clone(),
            transactor: Transactor::new(db.clone()),
            shared: Arc::clone(&shared),
            on_commit,
            reserving: None,
        };
        writer.prepare().await?;
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(writer.run(entries));
        Ok(Self { queue, shared })
    }

    /// The newest position that every reader may rely on.
    #[must_use]
    pub fn head(&self) -> Pos {
        self.shared.head.load(Ordering::Acquire)
    }

    /// A new integer id, never given before.
    ///
    /// # Errors
    /// [`AppendError::Busy`] if ids are used up faster than the writing task reserves them.
    pub fn new_id(&self) -> Result<i64, AppendError> {
        let mut blocks = self.shared.lock_ids();
        loop {
            let block = blocks.front_mut().ok_or(AppendError::Busy)?;
            if let Some(id) = block.next() {
                return Ok(id);
            }
            blocks.pop_front();
        }
    }

    /// Waits for a place in the queue.
    ///
    /// # Errors
    /// If the server is going down.
    pub async fn place(&self) -> Result<Place<'_>, AppendError> {
        let permit = self.queue.reserve().await;
        Ok(Place {
            permit: permit.map_err(|_| AppendError::Closed)?,
            shared: &self.shared,
        })
    }

    /// Waits until it is known what became of all changes that were handed over until now, and readers know too. It takes
    /// no place in the queue, so whoever has one may wait.
    ///
    /// # Errors
    /// If the server is going down.
    pub async fn settled(&self) -> Result<(), AppendError> {
        let handed = self.shared.handed.load(Ordering::Acquire);
        let mut settled = self.shared.settled.subscribe();
        tokio::select! {
            _ = settled.wait_for(|settled| *settled >= handed) => Ok(()),
            () = self.queue.closed() => Err(AppendError::Closed),
        }
    }

    /// Appends a change and waits until it is durable. Answers its first position.
    ///
    /// # Errors
    /// If the change was refused or the database failed; then nothing of it was made.
    pub async fn append(&self, change: Change) -> Result<Pos, AppendError> {
        self.place().await?.append(change).committed().await
    }

    /// Whether the newest change could not be written because the database failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }

    /// How many changes wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}
