//! The task that commits what was appended to the log.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::{error, warn};

use super::{AppendError, BATCH_CHANGES, Committed, Entry, ID_BLOCK, OnCommit, Shared};
use crate::storage::{
    self, Arg, Db, Insert, Pos, RoomNid, Transactor, Write, WriteError, commits,
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
            self.commit(std::mem::take(&mut batch)).await;
        }
    }

    /// Commits a batch; if that fails because of single entries, without them.
    async fn commit(&mut self, mut batch: Vec<Entry>) {
        while !batch.is_empty() {
            let started = Instant::now();
            match self.try_commit(&batch).await {
                Outcome::Committed(refused) => {
                    answer(&mut batch, refused);
                    self.publish(batch, started.elapsed());
                    return;
                }
                Outcome::Refused(refused) => answer(&mut batch, refused),
                Outcome::Failed(error) if batch.len() == 1 => {
                    let refused = vec![(0, append_error(error))];
                    answer(&mut batch, refused);
                }
                Outcome::Failed(error) => {
                    warn!(%error, changes = batch.len(), "a batch failed; trying its changes one by one");
                    for entry in batch {
                        Box::pin(self.commit(vec![entry])).await;
                    }
                    return;
                }
            }
        }
    }

    /// Tells the readers, then the callers.
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
        (self.on_commit)(Committed {
            head,
            changes,
            took,
        });
        for (answer, first) in answers {
            // The caller may have gone; the change stands all the same.
            drop(answer.send(Ok(first)));
        }
    }

    async fn try_commit(&mut self, batch: &[Entry]) -> Outcome {
        let head = self.shared.head.load(Ordering::Acquire);
        if let Err(error) = self.transactor.begin().await {
            self.transactor.disconnect();
            return Outcome::Failed(error.into());
        }
        let last = head
            + batch
                .iter()
                .map(|entry| i64::from(entry.change.positions))
                .sum::<i64>();
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
        let refused = self.write_heads(batch, head).await?;
        if !refused.is_empty() {
            return Ok(refused);
        }
        let mut tables: Vec<(&'static Insert, Vec<Vec<Arg>>)> = Vec::new();
        let mut places: HashMap<usize, usize> = HashMap::new();
        let mut first = head + 1;
        let mut refused = Vec::new();
        for (index, entry) in batch.iter().enumerate() {
            for write in &entry.change.writes {
                let mut write = write.clone();
                write.place(first);
                match write {
                    Write::Insert(insert, args) => {
                        let place = *places
                            .entry(std::ptr::from_ref(insert).addr())
                            .or_insert_with(|| {
                                tables.push((insert, Vec::new()));
                                tables.len() - 1
                            });
                        tables[place].1.push(args);
                    }
                    write => match self.transactor.run(write).await {
                        Ok(()) => {}
                        Err(error @ WriteError::Unexpected) => {
                            refused.push((index, append_error(error)));
                            break;
                        }
                        Err(error) if error.is_duplicate() => {
                            // On PostgreSQL the transaction is spoilt now, so the others have to wait for the next try.
                            refused.push((index, append_error(error)));
                            return Ok(refused);
                        }
                        Err(error) => return Err(error),
                    },
                }
            }
            first += i64::from(entry.change.positions);
        }
        if !refused.is_empty() {
            return Ok(refused);
        }
        for (insert, rows) in tables {
            self.transactor.insert(insert, rows, None).await?;
        }
        if last > head {
            self.transactor
                .insert(&commits::ROW, vec![commits::row(last, head)], None)
                .await?;
        }
        self.reserve_ids().await?;
        Ok(Vec::new())
    }

    /// Moves on the heads of all rooms of the batch, if each is where its change says. Changes to one room form a
    /// chain, of which only the ends meet the database.
    async fn write_heads(
        &mut self,
        batch: &[Entry],
        head: Pos,
    ) -> Result<Vec<(usize, AppendError)>, WriteError> {
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
        if !refused.is_empty() || chains.is_empty() {
            return Ok(refused);
        }
        let rows = chains.values().map(PlacedHead::args).collect();
        let moved: HashSet<RoomNid> = self
            .transactor
            .insert(&rooms::HEAD, rows, Some("room_nid"))
            .await?
            .iter()
            .map(|row| row.get(0).map(RoomNid))
            .collect::<storage::Result<_>>()?;
        for (index, entry) in batch.iter().enumerate() {
            if entry
                .change
                .heads
                .iter()
                .any(|(room, _)| !moved.contains(&room.nid))
            {
                refused.push((index, AppendError::Conflict));
            }
        }
        Ok(refused)
    }

    /// Reserves the next block of ids while there are still plenty.
    async fn reserve_ids(&mut self) -> storage::Result<()> {
        self.reserving = None;
        if self.shared.ids_left() < ID_BLOCK / 2 {
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

/// Answers the refused entries and takes them out of the batch. An entry may be named more than once.
fn answer(batch: &mut Vec<Entry>, refused: Vec<(usize, AppendError)>) {
    let mut refused: HashMap<usize, AppendError> = refused.into_iter().collect();
    if refused.is_empty() {
        return;
    }
    let mut kept = Vec::with_capacity(batch.len());
    for (index, entry) in std::mem::take(batch).into_iter().enumerate() {
        match refused.remove(&index) {
            // The caller may have gone, then nobody needs to know.
            Some(error) => drop(entry.answer.send(Err(error))),
            None => kept.push(entry),
        }
    }
    *batch = kept;
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
