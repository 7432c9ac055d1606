//! What another server must be told that is no event: messages for its devices, and whose devices have changed. It waits in
//! the database until the server has taken it.

use crate::{
    app::App,
    error::Result,
    keys,
    log::Change,
    storage::{Pos, ServerNid, device_lists, to_device},
    to_device::fitting,
};

/// How many messages, and how many changes of devices, are in a transaction of a hundred EDUs.
const MESSAGES: i64 = 30;
const CHANGES: i64 = 20;
/// How many bytes of them there are when there are more than one: they go with events, and some servers take no requests of
/// more than a mebibyte.
const BYTES: usize = 256 << 10;

/// The first of what waits for a server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Durable {
    /// The EDUs, as canonical JSON.
    pub(super) edus: Vec<String>,
    /// Up to where the messages are among them.
    upto: Pos,
    /// Up to where changes of devices are told with them, if that is further than before.
    devices: Option<Pos>,
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
            devices: None,
            has_more,
        }
    }
}

/// Reads the first of what waits for a server. If that is nothing, it is written down up to where there was nothing.
///
/// # Errors
/// If the database fails.
pub(super) async fn read(app: &App, server: ServerNid) -> Result<Durable> {
    let head = app.head();
    let waiting = to_device::out(&app.db, server, MESSAGES + 1).await?;
    let count = fitting(&waiting, MESSAGES, BYTES);
    let mut durable = Durable {
        has_more: count < waiting.len(),
        upto: waiting[..count].last().map_or(0, |last| last.pos),
        devices: None,
        edus: Vec::new(),
    };
    let messages = waiting.into_iter().take(count);
    durable.edus.extend(messages.map(|message| message.json));
    let mut bytes: usize = durable.edus.iter().map(String::len).sum();
    let after = device_lists::told(&app.db, server).await?;
    let changes = device_lists::untold(&app.db, server, after, CHANGES + 1).await?;
    let most = usize::try_from(CHANGES).unwrap_or(1);
    let mut told = after;
    let mut is_all = changes.len() <= most;
    for (pos, edu) in keys::updates(app, &changes[..changes.len().min(most)]).await? {
        bytes += edu.len();
        if bytes > BYTES && !durable.is_empty() {
            is_all = false;
            break;
        }
        durable.edus.push(edu);
        told = pos;
    }
    if is_all {
        // The next reading need not look again at what is nothing to the server.
        told = told.max(head);
    }
    durable.has_more |= !is_all;
    durable.devices = (told > after).then_some(told);
    if durable.is_empty() && durable.devices.is_some() {
        taken(app, server, &durable).await?;
    }
    Ok(durable)
}

/// The server has taken it.
///
/// # Errors
/// If the database fails: then the server gets it once more.
pub(super) async fn taken(app: &App, server: ServerNid, durable: &Durable) -> Result<()> {
    let mut change = Change::new();
    change.write(to_device::remove_out(server, durable.upto));
    if let Some(pos) = durable.devices {
        change.write(device_lists::set_told(server, pos));
    }
    app.log.append(change).await?;
    Ok(())
}
