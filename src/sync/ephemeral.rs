//! What is told and not kept: receipts, typing, presence.

use std::collections::{BTreeMap, HashMap, HashSet};

use ruma::OwnedUserId;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{Context, batch::Batch, filter, plan::Plan};
use crate::{
    error::{Error, Result},
    presence::{self, View},
    storage::{
        self, EventNid, Membership, Receipt, ReceiptKind, ReceiptThread, RoomNid, UserNid,
        directory,
    },
};

/// Adds receipts and typing to each joined room.
pub(super) async fn load(context: &Context<'_>, plan: &Plan, batch: &mut Batch<'_>) -> Result<()> {
    let wanted = &context.filter().room.ephemeral;
    if filter::admits_type(wanted, "m.receipt") {
        add_receipts(context, batch).await?;
    }
    if filter::admits_type(wanted, "m.typing") {
        add_typing(context, plan, batch).await?;
    }
    let most = filter::limit(wanted.limit);
    for part in &mut batch.parts {
        part.ephemeral.truncate(most);
    }
    Ok(())
}

async fn add_typing(context: &Context<'_>, plan: &Plan, batch: &mut Batch<'_>) -> Result<()> {
    #[derive(Serialize)]
    struct Event {
        content: Content,
        r#type: &'static str,
    }
    #[derive(Serialize)]
    struct Content {
        user_ids: Vec<OwnedUserId>,
    }
    let app = context.app;
    let now = app.clock.now();
    let mut typing: HashMap<usize, Vec<UserNid>> = HashMap::new();
    for (index, part) in batch.parts.iter().enumerate() {
        if part.is_joined()
            && plan.typing.contains(&part.room.nid)
            && filter::admits_room(&context.filter().room.ephemeral, &part.room.id)
        {
            let mut users = app.typing.users(part.room.nid, now);
            users.retain(|user| !context.viewer.ignored.contains(user));
            typing.insert(index, users);
        }
    }
    let users: Vec<UserNid> = typing.values().flatten().copied().collect();
    let ids = app.names.user_ids(&app.db, &users).await?;
    for (index, users) in typing {
        let seen = batch.parts[index].room.seen();
        let user_ids = users.iter().filter_map(|user| {
            // Of those on other servers it was looked when they began.
            let id = ids.get(user)?;
            (seen.local.contains_key(user) || !app.is_local(id)).then(|| id.clone())
        });
        let event = Event {
            content: Content {
                user_ids: user_ids.collect(),
            },
            r#type: "m.typing",
        };
        drop(seen);
        let event = to_raw_value(&event).map_err(Error::internal)?;
        batch.parts[index].ephemeral.push(event);
    }
    Ok(())
}

async fn add_receipts(context: &Context<'_>, batch: &mut Batch<'_>) -> Result<()> {
    let app = context.app;
    let wanted = &context.filter().room.ephemeral;
    let mut receipts: HashMap<RoomNid, Vec<Receipt>> = HashMap::new();
    let mut stored: HashMap<storage::Pos, Vec<RoomNid>> = HashMap::new();
    for part in &batch.parts {
        if !part.is_joined() || !filter::admits_room(wanted, &part.room.id) {
            continue;
        }
        let seen = part.room.seen();
        if seen.receipts_from <= part.since {
            let recent = seen
                .receipts
                .iter()
                .filter(|receipt| receipt.pos > part.since && receipt.pos <= context.upto);
            receipts.insert(part.room.nid, recent.cloned().collect());
        } else {
            stored.entry(part.since).or_default().push(part.room.nid);
        }
    }
    for (since, rooms) in stored {
        for receipt in storage::sync::receipts(&app.db, &rooms, since, context.viewer.user).await? {
            receipts.entry(receipt.room).or_default().push(receipt);
        }
    }
    for receipts in receipts.values_mut() {
        receipts.retain(|receipt| {
            receipt.user == context.viewer.user
                || receipt.kind == ReceiptKind::Read
                    && !context.viewer.ignored.contains(&receipt.user)
        });
    }
    let users: Vec<UserNid> = receipts.values().flatten().map(|one| one.user).collect();
    let users = app.names.user_ids(&app.db, &users).await?;
    let mut roots: Vec<EventNid> = receipts.values().flatten().filter_map(root).collect();
    roots.sort_unstable();
    roots.dedup();
    let roots = app.names.event_ids(&app.db, &roots).await?;
    for part in &mut batch.parts {
        for event in events(
            receipts.get(&part.room.nid).map_or(&[], Vec::as_slice),
            &users,
            &roots,
        ) {
            let event = to_raw_value(&event).map_err(Error::internal)?;
            part.ephemeral.push(event);
        }
    }
    Ok(())
}

fn root(receipt: &Receipt) -> Option<EventNid> {
    match receipt.thread {
        ReceiptThread::Thread(root) => Some(root),
        ReceiptThread::Unthreaded | ReceiptThread::Main => None,
    }
}

/// An `m.receipt` event: by event id, kind and user.
#[derive(Serialize)]
struct ReceiptEvent<'a> {
    content: BTreeMap<&'a str, BTreeMap<&'static str, BTreeMap<&'a str, Data<'a>>>>,
    r#type: &'static str,
}

#[derive(Serialize)]
struct Data<'a> {
    ts: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<&'a str>,
}

/// The events that tell these receipts: one, or more if somebody's receipts for several threads are at the same event.
fn events<'a>(
    receipts: &'a [Receipt],
    users: &'a HashMap<UserNid, OwnedUserId>,
    roots: &'a HashMap<EventNid, std::sync::Arc<str>>,
) -> Vec<ReceiptEvent<'a>> {
    // In memory there may be several of the same user for the same thread: the last one counts.
    let mut met = HashSet::new();
    let newest = receipts
        .iter()
        .rev()
        .filter(|one| met.insert((one.user, one.thread, one.kind)));
    let mut events: Vec<ReceiptEvent<'a>> = Vec::new();
    for receipt in newest {
        let Some(user) = users.get(&receipt.user) else {
            continue;
        };
        let (event_id, kind) = (receipt.event_id.as_str(), kind(receipt.kind));
        let thread_id = match receipt.thread {
            ReceiptThread::Unthreaded => None,
            ReceiptThread::Main => Some("main"),
            ReceiptThread::Thread(root) => match roots.get(&root) {
                Some(id) => Some(&**id),
                None => continue,
            },
        };
        let data = Data {
            ts: receipt.ts,
            thread_id,
        };
        let is_taken = |event: &ReceiptEvent<'_>| {
            event
                .content
                .get(event_id)
                .and_then(|kinds| kinds.get(kind))
                .is_some_and(|users| users.contains_key(user.as_str()))
        };
        let index = events.iter().position(|event| !is_taken(event));
        let index = index.unwrap_or_else(|| {
            events.push(ReceiptEvent {
                content: BTreeMap::new(),
                r#type: "m.receipt",
            });
            events.len() - 1
        });
        events[index]
            .content
            .entry(event_id)
            .or_default()
            .entry(kind)
            .or_default()
            .insert(user.as_str(), data);
    }
    events
}

fn kind(kind: ReceiptKind) -> &'static str {
    match kind {
        ReceiptKind::Read => "m.read",
        ReceiptKind::ReadPrivate => "m.read.private",
    }
}

/// Who has come, gone or said something about it.
pub(super) async fn presence(context: &Context<'_>, plan: &Plan) -> Result<Vec<Box<RawValue>>> {
    #[derive(Serialize)]
    struct Event<'a, C> {
        content: C,
        sender: &'a OwnedUserId,
        r#type: &'static str,
    }
    let app = context.app;
    let wanted = &context.filter().presence;
    if !app.config.presence.enabled || !filter::admits(wanted, "m.presence", None) {
        return Ok(Vec::new());
    }
    let now = app.clock.now();
    let mut views = match &plan.presence {
        Some(users) => presence::views(app, users).await?,
        None => present(context).await?,
    };
    views.retain(|user, _| !context.viewer.ignored.contains(user));
    let users: Vec<UserNid> = views.keys().copied().collect();
    let ids = app.names.user_ids(&app.db, &users).await?;
    let mut events = Vec::with_capacity(views.len());
    for (user, view) in &views {
        let Some(sender) = ids.get(user) else {
            continue;
        };
        if !filter::admits(wanted, "m.presence", Some(sender)) {
            continue;
        }
        let event = Event {
            content: view.content(now, None, None),
            sender,
            r#type: "m.presence",
        };
        events.push(to_raw_value(&event).map_err(Error::internal)?);
    }
    events.truncate(filter::limit(wanted.limit));
    Ok(events)
}

/// All who are there and share a room with the user, and the user.
async fn present(context: &Context<'_>) -> Result<HashMap<UserNid, View>> {
    let app = context.app;
    let mut present = app.presence.present(app.clock.now());
    if present.len() <= 1 {
        present.retain(|user, _| *user == context.viewer.user);
        return Ok(present);
    }
    let feed = app.bus.feed(&app.db, &app.log, context.viewer.user).await?;
    let rooms: Vec<RoomNid> = feed
        .state()
        .memberships
        .values()
        .filter(|member| member.membership == Membership::Join)
        .map(|member| member.room)
        .collect();
    let rooms = app.rooms.many(&app.db, &app.log, &rooms).await?;
    let mut near = HashSet::from([context.viewer.user]);
    let remote = app.presence.remote(&present);
    if !remote.is_empty() {
        let user = context.viewer.user;
        near.extend(directory::sharing_of(&app.db, user, &remote).await?);
    }
    for room in rooms.values() {
        let seen = room.seen();
        if seen.local.len() < present.len() {
            near.extend(seen.local.keys());
        } else {
            near.extend(present.keys().filter(|user| seen.local.contains_key(user)));
        }
    }
    present.retain(|user, _| near.contains(user));
    Ok(present)
}
