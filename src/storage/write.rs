//! Writes as plain data, and the transaction that applies many of them at once.

use std::{collections::HashMap, sync::Arc, time::Instant};

use sqlx::{AssertSqlSafe, Executor as _};

use super::db::{Arg, Db, Result, Row, Sql, Writer, bind_postgres, bind_sqlite};

/// A statement that changes one row of one table, in a form that lets many rows travel in one statement.
///
/// Made once for each use (`static SET: Insert = Insert { … }`); rows of the same `Insert` in one commit become one
/// statement. `conflict` must overwrite the whole row or do nothing, because of two rows with the same key the later wins.
#[derive(Debug)]
pub struct Insert {
    /// The table.
    pub table: &'static str,
    /// The columns, the ones of the key first.
    pub columns: &'static [&'static str],
    /// How many of the columns form the key; 0 if rows never meet another with the same key.
    pub key: usize,
    /// `ON CONFLICT …`, or nothing.
    pub conflict: &'static str,
}

/// One change to the database, not yet made.
#[derive(Clone, Debug)]
pub enum Write {
    /// A row for a table that gathers many in each commit.
    Insert(&'static Insert, Vec<Arg>),
    /// A statement of its own.
    Run(&'static Sql, Vec<Arg>),
    /// A statement that must change exactly so many rows, else the whole change is refused.
    Expect(&'static Sql, Vec<Arg>, u64),
}

impl Write {
    pub(crate) fn place(&mut self, first: i64) {
        let (Self::Insert(_, args) | Self::Run(_, args) | Self::Expect(_, args, _)) = self;
        for arg in args {
            if let Arg::Position(k) = arg {
                *arg = Arg::Int(Some(first + i64::from(*k)));
            }
        }
    }

    /// Whether there is text in it that cannot be stored.
    pub(crate) fn has_null_character(&self) -> bool {
        let (Self::Insert(_, args) | Self::Run(_, args) | Self::Expect(_, args, _)) = self;
        args.iter().any(Arg::has_null_character)
    }
}

/// Why a transaction could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A [`Write::Expect`] met another number of rows.
    #[error("the rows were not as expected")]
    Unexpected,
    /// The database's own error.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl WriteError {
    /// Whether a unique key was taken already.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.is_unique_violation(),
            _ => false,
        }
    }
}

/// The writing end: one connection, one transaction at a time.
#[derive(Debug)]
pub struct Transactor {
    db: Db,
    connection: Option<Writer>,
    texts: HashMap<(usize, usize), Arc<str>>,
}

/// Rows in one statement: powers of two keep the number of prepared statements small.
const CHUNKS: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

impl Transactor {
    /// A writing end of `db`; it connects when first used, and again after an error.
    #[must_use]
    pub fn new(db: Db) -> Self {
        Self {
            db,
            connection: None,
            texts: HashMap::new(),
        }
    }

    /// Opens a transaction that nobody else can write beside.
    pub async fn begin(&mut self) -> Result<()> {
        if self.connection.is_none() {
            self.connection = Some(self.db.writer().await?);
        }
        self.plain("BEGIN IMMEDIATE", "BEGIN").await
    }

    /// Makes the transaction durable.
    pub async fn commit(&mut self) -> Result<()> {
        self.plain("COMMIT", "COMMIT").await
    }

    /// Undoes the transaction. If that fails too, the connection is given up.
    pub async fn rollback(&mut self) {
        if self.plain("ROLLBACK", "ROLLBACK").await.is_err() {
            self.connection = None;
        }
    }

    /// Gives up the connection; the next transaction makes a new one.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    async fn plain(&mut self, sqlite: &'static str, postgres: &'static str) -> Result<()> {
        match self.connection()? {
            Writer::Sqlite(connection) => connection.execute(sqlite).await.map(drop),
            Writer::Postgres(connection) => connection.execute(postgres).await.map(drop),
        }
    }

    fn connection(&mut self) -> Result<&mut Writer> {
        self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)
    }

    /// Runs one statement inside the transaction; answers how many rows it changed.
    pub async fn execute(&mut self, sql: &'static Sql, args: Vec<Arg>) -> Result<u64> {
        let started = Instant::now();
        let changed = match self.connection()? {
            Writer::Sqlite(connection) => bind_sqlite(sqlx::query(sql.sqlite), args)
                .execute(connection)
                .await?
                .rows_affected(),
            Writer::Postgres(connection) => bind_postgres(sqlx::query(sql.postgres), args)
                .execute(connection)
                .await?
                .rows_affected(),
        };
        self.db.count_write(started);
        Ok(changed)
    }

    /// Runs one statement inside the transaction; answers the rows that it returns.
    pub async fn returning(&mut self, sql: &'static Sql, args: Vec<Arg>) -> Result<Vec<Row>> {
        let started = Instant::now();
        let rows: Vec<Row> = match self.connection()? {
            Writer::Sqlite(connection) => {
                let rows = bind_sqlite(sqlx::query(sql.sqlite), args)
                    .fetch_all(connection)
                    .await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Writer::Postgres(connection) => {
                let rows = bind_postgres(sqlx::query(sql.postgres), args)
                    .fetch_all(connection)
                    .await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        };
        self.db.count_write(started);
        Ok(rows)
    }

    /// Runs one [`Write`].
    pub async fn run(&mut self, write: Write) -> std::result::Result<(), WriteError> {
        match write {
            Write::Insert(insert, args) => self.insert(insert, vec![args], None).await.map(drop)?,
            Write::Run(sql, args) => drop(self.execute(sql, args).await?),
            Write::Expect(sql, args, expected) => {
                if self.execute(sql, args).await? != expected {
                    return Err(WriteError::Unexpected);
                }
            }
        }
        Ok(())
    }

    /// Writes all rows of one table; of rows with the same key only the last. With `returning` it answers that column
    /// of the rows that were really written.
    pub async fn insert(
        &mut self,
        insert: &'static Insert,
        rows: Vec<Vec<Arg>>,
        returning: Option<&'static str>,
    ) -> Result<Vec<Row>> {
        let mut rows = last_of_each_key(rows, insert.key);
        let mut answered = Vec::new();
        for chunk in CHUNKS {
            while rows.len() >= chunk {
                let args: Vec<Arg> = rows.drain(..chunk).flatten().collect();
                let text = self.text(insert, chunk, returning);
                let started = Instant::now();
                match self.connection()? {
                    Writer::Sqlite(connection) => {
                        let query = bind_sqlite(sqlx::query(AssertSqlSafe(text)), args);
                        answered.extend(
                            query
                                .fetch_all(connection)
                                .await?
                                .into_iter()
                                .map(Row::Sqlite),
                        );
                    }
                    Writer::Postgres(connection) => {
                        let query = bind_postgres(sqlx::query(AssertSqlSafe(text)), args);
                        answered.extend(
                            query
                                .fetch_all(connection)
                                .await?
                                .into_iter()
                                .map(Row::Postgres),
                        );
                    }
                }
                self.db.count_write(started);
            }
        }
        Ok(answered)
    }

    fn text(&mut self, insert: &'static Insert, chunk: usize, returning: Option<&str>) -> Arc<str> {
        // An `Insert` is a static, so its address names it.
        let key = (std::ptr::from_ref(insert).addr(), chunk);
        let text = self.texts.entry(key).or_insert_with(|| {
            let width = insert.columns.len();
            let values: Vec<String> = (0..chunk)
                .map(|row| {
                    let places: Vec<String> = (1..=width)
                        .map(|column| format!("${}", row * width + column))
                        .collect();
                    format!("({})", places.join(","))
                })
                .collect();
            let mut text = format!(
                "INSERT INTO {} ({}) VALUES {} {}",
                insert.table,
                insert.columns.join(","),
                values.join(","),
                insert.conflict
            );
            if let Some(column) = returning {
                text.push_str(" RETURNING ");
                text.push_str(column);
            }
            text.into()
        });
        Arc::clone(text)
    }
}

/// PostgreSQL refuses a statement that meets the same key twice, and only the last row counts anyway.
fn last_of_each_key(rows: Vec<Vec<Arg>>, key: usize) -> Vec<Vec<Arg>> {
    if key == 0 || rows.len() < 2 {
        return rows;
    }
    let newest: HashMap<&[Arg], usize> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| (&row[..key], index))
        .collect();
    let mut kept: Vec<usize> = newest.into_values().collect();
    kept.sort_unstable();
    let mut rows: Vec<Option<Vec<Arg>>> = rows.into_iter().map(Some).collect();
    kept.into_iter()
        .filter_map(|index| rows[index].take())
        .collect()
}
