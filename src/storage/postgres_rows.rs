//! How PostgreSQL takes many rows for many tables in one statement: each column travels as one array, each table is one
//! part of a `WITH`. So a commit is one round trip, however much is in it, and the text depends on the tables alone.

use std::{collections::HashMap, sync::Arc};

use super::{
    db::{Arg, PostgresQuery, Result},
    write::{Insert, Rows, Table},
};

/// What becomes of rows that meet another one and are not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Guard {
    /// The statement answers the first column of those that were written.
    Answer,
    /// The statement fails unless all are written.
    All,
}

/// The texts made so far, by the tables that they write.
#[derive(Debug, Default)]
pub(super) struct Texts(HashMap<(Option<Guard>, Vec<usize>), Arc<str>>);

/// A statement with what is bound to it.
#[derive(Debug)]
pub(super) struct Statement {
    /// Its text.
    pub(super) text: Arc<str>,
    columns: Vec<Column>,
    /// How many rows must be written for the statement to succeed.
    wanted: Option<i64>,
}

impl Texts {
    /// The statement that writes `rows`.
    pub(super) fn plain(&mut self, rows: Rows) -> Result<Statement> {
        self.statement(None, tables(rows))
    }

    /// The statement that writes the `guarded` rows and the others.
    pub(super) fn guarded(
        &mut self,
        guard: Guard,
        guarded: Table,
        rows: Rows,
    ) -> Result<Statement> {
        let mut tables = tables(rows);
        tables.insert(0, guarded);
        self.statement(Some(guard), tables)
    }

    fn statement(&mut self, guard: Option<Guard>, tables: Vec<Table>) -> Result<Statement> {
        let key = tables.iter().map(|(insert, _)| address(insert)).collect();
        let wanted = match guard {
            Some(Guard::All) => i64::try_from(tables[0].1.len()).ok(),
            Some(Guard::Answer) | None => None,
        };
        let mut inserts = Vec::with_capacity(tables.len());
        let mut columns = Vec::new();
        for (insert, rows) in tables {
            inserts.push(insert);
            columns.extend(transpose(rows)?);
        }
        let text = self.0.entry((guard, key));
        let text = text.or_insert_with(|| text_of(guard, &inserts, &columns).into());
        Ok(Statement {
            text: Arc::clone(text),
            columns,
            wanted,
        })
    }
}

impl Statement {
    /// Binds the parameters to `query`, which has the statement's text.
    pub(super) fn bind(self, query: PostgresQuery<'_>) -> PostgresQuery<'_> {
        let query = self
            .columns
            .into_iter()
            .fold(query, |query, column| match column {
                Column::Ints(values) => query.bind(values),
                Column::Texts(values) => query.bind(values),
                Column::Blobs(values) => query.bind(values),
                Column::Bools(values) => query.bind(values),
            });
        match self.wanted {
            Some(rows) => query.bind(rows),
            None => query,
        }
    }
}

/// The tables in an order that depends on nothing but which they are. Inside one statement it means nothing.
fn tables(rows: Rows) -> Vec<Table> {
    let mut tables: Vec<Table> = rows.into_tables().collect();
    tables.sort_by_key(|(insert, _)| address(insert));
    tables
}

/// An [`Insert`] is a static, so its address names it.
fn address(insert: &'static Insert) -> usize {
    std::ptr::from_ref(insert).addr()
}

fn text_of(guard: Option<Guard>, inserts: &[&'static Insert], columns: &[Column]) -> String {
    let mut parameters = columns.iter().zip(1..);
    let parts: Vec<String> = inserts
        .iter()
        .enumerate()
        .map(|(index, insert)| {
            let arrays: Vec<String> = parameters
                .by_ref()
                .take(insert.columns.len())
                .map(|(column, number)| format!("${number}::{}", column.array()))
                .collect();
            let returning = match guard {
                Some(_) if index == 0 => format!(" RETURNING {}", insert.columns[0]),
                _ => String::new(),
            };
            format!(
                "t{index} AS (INSERT INTO {} ({}) SELECT * FROM unnest({}) {}{returning})",
                insert.table,
                insert.columns.join(","),
                arrays.join(","),
                insert.conflict,
            )
        })
        .collect();
    let end = match guard {
        None => "SELECT 1".to_owned(),
        Some(Guard::Answer) => "SELECT * FROM t0".to_owned(),
        // A division by zero is the one error that a query can raise by itself.
        Some(Guard::All) => format!(
            "SELECT 1 / (count(*) = ${})::int FROM t0",
            columns.len() + 1
        ),
    };
    format!("WITH {} {end}", parts.join(","))
}

/// The values of one column, one for each row.
#[derive(Debug)]
enum Column {
    Ints(Vec<Option<i64>>),
    Texts(Vec<Option<String>>),
    Blobs(Vec<Option<Vec<u8>>>),
    Bools(Vec<bool>),
}

impl Column {
    /// A column for values of the kind of `arg`.
    fn like(arg: &Arg, rows: usize) -> Result<Self> {
        Ok(match arg {
            Arg::Int(_) => Self::Ints(Vec::with_capacity(rows)),
            Arg::Text(_) => Self::Texts(Vec::with_capacity(rows)),
            Arg::Blob(_) => Self::Blobs(Vec::with_capacity(rows)),
            Arg::Bool(_) => Self::Bools(Vec::with_capacity(rows)),
            Arg::Ints(_) | Arg::Texts(_) | Arg::Position(_) => return Err(misfit(arg)),
        })
    }

    fn push(&mut self, arg: Arg) -> Result<()> {
        match (self, arg) {
            (Self::Ints(values), Arg::Int(value)) => values.push(value),
            (Self::Texts(values), Arg::Text(value)) => {
                values.push(value.map(|text| text.to_string()));
            }
            (Self::Blobs(values), Arg::Blob(value)) => {
                values.push(value.map(|bytes| bytes.to_vec()));
            }
            (Self::Bools(values), Arg::Bool(value)) => values.push(value),
            (_, arg) => return Err(misfit(&arg)),
        }
        Ok(())
    }

    fn array(&self) -> &'static str {
        match self {
            Self::Ints(_) => "bigint[]",
            Self::Texts(_) => "text[]",
            Self::Blobs(_) => "bytea[]",
            Self::Bools(_) => "boolean[]",
        }
    }
}

fn misfit(arg: &Arg) -> sqlx::Error {
    sqlx::Error::Encode(format!("a column of a row cannot take {arg:?}").into())
}

/// Rows as columns.
fn transpose(rows: Vec<Vec<Arg>>) -> Result<Vec<Column>> {
    let count = rows.len();
    let mut columns: Vec<Column> = Vec::new();
    for row in rows {
        if columns.is_empty() {
            let kinds = row.iter().map(|arg| Column::like(arg, count));
            columns = kinds.collect::<Result<_>>()?;
        }
        for (column, arg) in columns.iter_mut().zip(row) {
            column.push(arg)?;
        }
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    static HEAD: Insert = Insert {
        table: "head",
        columns: &["room", "name"],
        key: 0,
        conflict: "ON CONFLICT (room) DO NOTHING",
    };
    static EVENT: Insert = Insert {
        table: "event",
        columns: &["nid", "json", "seen"],
        key: 1,
        conflict: "",
    };

    #[test]
    fn one_statement_for_all_tables_whatever_the_number_of_rows() {
        let mut texts = Texts::default();
        let mut statement = |rows: i64| {
            let mut events = Rows::default();
            for nid in 0..rows {
                events.add(&EVENT, args![nid, vec![1_u8], true]);
            }
            let heads = (&HEAD, vec![args![1_i64, "a"], args![2_i64, None::<&str>]]);
            texts.guarded(Guard::All, heads, events).unwrap()
        };
        let one = statement(1);
        assert_eq!(
            &*one.text,
            "WITH t0 AS (INSERT INTO head (room,name) SELECT * FROM unnest($1::bigint[],$2::text[]) \
             ON CONFLICT (room) DO NOTHING RETURNING room),\
             t1 AS (INSERT INTO event (nid,json,seen) SELECT * FROM unnest($3::bigint[],$4::bytea[],$5::boolean[]) ) \
             SELECT 1 / (count(*) = $6)::int FROM t0"
        );
        assert_eq!(one.wanted, Some(2));
        assert_eq!(statement(100).text, one.text);
    }

    #[test]
    fn a_column_of_two_kinds_is_refused() {
        let mut rows = Rows::default();
        rows.add(&HEAD, args![1_i64, "a"]);
        rows.add(&HEAD, args![2_i64, 3_i64]);
        assert!(Texts::default().plain(rows).is_err());
    }
}
