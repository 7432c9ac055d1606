//! What is in the database, to see whether it changes.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
};

use homing::app::App;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

/// Tables that change by themselves: ids are reserved in blocks, and when somebody was seen or went, and how far push has
/// come, is written now and then.
const RESTLESS: &[&str] = &["id_block", "device_seen", "presence", "push_cursor"];

/// All rows of each table, as one text.
pub type Contents = BTreeMap<String, String>;

/// Reads the whole database.
pub async fn contents(app: &App) -> Contents {
    let url = app.config.database_url();
    let mut contents = Contents::new();
    for table in tables() {
        let rows = if url.starts_with("sqlite:") {
            sqlite(&url, &table).await
        } else {
            postgres(&url, &table).await
        };
        let rows = rows.unwrap_or_else(|error| panic!("{table}: {error}"));
        contents.insert(table, rows);
    }
    contents
}

async fn sqlite(url: &str, table: &str) -> Result<String, sqlx::Error> {
    let mut connection = SqliteConnection::connect(url).await?;
    let columns: String = sqlx::query_scalar(
        "SELECT group_concat('quote(' || name || ')', ' || '','' || ') FROM pragma_table_info($1)",
    )
    .bind(table)
    .fetch_one(&mut connection)
    .await?;
    let rows = format!("SELECT {columns} AS row FROM {table} ORDER BY 1");
    let all = format!("SELECT coalesce(group_concat(row, char(10)), '') FROM ({rows})");
    sqlx::query_scalar(AssertSqlSafe(all))
        .fetch_one(&mut connection)
        .await
}

async fn postgres(url: &str, table: &str) -> Result<String, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let all =
        format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM {table} t");
    sqlx::query_scalar(AssertSqlSafe(all))
        .fetch_one(&mut connection)
        .await
}

/// The tables that the migrations make.
fn tables() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    let mut tables = Vec::new();
    for file in fs::read_dir(folder).expect("there are migrations") {
        let sql = fs::read_to_string(file.expect("a file").path()).expect("a readable file");
        let made = sql
            .lines()
            .filter_map(|line| line.strip_prefix("CREATE TABLE "));
        tables.extend(
            made.filter_map(|rest| rest.split([' ', '(']).next())
                .map(str::to_owned),
        );
    }
    tables.retain(|table| !RESTLESS.contains(&table.as_str()));
    assert!(tables.len() > 20, "{tables:?}");
    tables
}

/// Fails if anything has changed.
#[track_caller]
pub fn assert_same(before: &Contents, after: &Contents) {
    if before == after {
        return;
    }
    let mut changes = Vec::new();
    for (table, rows) in after {
        let known: HashSet<_> = before[table].lines().collect();
        let new = rows.lines().filter(|row| !known.contains(row));
        changes.extend(new.map(|row| format!("{table}: {row}")));
        if rows.len() < before[table].len() {
            changes.push(format!("{table} has lost something"));
        }
    }
    changes.truncate(30);
    panic!("the database has changed:\n{}", changes.join("\n"));
}
