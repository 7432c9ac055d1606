//! What another server must be told that is no event: messages for its devices. It waits in the database until the server has
//! taken it.

use crate::{
    app::App,
    error::Result,
    log::Change,
    storage::{Pos, ServerNid, to_device},
};

/// How many of the hundred EDUs of a transaction are such.
const MOST: i64 = 50;
/// How many bytes they have when there are more than one.
const BYTES: usize = 512 << 10;

/// The first of what waits for a server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Durable {
    /// The EDUs, as canonical JSON.
    pub(super) edus: Vec<String>,
    /// Up to where the messages are among them.
    upto: Pos,
    /// Whether more waits.
    pub(super) has_more: bool,
}

impl Durable {
    pub(super) fn is_empty(&self) -> bool {
        self.edus.is_empty()
    }

    #[cfg(test)]
    pub(super) fn new(edus: &[&str], upto: Pos, has_more: bool) -> Self {
        Self {
            edus: edus.iter().map(|edu| (*edu).to_owned()).collect(),
            upto,
            has_more,
        }
    }
}

/// Reads the first of what waits for a server.
///
/// # Errors
/// If the database fails.
pub(super) async fn read(app: &App, server: ServerNid) -> Result<Durable> {
    let waiting = to_device::out(&app.db, server, MOST + 1).await?;
    let mut bytes = 0;
    let fitting = waiting.iter().take_while(|message| {
        bytes += message.json.len();
        bytes <= BYTES || bytes == message.json.len()
    });
    let count = fitting.count().min(usize::try_from(MOST).unwrap_or(1));
    Ok(Durable {
        has_more: count < waiting.len(),
        upto: waiting[..count].last().map_or(0, |last| last.pos),
        edus: waiting
            .into_iter()
            .take(count)
            .map(|message| message.json)
            .collect(),
    })
}

/// The server has taken it.
///
/// # Errors
/// If the database fails: then the server gets it once more.
pub(super) async fn taken(app: &App, server: ServerNid, upto: &Durable) -> Result<()> {
    let mut change = Change::new();
    change.write(to_device::remove_out(server, upto.upto));
    app.log.append(change).await?;
    Ok(())
}
