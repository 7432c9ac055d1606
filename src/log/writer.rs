//! The task that commits what was appended to the log.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::{debug, error};

use super::{AppendError, BATCH_CHANGES, Committed, Entry, ID_BLOCK, OnCommit, Shared};
use crate::storage::{
    self, Db, Pos, RoomNid, Rows, Table, Transactor, Write, WriteError, commits,
    rooms::{self, PlacedHead},
};

/// How often, and how long apart, a commit whose answer was lost is looked for.
const LOST_COMMIT_LOOKS: u32 = 10;
const LOST_COMMIT_WAIT: Duration = Duration::from_millis(500);

/// What the writing task owns.
pub(super) struct LogWriter {
    pub(super) db: Db,
    pub(super) transactor: Transactor,
    pub(super) shared: Arc<Shared>,
    pub(super) on_commit: OnCommit,
    /// Ids that the open transaction reserves; ours once it is committed.
    pub(super) reserving: Option<Range<i64>>,
}

/// What became of one try to commit a batch.
enum Outcome {
    /// All is durable, but for the entries (by index) that were refused.
    Committed(Vec<(usize, AppendError)>),
    /// Nothing was written: these entries stand in the way.
    Refused(Vec<(usize, AppendError)>),
    /// Nothing was written, and it is not known which entry is to blame.
    Failed(WriteError),
}

impl LogWriter {
    /// Reserves the first block of ids, before anything is appended.
    pub(super) async fn prepare(&mut self) -> storage::Result<()> {
        self.transactor.begin().await?;
        self.reserve_ids().await?;
        self.transactor.commit().await?;
        if let Some(ids) = self.reserving.take() {
            self.shared.add_ids(ids);
        }
        Ok(())
    }

    pub(super) async fn run(mut self, mut entries: mpsc::Receiver<Entry>) {
        let mut batch = Vec::with_capacity(BATCH_CHANGES);
        while entries.recv_many(&mut batch, BATCH_CHANGES).await > 0 {
            let count = batch.len() as u64;
            self.commit(std::mem::take(&mut batch)).await;
            self.shared.settled.send_modify(|settled| *settled += count);
        }
    }

    /// Commits a batch; if that fails because of single entries, without them.
    async fn commit(&mut self, mut batch: Vec<Entry>) {
        while !batch.is_empty() {
            let started = Instant::now();
            match self.try_commit(&batch).await {
                Outcome::Committed(refused) => {
                    self.shared.failing.store(false, Ordering::Relaxed);
                    answer(&mut batch, refused);
                    self.publish(batch, started.elapsed());
                    return;
                }
                Outcome::Refused(refused) => answer(&mut batch, refused),
                Outcome::Failed(error) if batch.len() == 1 => {
                    // A key that is taken is the change's fault, not the database's.
                    if !error.is_duplicate() {
                        self.shared.failing.store(true, Ordering::Relaxed);
                    }
                    let refused = vec![(0, append_error(error))];
                    answer(&mut batch, refused);
                }
                Outcome::Failed(WriteError::Database(error)) if !is_about_a_row(&error) => {
                    // The database cannot be reached: no change is to blame.
                    self.shared.failing.store(true, Ordering::Relaxed);
                    let error = Arc::new(error);
                    let refused = (0..batch.len())
                        .map(|index| (index, AppendError::Database(Arc::clone(&error))));
                    answer(&mut batch, refused.collect());
                }
                Outcome::Failed(error) => {
                    // Which of the changes is to blame is found by halves.
                    debug!(%error, changes = batch.len(), "a batch failed; trying its halves");
                    let second = batch.split_off(batch.len() / 2);
                    Box::pin(self.commit(batch)).await;
                    Box::pin(self.commit(second)).await;
                    return;
                }
            }
        }
    }

    /// Tells the readers, answers the callers, wakes the readers.
    fn publish(&mut self, batch: Vec<Entry>, took: Duration) {
        let mut first = self.shared.head.load(Ordering::Acquire) + 1;
        let mut answers = Vec::with_capacity(batch.len());
        let mut changes = Vec::with_capacity(batch.len());
        for entry in batch {
            answers.push((entry.answer, first));
            changes.push((first, entry.change.effects));
            first += i64::from(entry.change.positions);
        }
        let head = first - 1;
        if let Some(ids) = self.reserving.take() {
            self.shared.add_ids(ids);
        }
        self.shared.head.store(head, Ordering::Release);
        let told = (self.on_commit)(Committed {
            head,
            changes,
            took,
        });
        for (answer, first) in answers {
            // The caller may have gone; the change stands all the same.
            drop(answer.send(Ok(first)));
        }
        // The answers get a head start: a client that sees its own message in a sync before it has the answer to the
        // request does not know that it is its own, and some show it twice or send it again.
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            told.wake();
        });
    }

    async fn try_commit(&mut self, batch: &[Entry]) -> Outcome {
        let head = self.shared.head.load(Ordering::Acquire);
        let positions = batch.iter().map(|entry| i64::from(entry.change.positions));
        let last = head + positions.sum::<i64>();
        if self.commit_at_once(batch, head, last).await {
            return Outcome::Committed(Vec::new());
        }
        self.commit_step_by_step(batch, head, last).await
    }

    /// Commits a batch in one round trip, if it has nothing but rows. Answers whether that worked; if not, nothing was
    /// written, and going step by step finds out why.
    async fn commit_at_once(&mut self, batch: &[Entry], head: Pos, last: Pos) -> bool {
        if !self.transactor.commits_at_once() || last == head || self.ids_are_low() {
            return false;
        }
        let Ok(heads) = chain_heads(batch, head) else {
            return false;
        };
        let mut rows = Rows::default();
        rows.add(&commits::ROW, commits::row(last, head));
        for (write, _) in placed_writes(batch, head) {
            let Write::Insert(insert, row) = write else {
                return false;
            };
            rows.add(insert, row);
        }
        let heads = (!heads.is_empty()).then(|| table_of(&heads));
        match self.transactor.commit_at_once(heads, rows).await {
            Ok(()) => true,
            Err(error) => {
                debug!(%error, "a commit in one statement failed");
                if !is_about_a_row(&error) {
                    self.transactor.disconnect();
                }
                self.was_committed(last).await
            }
        }
    }

    async fn commit_step_by_step(&mut self, batch: &[Entry], head: Pos, last: Pos) -> Outcome {
        if let Err(error) = self.transactor.begin().await {
            self.transactor.disconnect();
            return Outcome::Failed(error.into());
        }
        match self.write(batch, head, last).await {
            Ok(refused) if refused.is_empty() => {}
            Ok(refused) => {
                self.transactor.rollback().await;
                return Outcome::Refused(refused);
            }
            Err(error) => {
                self.transactor.rollback().await;
                return Outcome::Failed(error);
            }
        }
        match self.transactor.commit().await {
            Ok(()) => Outcome::Committed(Vec::new()),
            Err(error) => {
                self.transactor.disconnect();
                if last > head && self.was_committed(last).await {
                    Outcome::Committed(Vec::new())
                } else {
                    Outcome::Failed(error.into())
                }
            }
        }
    }

    /// Writes the whole batch inside the open transaction. Answers the entries that must be left out for it to work.
    async fn write(
        &mut self,
        batch: &[Entry],
        head: Pos,
        last: Pos,
    ) -> Result<Vec<(usize, AppendError)>, WriteError> {
        let mut refused = self.write_heads(batch, head).await?;
        if !refused.is_empty() {
            return Ok(refused);
        }
        let mut rows = Rows::default();
        for (write, index) in placed_writes(batch, head) {
            match write {
                Write::Insert(insert, row) => {
                    rows.add(insert, row);
                    continue;
                }
                // What a statement of its own does may depend on the rows before it. Other rows wait, and travel together.
                Write::Run(sql, _) | Write::Expect(sql, ..) if rows.are_named_in(sql) => {
                    self.transactor.insert(std::mem::take(&mut rows)).await?;
                }
                Write::Run(..) | Write::Expect(..) => {}
            }
            match self.transactor.run(write).await {
                Ok(()) => {}
                Err(error @ WriteError::Unexpected) => refused.push((index, append_error(error))),
                Err(error) if error.is_duplicate() => {
                    // On PostgreSQL the transaction is spoilt now, so the others have to wait for the next try.
                    refused.push((index, append_error(error)));
                    return Ok(refused);
                }
                Err(error) => return Err(error),
            }
        }
        if !refused.is_empty() {
            return Ok(refused);
        }
        if last > head {
            rows.add(&commits::ROW, commits::row(last, head));
        }
        self.transactor.insert(rows).await?;
        self.reserve_ids().await?;
        Ok(Vec::new())
    }

    /// Moves on the heads of all rooms of the batch, if each is where its change says.
    async fn write_heads(
        &mut self,
        batch: &[Entry],
        head: Pos,
    ) -> Result<Vec<(usize, AppendError)>, WriteError> {
        let chains = match chain_heads(batch, head) {
            Ok(chains) if chains.is_empty() => return Ok(Vec::new()),
            Ok(chains) => chains,
            Err(refused) => return Ok(refused),
        };
        let moved: HashSet<RoomNid> = self
            .transactor
            .insert_some(table_of(&chains))
            .await?
            .iter()
            .map(|row| row.get(0).map(RoomNid))
            .collect::<storage::Result<_>>()?;
        let stands = |entry: &Entry| {
            let mut heads = entry.change.heads.iter();
            heads.all(|(room, _)| moved.contains(&room.nid))
        };
        let entries = batch.iter().enumerate();
        Ok(entries
            .filter(|(_, entry)| !stands(entry))
            .map(|(index, _)| (index, AppendError::Conflict))
            .collect())
    }

    fn ids_are_low(&self) -> bool {
        self.shared.ids_left() < ID_BLOCK / 2
    }

    /// Reserves the next block of ids while there are still plenty.
    async fn reserve_ids(&mut self) -> storage::Result<()> {
        self.reserving = None;
        if self.ids_are_low() {
            let end: i64 = match self
                .transactor
                .returning(commits::RESERVE, commits::reserve(ID_BLOCK))
                .await?
                .first()
            {
                Some(row) => row.get(0)?,
                None => return Ok(()),
            };
            self.reserving = Some(end - ID_BLOCK..end);
        }
        Ok(())
    }

    /// Whether a commit reached the database although its answer was lost.
    async fn was_committed(&self, last: Pos) -> bool {
        for _ in 0..LOST_COMMIT_LOOKS {
            match commits::head(&self.db).await {
                Ok(head) => return head >= last,
                Err(error) => {
                    error!(%error, "the answer to a commit was lost and the database cannot be asked");
                    tokio::time::sleep(LOST_COMMIT_WAIT).await;
                }
            }
        }
        false
    }
}

/// The heads to which a batch moves its rooms. Changes to one room form a chain, of which only the ends meet the
/// database. Fails with the entries that do not follow the ones before them.
fn chain_heads(
    batch: &[Entry],
    head: Pos,
) -> Result<HashMap<RoomNid, PlacedHead>, Vec<(usize, AppendError)>> {
    let mut chains: HashMap<RoomNid, PlacedHead> = HashMap::new();
    let mut refused = Vec::new();
    let mut last = head;
    for (index, entry) in batch.iter().enumerate() {
        last += i64::from(entry.change.positions);
        for (room, row) in &entry.change.heads {
            let next = PlacedHead::new(row.clone(), last);
            let placed = match chains.remove(&room.nid) {
                None => next,
                Some(chain) if chain.row.version == row.base => chain.then(next),
                Some(chain) => {
                    refused.push((index, AppendError::Conflict));
                    chain
                }
            };
            chains.insert(room.nid, placed);
        }
    }
    if refused.is_empty() {
        Ok(chains)
    } else {
        Err(refused)
    }
}

fn table_of(heads: &HashMap<RoomNid, PlacedHead>) -> Table {
    (&rooms::HEAD, heads.values().map(PlacedHead::args).collect())
}

/// The writes of a batch with their positions, each with the index of its entry.
fn placed_writes(batch: &[Entry], head: Pos) -> impl Iterator<Item = (Write, usize)> {
    let firsts = batch.iter().scan(head + 1, |next, entry| {
        let first = *next;
        *next += i64::from(entry.change.positions);
        Some(first)
    });
    batch
        .iter()
        .zip(firsts)
        .enumerate()
        .flat_map(|(index, (entry, first))| {
            let writes = entry.change.writes.iter();
            writes.map(move |write| (write.clone().placed(first), index))
        })
}

/// Answers the refused entries and takes them out of the batch. An entry may be named more than once.
fn answer(batch: &mut Vec<Entry>, refused: Vec<(usize, AppendError)>) {
    let mut refused: HashMap<usize, AppendError> = refused.into_iter().collect();
    if refused.is_empty() {
        return;
    }
    let mut kept = Vec::with_capacity(batch.len());
    for (index, entry) in std::mem::take(batch).into_iter().enumerate() {
        match refused.remove(&index) {
            Some(error) => {
                debug!(%error, "a change is refused");
                // The caller may have gone, then nobody needs to know.
                drop(entry.answer.send(Err(error)));
            }
            None => kept.push(entry),
        }
    }
    *batch = kept;
}

/// Whether the database itself has refused something.
fn is_about_a_row(error: &storage::Error) -> bool {
    matches!(error, storage::Error::Database(_))
}

fn append_error(error: WriteError) -> AppendError {
    if error.is_duplicate() {
        return AppendError::Duplicate;
    }
    match error {
        WriteError::Unexpected => AppendError::Unexpected,
        WriteError::Database(error) => AppendError::Database(Arc::new(error)),
    }
}
