//! Writes as plain data. The [`Transactor`](super::Transactor) makes them.

use std::collections::HashMap;

use super::{Arg, Sql};

/// A statement that changes one row of one table, in a form that lets many rows travel in one statement.
///
/// Made once for each table (`static SET: Insert = Insert { … }`); rows of the same `Insert` in one commit become one
/// statement. Each column takes one kind of [`Arg`]. `conflict` must overwrite the whole row or do nothing, because of two
/// rows with the same key the later wins.
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
    /// The same with its positions, in a change whose first one is `first`.
    pub(crate) fn placed(mut self, first: i64) -> Self {
        let (Self::Insert(_, args) | Self::Run(_, args) | Self::Expect(_, args, _)) = &mut self;
        for arg in args {
            if let Arg::Position(k) = arg {
                *arg = Arg::Int(Some(first + i64::from(*k)));
            }
        }
        self
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

/// Rows for one table.
pub type Table = (&'static Insert, Vec<Vec<Arg>>);

/// Rows for several tables, not yet written.
#[derive(Debug, Default)]
pub struct Rows {
    tables: Vec<Table>,
}

impl Rows {
    /// Adds a row for the table of `insert`.
    pub fn add(&mut self, insert: &'static Insert, row: Vec<Arg>) {
        match self
            .tables
            .iter_mut()
            .find(|(known, _)| std::ptr::eq(*known, insert))
        {
            Some((_, rows)) => rows.push(row),
            None => self.tables.push((insert, vec![row])),
        }
    }

    /// Whether a statement names a table of theirs. If not, it makes no difference which of the two is first: there are no
    /// triggers, and no rows that other rows take with them.
    #[must_use]
    pub fn are_named_in(&self, sql: &Sql) -> bool {
        let mut tables = self.tables.iter().map(|(insert, _)| insert.table);
        tables.any(|table| sql.sqlite.contains(table) || sql.postgres.contains(table))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tables.iter().map(|(_, rows)| rows.len()).sum()
    }

    /// The tables with their rows; of rows with the same key only the last.
    pub(super) fn into_tables(self) -> impl Iterator<Item = Table> {
        let tables = self.tables.into_iter();
        tables.map(|(insert, rows)| (insert, last_of_each_key(rows, insert.key)))
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
