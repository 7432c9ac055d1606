//! The two databases behind one door: native sqlx drivers, four verbs, one SQL text.
//!
//! This file, `transactor.rs`, `postgres_rows.rs` and `upkeep.rs` alone know which database runs. A storage function that
//! takes `&Db` only reads; one that changes something returns a [`Write`](super::Write), which the log's writer applies.

use std::{
    io,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{
    Connection, PgPool, Postgres, Row as _, Sqlite, SqlitePool,
    postgres::{PgArguments, PgConnectOptions, PgConnection, PgPoolOptions, PgRow},
    query::Query,
    sqlite::{
        SqliteArguments, SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection,
        SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

use crate::telemetry::Metrics;

/// What storage functions fail with: the driver's own error.
pub type Result<T> = std::result::Result<T, sqlx::Error>;

/// How many prepared statements each connection keeps.
const STATEMENT_CACHE: usize = 512;
/// How often, and how long apart, a claimed database is asked for.
const CLAIM_TRIES: u32 = 100;
const CLAIM_WAIT: Duration = Duration::from_millis(50);

/// How long PostgreSQL may take to answer at the start.
const CONNECT_TIME: Duration = Duration::from_secs(20);

/// Whether the URL of a database can be understood; nothing is opened.
///
/// # Errors
/// If it cannot; the error does not repeat the URL, which may hold a password.
pub fn check_url(url: &str) -> Result<()> {
    if url.starts_with("sqlite:") {
        SqliteConnectOptions::from_str(url).map(drop)
    } else {
        PgConnectOptions::from_str(url).map(drop)
    }
}

/// Where the database is, for people to read: its URL without user and password.
#[must_use]
pub fn place(url: &str) -> String {
    match PgConnectOptions::from_str(url) {
        _ if url.starts_with("sqlite:") => url.to_owned(),
        Ok(options) => format!(
            "postgres://{}:{}/{}",
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or_default()
        ),
        Err(_) => "`database.url`".to_owned(),
    }
}

/// Why the database failed, for people to read.
#[must_use]
pub fn cause(error: &sqlx::Error) -> String {
    match error {
        // Without the line of PostgreSQL's source that it came from.
        sqlx::Error::Database(error) => error.message().to_owned(),
        error => error.to_string(),
    }
}

/// One statement, spelled for both databases. Made with [`sql!`](crate::sql).
#[derive(Debug)]
pub struct Sql {
    /// The text for SQLite.
    pub sqlite: &'static str,
    /// The text for PostgreSQL.
    pub postgres: &'static str,
}

/// Spells one statement for both databases at compile time: `sql!("SELECT … WHERE nid ", list(1))`.
///
/// The pieces are string literals, which both databases read as they are, and:
/// - `list(n)`: "is among the list that parameter n holds" ([`Arg::Ints`] or [`Arg::Texts`]);
/// - `rows(n)`: the list that parameter n holds as a table `list` with the column `value`;
/// - `greatest(n)`: the name of the function that returns the largest of its n arguments;
/// - `(event_columns)`: what [`events::event`](crate::storage::events::event) reads;
/// - `only { sqlite: "…", postgres: "…" }`: where nothing else will do.
#[macro_export]
macro_rules! sql {
    ($($piece:tt $(($n:literal))? $({ sqlite: $lite:literal, postgres: $pg:literal })?),+ $(,)?) => {
        &$crate::storage::Sql {
            sqlite: concat!($($crate::sql_piece!(sqlite $piece $($n)? $($lite $pg)?)),+),
            postgres: concat!($($crate::sql_piece!(postgres $piece $($n)? $($lite $pg)?)),+),
        }
    };
}

/// The pieces of [`sql!`](crate::sql).
#[doc(hidden)]
#[macro_export]
macro_rules! sql_piece {
    ($db:ident $text:literal) => {
        $text
    };
    ($db:ident (event_columns)) => {
        $crate::event_columns!()
    };
    (sqlite list $n:literal) => {
        concat!("IN (SELECT value FROM json_each($", $n, "))")
    };
    (postgres list $n:literal) => {
        concat!("= ANY($", $n, ")")
    };
    (sqlite rows $n:literal) => {
        concat!("(SELECT value FROM json_each($", $n, ")) AS list")
    };
    (postgres rows $n:literal) => {
        concat!("unnest($", $n, ") AS list(value)")
    };
    (sqlite greatest $n:literal) => {
        "max"
    };
    (postgres greatest $n:literal) => {
        "greatest"
    };
    (sqlite only $lite:literal $pg:literal) => {
        $lite
    };
    (postgres only $lite:literal $pg:literal) => {
        $pg
    };
}

/// A parameter of a statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Arg {
    /// A BIGINT.
    Int(Option<i64>),
    /// A TEXT.
    Text(Option<Arc<str>>),
    /// A BLOB (BYTEA).
    Blob(Option<Arc<[u8]>>),
    /// A BOOLEAN.
    Bool(bool),
    /// A list of integers for `list(n)` and `rows(n)`.
    Ints(Vec<i64>),
    /// A list of texts for `list(n)` and `rows(n)`.
    Texts(Vec<String>),
    /// The k-th position of the change that this parameter belongs to; the log's writer fills it in.
    Position(u32),
}

impl Arg {
    /// Whether this is text with a null character, which PostgreSQL cannot take.
    pub(crate) fn has_null_character(&self) -> bool {
        match self {
            Self::Text(text) => text.as_ref().is_some_and(|text| text.contains('\0')),
            Self::Texts(texts) => texts.iter().any(|text| text.contains('\0')),
            Self::Int(_) | Self::Blob(_) | Self::Bool(_) | Self::Ints(_) | Self::Position(_) => {
                false
            }
        }
    }
}

/// A text with a null character was to be stored or looked for. Both databases refuse it, so that both are alike.
#[derive(Debug, thiserror::Error)]
#[error("a text has a null character")]
struct NullCharacter;

/// Whether a read failed only because a text to look for has a null character.
#[must_use]
pub fn is_null_character(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Encode(cause) if cause.is::<NullCharacter>())
}

macro_rules! arg_from {
    ($($from:ty, $value:ident => $arg:expr;)+) => {
        $(impl From<$from> for Arg {
            fn from($value: $from) -> Self { $arg }
        })+
    };
}

arg_from! {
    i64, value => Self::Int(Some(value));
    Option<i64>, value => Self::Int(value);
    bool, value => Self::Bool(value);
    &str, value => Self::Text(Some(value.into()));
    String, value => Self::Text(Some(value.into()));
    Arc<str>, value => Self::Text(Some(value));
    Option<Arc<str>>, value => Self::Text(value);
    Option<&str>, value => Self::Text(value.map(Into::into));
    Option<String>, value => Self::Text(value.map(Into::into));
    &[u8], value => Self::Blob(Some(value.into()));
    Vec<u8>, value => Self::Blob(Some(value.into()));
    Option<Vec<u8>>, value => Self::Blob(value.map(Into::into));
    Vec<i64>, value => Self::Ints(value);
    Vec<String>, value => Self::Texts(value);
    Position, value => Self::Position(value.0);
}

/// A position that a change asks for; known once the change is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(pub(crate) u32);

impl Position {
    /// The position, once the first one of its change is known.
    #[must_use]
    pub fn after(self, first: i64) -> i64 {
        first + i64::from(self.0)
    }
}

/// Makes the parameters of a statement: `args![user, "text", 3_i64]`.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$($crate::storage::Arg::from($arg)),*] };
}

/// One row of an answer, from either database.
#[derive(Debug)]
pub enum Row {
    /// From SQLite.
    Sqlite(SqliteRow),
    /// From PostgreSQL.
    Postgres(PgRow),
}

impl Row {
    /// The value of column `index`, counted from 0.
    ///
    /// # Errors
    /// If the column is absent, NULL where `T` cannot be, or of another type.
    pub fn get<T: Column>(&self, index: usize) -> Result<T> {
        match self {
            Self::Sqlite(row) => row.try_get(index),
            Self::Postgres(row) => row.try_get(index),
        }
    }
}

/// A type that a column of either database can hold: `i64`, `bool`, `String`, `Vec<u8>` and their `Option`s.
pub trait Column:
    for<'r> sqlx::Decode<'r, Sqlite>
    + sqlx::Type<Sqlite>
    + for<'r> sqlx::Decode<'r, Postgres>
    + sqlx::Type<Postgres>
{
}

impl<T> Column for T where
    T: for<'r> sqlx::Decode<'r, Sqlite>
        + sqlx::Type<Sqlite>
        + for<'r> sqlx::Decode<'r, Postgres>
        + sqlx::Type<Postgres>
{
}

/// The database, as its readers see it.
#[derive(Clone, Debug)]
pub struct Db {
    driver: Driver,
    counts: Arc<Counts>,
    metrics: Arc<Metrics>,
}

/// What the database was asked to do since the start.
#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
    rows_written: AtomicU64,
}

/// Statements since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Statements that read.
    pub reads: u64,
    /// Statements that wrote, without BEGIN and COMMIT.
    pub writes: u64,
    /// Rows that those statements were to write.
    pub rows_written: u64,
}

#[derive(Clone, Debug)]
enum Driver {
    Sqlite {
        readers: SqlitePool,
        writer: SqliteConnectOptions,
    },
    Postgres {
        pool: PgPool,
        writer: PgConnectOptions,
    },
}

/// The connection that writes; owned by the log's writer.
#[derive(Debug)]
pub enum Writer {
    /// To SQLite.
    Sqlite(SqliteConnection),
    /// To PostgreSQL.
    Postgres(PgConnection),
}

/// A database that no other server may use meanwhile. It lasts as long as its connection.
#[derive(Debug)]
pub struct Claim(Option<PgConnection>);

impl Claim {
    /// Makes sure that the database is still claimed, and claims it again if the connection was lost. False if another
    /// server has it now.
    pub(crate) async fn renew(&mut self, db: &Db) -> Result<bool> {
        let Some(connection) = &mut self.0 else {
            return Ok(true);
        };
        if connection.ping().await.is_ok() {
            return Ok(true);
        }
        match db.claim().await? {
            Some(claim) => *self = claim,
            None => return Ok(false),
        }
        Ok(true)
    }
}

impl Db {
    /// Connects to `url` (`sqlite:PATH` or `postgres://…`), makes the file if there is none, and migrates the schema.
    ///
    /// # Errors
    /// If the database cannot be reached or the schema is newer than this program.
    pub async fn open(url: &str, max_connections: u32, metrics: Arc<Metrics>) -> Result<Self> {
        let driver = if url.starts_with("sqlite:") {
            let options = sqlite_options(url)?;
            let writer = sqlite_writer(options.clone());
            let mut connection = SqliteConnection::connect_with(&writer).await?;
            sqlx::migrate!("migrations/sqlite")
                .run(&mut connection)
                .await?;
            connection.close().await?;
            let readers = SqlitePoolOptions::new()
                .max_connections(max_connections)
                .test_before_acquire(false)
                .connect_with(options.pragma("query_only", "ON"))
                .await?;
            Driver::Sqlite { readers, writer }
        } else {
            let writer = PgConnectOptions::from_str(url)?
                .statement_cache_capacity(STATEMENT_CACHE)
                // Migrations would tell of each table that is there already.
                .options([("client_min_messages", "warning")]);
            // Not by the pool, which would try again for long and not tell why it could not.
            let connecting = PgConnection::connect_with(&writer);
            let mut connection = tokio::time::timeout(CONNECT_TIME, connecting)
                .await
                .map_err(io::Error::from)??;
            check_encoding(&mut connection).await?;
            sqlx::migrate!("migrations/postgres")
                .run(&mut connection)
                .await?;
            connection.close().await?;
            let pool = PgPoolOptions::new()
                .max_connections(max_connections)
                .connect_lazy_with(writer.clone());
            Driver::Postgres { pool, writer }
        };
        Ok(Self {
            driver,
            counts: Arc::default(),
            metrics,
        })
    }

    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.driver, Driver::Postgres { .. })
    }

    /// How to write to SQLite, if that is the database.
    pub(super) fn sqlite_writer(&self) -> Option<&SqliteConnectOptions> {
        match &self.driver {
            Driver::Sqlite { writer, .. } => Some(writer),
            Driver::Postgres { .. } => None,
        }
    }

    /// A connection that writes. There is one for each running server: the log's.
    pub(crate) async fn writer(&self) -> Result<Writer> {
        Ok(match &self.driver {
            Driver::Sqlite { writer, .. } => {
                Writer::Sqlite(SqliteConnection::connect_with(writer).await?)
            }
            Driver::Postgres { writer, .. } => {
                Writer::Postgres(PgConnection::connect_with(writer).await?)
            }
        })
    }

    /// Claims the database for one server. Until several can share one, a second one would give the same positions
    /// again. `None` if another server has it. A file of SQLite is guarded by the lock on its directory.
    pub(crate) async fn claim(&self) -> Result<Option<Claim>> {
        let Driver::Postgres { writer, .. } = &self.driver else {
            return Ok(Some(Claim(None)));
        };
        let mut connection = PgConnection::connect_with(writer).await?;
        // PostgreSQL takes a moment to notice that a server that was killed is gone.
        for _ in 0..CLAIM_TRIES {
            let claimed: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(7161)")
                .fetch_one(&mut connection)
                .await?;
            if claimed {
                return Ok(Some(Claim(Some(connection))));
            }
            tokio::time::sleep(CLAIM_WAIT).await;
        }
        Ok(None)
    }

    /// All rows that the query answers.
    pub async fn rows(&self, sql: &'static Sql, args: Vec<Arg>) -> Result<Vec<Row>> {
        if args.iter().any(Arg::has_null_character) {
            return Err(sqlx::Error::Encode(Box::new(NullCharacter)));
        }
        let started = Instant::now();
        let rows = match &self.driver {
            Driver::Sqlite { readers, .. } => bind_sqlite(sqlx::query(sql.sqlite), args)
                .fetch_all(readers)
                .await
                .map(|rows| rows.into_iter().map(Row::Sqlite).collect()),
            Driver::Postgres { pool, .. } => bind_postgres(sqlx::query(sql.postgres), args)
                .fetch_all(pool)
                .await
                .map(|rows| rows.into_iter().map(Row::Postgres).collect()),
        };
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.count_time(started);
        rows
    }

    /// The first row that the query answers, if any.
    pub async fn maybe(&self, sql: &'static Sql, args: Vec<Arg>) -> Result<Option<Row>> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// The one row of a query that always answers one.
    pub async fn one(&self, sql: &'static Sql, args: Vec<Arg>) -> Result<Row> {
        self.maybe(sql, args).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// What the database was asked to do since the start.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            reads: self.counts.reads.load(Ordering::Relaxed),
            writes: self.counts.writes.load(Ordering::Relaxed),
            rows_written: self.counts.rows_written.load(Ordering::Relaxed),
        }
    }

    /// Ends all connections of the readers.
    pub async fn close(&self) {
        match &self.driver {
            Driver::Sqlite { readers, .. } => readers.close().await,
            Driver::Postgres { pool, .. } => pool.close().await,
        }
    }

    pub(super) fn count_write(&self, started: Instant, rows: usize) {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        self.counts.rows_written.fetch_add(rows, Ordering::Relaxed);
        self.count_time(started);
    }

    fn count_time(&self, started: Instant) {
        self.metrics.database_statements.inc();
        self.metrics
            .database_duration
            .observe(started.elapsed().as_secs_f64());
    }
}

/// A database with another encoding takes no emoji.
async fn check_encoding(connection: &mut PgConnection) -> Result<()> {
    let encoding: String = sqlx::query_scalar("SHOW server_encoding")
        .fetch_one(connection)
        .await?;
    if encoding == "UTF8" {
        return Ok(());
    }
    let message = format!(
        "the encoding of the database is {encoding}, and has to be UTF8: \
         CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
    );
    Err(sqlx::Error::Configuration(message.into()))
}

fn sqlite_options(url: &str) -> Result<SqliteConnectOptions> {
    Ok(SqliteConnectOptions::from_str(url)?
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(false)
        .pragma("temp_store", "MEMORY")
        .statement_cache_capacity(STATEMENT_CACHE))
}

/// What was acknowledged must survive a power cut, hence `synchronous = FULL`.
fn sqlite_writer(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .create_if_missing(true)
        .page_size(8192)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "4000")
        .pragma("journal_size_limit", "67108864")
}

pub(super) type SqliteQuery<'q> = Query<'q, Sqlite, SqliteArguments>;
pub(super) type PostgresQuery<'q> = Query<'q, Postgres, PgArguments>;

pub(super) fn bind_sqlite(mut query: SqliteQuery<'_>, args: Vec<Arg>) -> SqliteQuery<'_> {
    for arg in args {
        query = match arg {
            Arg::Int(value) => query.bind(value),
            Arg::Text(value) => query.bind(value),
            Arg::Blob(value) => query.bind(value.map(|bytes| bytes.to_vec())),
            Arg::Bool(value) => query.bind(value),
            Arg::Ints(list) => query.bind(json_list(&list)),
            Arg::Texts(list) => query.bind(json_list(&list)),
            Arg::Position(_) => query.bind(None::<i64>),
        };
    }
    query
}

pub(super) fn bind_postgres(mut query: PostgresQuery<'_>, args: Vec<Arg>) -> PostgresQuery<'_> {
    for arg in args {
        query = match arg {
            Arg::Int(value) => query.bind(value),
            Arg::Text(value) => query.bind(value.map(|text| text.to_string())),
            Arg::Blob(value) => query.bind(value.map(|bytes| bytes.to_vec())),
            Arg::Bool(value) => query.bind(value),
            Arg::Ints(list) => query.bind(list),
            Arg::Texts(list) => query.bind(list),
            Arg::Position(_) => query.bind(None::<i64>),
        };
    }
    query
}

/// SQLite has no arrays: a list travels as JSON and is opened with `json_each`.
fn json_list<T: serde::Serialize>(list: &[T]) -> String {
    serde_json::to_string(list).unwrap_or_default()
}
