//! Receipts and read markers: what somebody has read, and what is then no longer unread ("Receipts", "Fully read
//! markers", "Threaded read receipts").

use std::sync::Arc;

use ruma::{EventId, events::receipt::ReceiptThread as ThreadId};

use super::read;
use crate::{
    app::App,
    auth::Requester,
    bus::Effect,
    error::{Error, Result},
    log::Change,
    rooms::Room,
    storage::{
        self, Event, EventNid, Pos, ReadMarker, Receipt, ReceiptKind, ReceiptThread, account_data,
        highlights, receipts, receipts::EVERYTHING, threads,
    },
};

/// The type of the room account data that says up to where everything was read.
const FULLY_READ: &str = "m.fully_read";

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
    markers: Vec<(i64, ReadMarker)>,
    is_empty: bool,
}

/// Keeps what somebody has read; all of it in one change. Marks move forward only, and what is kept already or names an
/// event that is not known here changes nothing.
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
        if let Some(event) = find(app, room, event_id).await? {
            let thread = thread(app, room, &reading.thread, &event).await?;
            add_receipt(app, room, requester, &event, *kind, thread, &mut marks).await?;
        }
    }
    if let Some(event_id) = reading.fully_read
        && let Some(event) = find(app, room, event_id).await?
    {
        add_fully_read(app, room, requester, &event, &mut marks).await?;
    }
    if marks.is_empty {
        return Ok(());
    }
    if marks.markers.is_empty() {
        app.log.append(marks.change).await?;
    } else {
        read::set_markers(app, room, requester.user, &marks.markers, marks.change).await?;
    }
    Ok(())
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
    let event = storage::events::by_id(&app.db, room.rules, room.nid, id.as_str()).await?;
    Ok(event.map(Arc::new))
}

/// The part of the room that a receipt is about; the event must be in it. The root of a thread is in the thread too.
async fn thread(app: &App, room: &Room, thread: &ThreadId, event: &Event) -> Result<ReceiptThread> {
    let misplaced = || Error::invalid_param("the event is not in this thread");
    match thread {
        ThreadId::Unthreaded => Ok(ReceiptThread::Unthreaded),
        ThreadId::Main if event.thread.is_none() => Ok(ReceiptThread::Main),
        ThreadId::Thread(first) => {
            let first = find(app, room, first).await?.ok_or_else(misplaced)?.nid;
            if event.thread == Some(first) || event.nid == first {
                Ok(ReceiptThread::Thread(first))
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
    let markers = match thread {
        ReceiptThread::Unthreaded => everything(app, room, requester, event, pos).await?,
        ReceiptThread::Main => vec![(0, main(app, room, requester, event, pos).await?)],
        ReceiptThread::Thread(first) => {
            let own = storage::events::own_since(&app.db, room.nid, user, Some(first), pos).await?;
            let idx = if event.nid == first {
                0
            } else {
                event.unread_idx
            };
            vec![(first.0, ReadMarker { pos, idx, own })]
        }
    };
    add_markers(app, room, requester, markers, marks).await
}

/// Adds those markers that move forward, and forgets the highlights that are read by that.
async fn add_markers(
    app: &App,
    room: &Room,
    requester: &Requester,
    markers: Vec<(i64, ReadMarker)>,
    marks: &mut Marks,
) -> Result<()> {
    let user = requester.user;
    let feed = app.bus.feed(&app.db, &app.log, user).await?;
    let state = feed.state();
    for (thread, marker) in markers {
        let key = (room.nid, thread);
        let kept = marks.markers.iter().find(|(other, _)| *other == thread);
        let before = kept
            .map(|(_, marker)| marker)
            .or_else(|| state.markers.get(&key));
        if before.is_some_and(|before| before.pos >= marker.pos) {
            continue;
        }
        let mut unread = state.highlights.get(&room.nid).into_iter().flatten();
        if unread.any(|highlight| highlight.thread == thread && highlight.pos <= marker.pos) {
            let write = highlights::read(user, room.nid, thread, marker.pos);
            marks.change.write(write);
        }
        marks.markers.retain(|(other, _)| *other != thread);
        marks.markers.push((thread, marker));
    }
    Ok(())
}

/// The marker for what is in no thread, at an event.
async fn main(
    app: &App,
    room: &Room,
    requester: &Requester,
    event: &Event,
    pos: Pos,
) -> Result<ReadMarker> {
    let idx = if event.thread.is_none() {
        event.unread_idx
    } else {
        storage::events::unread_idx_at(&app.db, room.nid, pos).await?
    };
    let is_last = room.seen().last_pos <= pos;
    let own = if is_last {
        0
    } else {
        storage::events::own_since(&app.db, room.nid, requester.user, None, pos).await?
    };
    Ok(ReadMarker { pos, idx, own })
}

/// The markers for an event and all before it, whatever thread they are in.
async fn everything(
    app: &App,
    room: &Room,
    requester: &Requester,
    event: &Event,
    pos: Pos,
) -> Result<Vec<(i64, ReadMarker)>> {
    let user = requester.user;
    let read = ReadMarker {
        pos,
        idx: 0,
        own: 0,
    };
    let mut markers = vec![
        (0, main(app, room, requester, event, pos).await?),
        (EVERYTHING, read),
    ];
    let feed = app.bus.feed(&app.db, &app.log, user).await?;
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
        return Ok(markers);
    }
    let mut unfinished: Vec<EventNid> = Vec::new();
    for thread in threads::since(&app.db, room.nid, before).await? {
        if thread.last_pos <= pos {
            let idx = thread.unread_idx;
            markers.push((thread.root.0, ReadMarker { pos, idx, own: 0 }));
        } else {
            unfinished.push(thread.root);
        }
    }
    for (root, idx, own) in threads::counts_at(&app.db, user, &unfinished, pos).await? {
        markers.push((root.0, ReadMarker { pos, idx, own }));
    }
    Ok(markers)
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
