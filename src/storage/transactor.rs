//! The writing end: the one connection that changes the database.

use std::{collections::HashMap, sync::Arc, time::Instant};

use sqlx::{AssertSqlSafe, Executor as _};

use super::{
    db::{Arg, Db, Result, Row, Sql, Writer, bind_postgres, bind_sqlite},
    postgres_rows::{Guard, Statement, Texts},
    write::{Insert, Rows, Table, Write, WriteError},
};

/// Rows in one statement of SQLite: powers of two keep the number of prepared statements small.
const CHUNKS: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

/// One connection, one transaction at a time.
#[derive(Debug)]
pub struct Transactor {
    db: Db,
    connection: Option<Writer>,
    sqlite_texts: HashMap<(usize, usize), Arc<str>>,
    postgres_texts: Texts,
}

impl Transactor {
    /// A writing end of `db`; it connects when first used, and again after an error.
    #[must_use]
    pub fn new(db: Db) -> Self {
        Self {
            db,
            connection: None,
            sqlite_texts: HashMap::new(),
            postgres_texts: Texts::default(),
        }
    }

    /// Opens a transaction that nobody else can write beside.
    pub async fn begin(&mut self) -> Result<()> {
        self.connect().await?;
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

    async fn connect(&mut self) -> Result<()> {
        if self.connection.is_none() {
            self.connection = Some(self.db.writer().await?);
        }
        Ok(())
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
        self.db
            .count_write(started, usize::try_from(changed).unwrap_or(usize::MAX));
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
        self.db.count_write(started, rows.len());
        Ok(rows)
    }

    /// Runs one [`Write`].
    pub async fn run(&mut self, write: Write) -> std::result::Result<(), WriteError> {
        match write {
            Write::Insert(insert, args) => {
                let mut rows = Rows::default();
                rows.add(insert, args);
                self.insert(rows).await?;
            }
            Write::Run(sql, args) => drop(self.execute(sql, args).await?),
            Write::Expect(sql, args, expected) => {
                if self.execute(sql, args).await? != expected {
                    return Err(WriteError::Unexpected);
                }
            }
        }
        Ok(())
    }

    /// Writes all rows inside the transaction; of rows with the same key only the last.
    pub async fn insert(&mut self, rows: Rows) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        if let Writer::Sqlite(_) = self.connection()? {
            for table in rows.into_tables() {
                self.insert_sqlite(table, None).await?;
            }
        } else {
            let count = rows.len();
            let statement = self.postgres_texts.plain(rows)?;
            self.run_postgres(statement, count).await?;
        }
        Ok(())
    }

    /// Writes rows some of which may be left out for a conflict. Answers the first column of those that were written.
    pub async fn insert_some(&mut self, table: Table) -> Result<Vec<Row>> {
        if let Writer::Sqlite(_) = self.connection()? {
            let column = table.0.columns[0];
            return self.insert_sqlite(table, Some(column)).await;
        }
        let count = table.1.len();
        let statement = self
            .postgres_texts
            .guarded(Guard::Answer, table, Rows::default())?;
        self.run_postgres(statement, count).await
    }

    /// Whether [`Transactor::commit_at_once`] works here. On SQLite it does not, and need not, as nothing is far away.
    #[must_use]
    pub fn commits_at_once(&self) -> bool {
        self.db.is_postgres()
    }

    /// Writes and commits everything in one statement; nothing at all if one of the `guarded` rows would be left out.
    pub async fn commit_at_once(&mut self, guarded: Option<Table>, rows: Rows) -> Result<()> {
        self.connect().await?;
        let mut count = rows.len();
        let statement = match guarded {
            Some(table) => {
                count += table.1.len();
                self.postgres_texts.guarded(Guard::All, table, rows)?
            }
            None => self.postgres_texts.plain(rows)?,
        };
        self.run_postgres(statement, count).await.map(drop)
    }

    async fn run_postgres(&mut self, statement: Statement, count: usize) -> Result<Vec<Row>> {
        let started = Instant::now();
        let Writer::Postgres(connection) = self.connection()? else {
            return Err(sqlx::Error::PoolClosed);
        };
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&statement.text)));
        let rows = statement.bind(query).fetch_all(connection).await?;
        self.db.count_write(started, count);
        Ok(rows.into_iter().map(Row::Postgres).collect())
    }

    async fn insert_sqlite(
        &mut self,
        (insert, mut rows): Table,
        returning: Option<&'static str>,
    ) -> Result<Vec<Row>> {
        let mut answered = Vec::new();
        for chunk in CHUNKS {
            while rows.len() >= chunk {
                let args: Vec<Arg> = rows.drain(..chunk).flatten().collect();
                let text = self.text(insert, chunk, returning);
                let started = Instant::now();
                let Writer::Sqlite(connection) = self.connection()? else {
                    return Err(sqlx::Error::PoolClosed);
                };
                let query = bind_sqlite(sqlx::query(AssertSqlSafe(text)), args);
                let written = query.fetch_all(connection).await?;
                answered.extend(written.into_iter().map(Row::Sqlite));
                self.db.count_write(started, chunk);
            }
        }
        Ok(answered)
    }

    /// The text that inserts `chunk` rows into SQLite.
    fn text(&mut self, insert: &'static Insert, chunk: usize, returning: Option<&str>) -> Arc<str> {
        // An `Insert` is a static, so its address names it.
        let key = (std::ptr::from_ref(insert).addr(), chunk);
        let text = self.sqlite_texts.entry(key).or_insert_with(|| {
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
