//! Receipts and read markers: what somebody has read, and what is then no longer unread ("Receipts", "Fully read
//! markers", "Threaded read receipts").

use std::sync::Arc;

use ruma::{EventId, OwnedEventId, events::receipt::ReceiptThread as ThreadId};

use super::{
    aggregations,
    read::{self, Reach},
};
use crate::{
    app::App,
    auth::Requester,
    bus::Effect,
    early_receipts::RemoteReceipt,
    error::{Error, Result},
    log::Change,
    preferences,
    rooms::Room,
    storage::{
        self, Event, EventNid, Pos, Receipt, ReceiptKind, ReceiptThread, account_data,
        events::flags, highlights, receipts, receipts::EVERYTHING, threads,
    },
};

/// The type of the room account data that says up to where everything was read.
const FULLY_READ: &str = "m.fully_read";
/// Over how many relations an event belongs to what it relates to.
const RELATIONS: usize = 4;

/// What somebody says that they have read.
#[derive(Debug)]
pub struct Reading<'a> {
    /// A receipt of this kind, up to this event.
    pub receipts: Vec<(ReceiptKind, &'a EventId)>,
    /// Which part of the room the receipts are about.
    pub thread: ThreadId,
    /// Everything before this event was read.
    pub fully_read: Option<&'a EventId>,
}

/// What is written of a reading.
#[derive(Default)]
struct Marks {
    change: Change,
    reached: Vec<Reach>,
    is_empty: bool,
}

/// Keeps what somebody has read; all of it in one change. Marks move forward only, and what is kept already or names an
/// event that nobody is shown here changes nothing.
///
/// # Errors
/// `M_FORBIDDEN` for who has not joined the room, `M_INVALID_PARAM` for a thread that the event is not in.
pub async fn read(
    app: &App,
    room: &Arc<Room>,
    requester: &Requester,
    reading: &Reading<'_>,
) -> Result<()> {
    if !room.seen().local.contains_key(&requester.user) {
        return Err(Error::forbidden(format!("you are not in {}", room.id)));
    }
    let mut marks = Marks {
        is_empty: true,
        ..Marks::default()
    };
    for (kind, event_id) in &reading.receipts {
        if let Some(event) = shown(app, room, event_id).await? {
            let thread = thread(app, room, &reading.thread, &event).await?;
            add_receipt(app, room, requester, &event, *kind, thread, &mut marks).await?;
        }
    }
    if let Some(event_id) = reading.fully_read
        && let Some(event) = shown(app, room, event_id).await?
    {
        add_fully_read(app, room, requester, &event, &mut marks).await?;
    }
    if marks.is_empty {
        return Ok(());
    }
    if marks.reached.is_empty() {
        app.log.append(marks.change).await?;
    } else {
        let user = requester.user;
        let mut own = vec![user];
        own.extend(preferences::ignored(app, user).await?.iter());
        read::move_markers(app, room, user, &own, &marks.reached, marks.change).await?;
    }
    Ok(())
}

/// The event, if it is one of this room that people are shown: nobody has read another.
async fn shown(app: &App, room: &Room, id: &EventId) -> Result<Option<Arc<Event>>> {
    let event = find(app, room, id).await?;
    Ok(event.filter(|event| event.flags & flags::HIDDEN == 0))
}

/// The event, if it is one of this room.
async fn find(app: &App, room: &Room, id: &EventId) -> Result<Option<Arc<Event>>> {
    let recent = {
        let seen = room.seen();
        let mut recent = seen.events.iter().rev();
        recent.find(|event| event.pdu.event_id == id).cloned()
    };
    if recent.is_some() {
        return Ok(recent);
    }
    let event = storage::events::readable_by_id(&app.db, room.rules, room.nid, id.as_str()).await?;
    Ok(event.map(Arc::new))
}

/// The part of the room that a receipt is about; the event must be in it. Whoever reads a thread reads its root, and what
/// else relates to that.
async fn thread(app: &App, room: &Room, thread: &ThreadId, event: &Event) -> Result<ReceiptThread> {
    let misplaced = || Error::invalid_param("the event is not in this thread");
    match thread {
        ThreadId::Unthreaded => Ok(ReceiptThread::Unthreaded),
        ThreadId::Main if event.thread.is_none() => Ok(ReceiptThread::Main),
        ThreadId::Thread(first) => {
            let first = find(app, room, first).await?.ok_or_else(misplaced)?;
            if event.thread == Some(first.nid) || leads_to(app, room, event, &first).await? {
                Ok(ReceiptThread::Thread(first.nid))
            } else {
                Err(misplaced())
            }
        }
        ThreadId::Main => Err(misplaced()),
        _ => Err(Error::invalid_param(
            "thread_id is `main` or the id of the event that a thread begins with",
        )),
    }
}

/// Whether an event is `first`, or relates to it, by way of a few others at most.
async fn leads_to(app: &App, room: &Room, event: &Event, first: &Event) -> Result<bool> {
    let mut pdu = Arc::clone(&event.pdu);
    for _ in 0..=RELATIONS {
        if pdu.event_id == first.pdu.event_id {
            return Ok(true);
        }
        let Some(relates_to) = aggregations::relates_to(&pdu) else {
            break;
        };
        match find(app, room, &relates_to.event_id).await? {
            Some(parent) => pdu = Arc::clone(&parent.pdu),
            None => break,
        }
    }
    Ok(false)
}

async fn add_receipt(
    app: &App,
    room: &Arc<Room>,
    requester: &Requester,
    event: &Event,
    kind: ReceiptKind,
    thread: ReceiptThread,
    marks: &mut Marks,
) -> Result<()> {
    let user = requester.user;
    let pos = event.pos.unwrap_or(0);
    let kept = receipts::of_user(&app.db, room.nid, user).await?;
    let before = kept
        .iter()
        .find(|(other, of_kind, ..)| *other == thread && *of_kind == kind);
    if before.is_some_and(|(_, _, _, before)| *before >= pos) {
        return Ok(());
    }
    let at = marks.change.position();
    let receipt = Receipt {
        room: room.nid,
        user,
        thread,
        kind,
        event: event.nid,
        event_id: event.pdu.event_id.to_string(),
        ts: app.clock.now(),
        pos: 0,
    };
    marks.change.write(receipts::set(&receipt, at));
    marks.change.effect(Effect::Receipt {
        room: Arc::clone(room),
        receipt,
        at,
    });
    marks.is_empty = false;
    let reached = match thread {
        ReceiptThread::Unthreaded => everything(app, room, requester, event, pos).await?,
        ReceiptThread::Main => vec![main(app, room, event, pos).await?],
        ReceiptThread::Thread(first) => {
            // The thread begins with an event that is not in it.
            let idx = if event.nid == first {
                0
            } else {
                event.unread_idx
            };
            vec![reach(first.0, pos, idx)]
        }
    };
    add_reached(app, room, requester, reached, marks).await
}

fn reach(thread: i64, pos: Pos, idx: i64) -> Reach {
    Reach { thread, pos, idx }
}

/// Adds those marks that move forward, and forgets the highlights that are read by that.
async fn add_reached(
    app: &App,
    room: &Room,
    requester: &Requester,
    reached: Vec<Reach>,
    marks: &mut Marks,
) -> Result<()> {
    let user = requester.user;
    let feed = app.bus.feed(&app.db, &app.log, user).await?;
    let state = feed.state();
    for reach in reached {
        let thread = reach.thread;
        let committed = state.markers.get(&(room.nid, thread));
        if committed.is_some_and(|committed| committed.pos >= reach.pos)
            || marks
                .reached
                .iter()
                .any(|other| other.thread == thread && other.pos >= reach.pos)
        {
            continue;
        }
        let unread = state.highlights.get(&room.nid).into_iter().flatten();
        let mut unread = unread.take_while(|(pos, _)| **pos <= reach.pos);
        if unread.any(|(_, highlight)| highlight.thread == thread) {
            let write = highlights::read(user, room.nid, thread, reach.pos);
            marks.change.write(write);
        }
        marks.reached.retain(|other| other.thread != thread);
        marks.reached.push(reach);
    }
    Ok(())
}

/// How far what is in no thread was read, at an event.
async fn main(app: &App, room: &Room, event: &Event, pos: Pos) -> Result<Reach> {
    let idx = if event.thread.is_none() {
        event.unread_idx
    } else {
        storage::events::unread_idx_at(&app.db, room.nid, pos).await?
    };
    Ok(reach(0, pos, idx))
}

/// How far everything was read, at an event.
async fn everything(
    app: &App,
    room: &Room,
    requester: &Requester,
    event: &Event,
    pos: Pos,
) -> Result<Vec<Reach>> {
    let mut reached = vec![
        main(app, room, event, pos).await?,
        reach(EVERYTHING, pos, 0),
    ];
    let feed = app.bus.feed(&app.db, &app.log, requester.user).await?;
    let before = {
        let state = feed.state();
        let marker = state.markers.get(&(room.nid, EVERYTHING));
        marker.map_or(0, |marker| marker.pos)
    };
    let has_threads = {
        let seen = room.seen();
        seen.threads_from > before || !seen.threads.is_empty()
    };
    if !has_threads {
        return Ok(reached);
    }
    let mut unfinished: Vec<EventNid> = Vec::new();
    for thread in threads::since(&app.db, room.nid, before).await? {
        if thread.last_pos <= pos {
            reached.push(reach(thread.root.0, pos, thread.unread_idx));
        } else {
            unfinished.push(thread.root);
        }
    }
    for (root, idx) in threads::counts_at(&app.db, &unfinished, pos).await? {
        reached.push(reach(root.0, pos, idx));
    }
    Ok(reached)
}

async fn add_fully_read(
    app: &App,
    room: &Room,
    requester: &Requester,
    event: &Event,
    marks: &mut Marks,
) -> Result<()> {
    #[derive(serde::Deserialize, serde::Serialize)]
    struct Content {
        event_id: String,
    }
    let (db, user) = (&app.db, requester.user);
    if let Some(json) = account_data::get(db, user, Some(room.nid), FULLY_READ).await?
        && let Ok(content) = serde_json::from_str::<Content>(&json)
        && let Ok(before) = <&EventId>::try_from(content.event_id.as_str())
        && let Some(before) = find(app, room, before).await?
        && (before.depth(), before.ord) >= (event.depth(), event.ord)
    {
        return Ok(());
    }
    let content = Content {
        event_id: event.pdu.event_id.to_string(),
    };
    let json = serde_json::to_string(&content).map_err(Error::internal)?;
    let at = marks.change.position();
    let write = account_data::set(user, Some(room.nid), FULLY_READ, &json, at);
    marks.change.write(write);
    marks.change.effect(Effect::Own { user, at });
    marks.is_empty = false;
    Ok(())
}

/// Events have come into a room: receipts about them may have come before.
///
/// # Errors
/// If the database fails.
pub async fn come(app: &App, room: &Arc<Room>, events: &[&OwnedEventId]) -> Result<()> {
    if events.is_empty() || app.early_receipts.is_empty() {
        return Ok(());
    }
    let receipts = app
        .early_receipts
        .take(room.nid, |event| events.contains(&event));
    keep(app, room, &receipts).await
}

/// Takes what users of other servers have read. What is about an event that is not here waits for it.
///
/// # Errors
/// If the database fails.
pub async fn receive(app: &App, room: &Arc<Room>, receipts: &[RemoteReceipt]) -> Result<()> {
    keep(app, room, receipts).await?;
    let mut early = Vec::new();
    for receipt in receipts {
        if find(app, room, &receipt.event).await?.is_none() {
            app.early_receipts.keep(room.nid, receipt.clone());
            early.push(&receipt.event);
        }
    }
    // One may have come just before its receipt was kept.
    let mut late = Vec::new();
    for event in early {
        if find(app, room, event).await?.is_some() {
            late.push(event);
        }
    }
    come(app, room, &late).await
}

/// Keeps what users of other servers have read, all of it in one change. What names an event or thread that nobody is
/// shown here, or goes back, changes nothing.
///
/// # Errors
/// If the database fails.
async fn keep(app: &App, room: &Arc<Room>, receipts: &[RemoteReceipt]) -> Result<()> {
    let mut change = Change::new();
    let mut is_empty = true;
    for said in receipts {
        let Some(event) = shown(app, room, &said.event).await? else {
            continue;
        };
        let thread = match thread(app, room, &said.thread, &event).await {
            Ok(thread) => thread,
            Err(Error::Matrix { .. }) => continue,
            Err(error) => return Err(error),
        };
        let pos = event.pos.unwrap_or(0);
        let kept = receipts::of_user(&app.db, room.nid, said.user).await?;
        let before = kept
            .iter()
            .find(|(other, kind, ..)| *other == thread && *kind == ReceiptKind::Read);
        if before.is_some_and(|(_, _, _, before)| *before >= pos) {
            continue;
        }
        let at = change.position();
        let receipt = Receipt {
            room: room.nid,
            user: said.user,
            thread,
            kind: ReceiptKind::Read,
            event: event.nid,
            event_id: event.pdu.event_id.to_string(),
            ts: said.ts,
            pos: 0,
        };
        change.write(receipts::set(&receipt, at));
        let room = Arc::clone(room);
        change.effect(Effect::Receipt { room, receipt, at });
        is_empty = false;
    }
    if !is_empty {
        app.log.append(change).await?;
    }
    Ok(())
}
