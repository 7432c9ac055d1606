//! "Relationships API" and "Querying threads in a room".

use std::sync::Arc;

use homing_federation::redact;
use ruma::{
    OwnedEventId, OwnedRoomId, UInt,
    api::{
        Direction,
        client::{
            relations::{
                get_relating_events, get_relating_events_with_rel_type,
                get_relating_events_with_rel_type_and_event_type,
            },
            threads::get_threads::{self, v1::IncludeThreads},
        },
    },
};
use serde_json::value::RawValue;

use super::messages;
use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    http::{Call, Routes},
    room::{
        client_event::{Form, client_events, raw},
        timeline,
        visibility::{Sight, Viewer, readable},
    },
    storage::{
        Event, EventNid, Pos,
        relations::{self, Query},
        threads,
        timeline::{Place, Range},
    },
};

/// How many events an answer has where the client does not say.
const DEFAULT_LIMIT: u32 = 20;
/// How often `recurse` goes on from children to their children.
const RECURSION: u32 = 3;
/// The most events whose children one request is told of.
const MAX_PARENTS: u16 = 1000;
/// How often a page is filled up because the viewer may not see what is on it.
const ROUNDS: usize = 5;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_relating_events::v1::Request, _, _>(get_relating_events)
        .add::<get_relating_events_with_rel_type::v1::Request, _, _>(
            get_relating_events_with_rel_type,
        )
        .add::<get_relating_events_with_rel_type_and_event_type::v1::Request, _, _>(
            get_relating_events_with_rel_type_and_event_type,
        )
        .add::<get_threads::v1::Request, _, _>(get_threads)
}

/// What the three endpoints have in common.
struct Wanted {
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
    rel_type: Option<String>,
    event_type: Option<String>,
    from: Option<String>,
    to: Option<String>,
    dir: Direction,
    limit: Option<UInt>,
    recurse: bool,
}

struct Found {
    chunk: Vec<Box<RawValue>>,
    next_batch: Option<String>,
    prev_batch: Option<String>,
    recursion_depth: Option<UInt>,
}

/// What a request asks for; ruma's three types have the same fields, but for those that come after the name.
macro_rules! wanted {
    ($request:ident, $rel_type:expr, $event_type:expr) => {
        Wanted {
            room_id: $request.room_id,
            event_id: $request.event_id,
            rel_type: $rel_type,
            event_type: $event_type,
            from: $request.from,
            to: $request.to,
            dir: $request.dir,
            limit: $request.limit,
            recurse: $request.recurse,
        }
    };
}

/// What was found, as ruma's answer of one of the three.
macro_rules! answer {
    ($endpoint:ident, $found:expr) => {{
        let found = $found;
        let mut response = $endpoint::v1::Response::new(raw(found.chunk));
        response.next_batch = found.next_batch;
        response.prev_batch = found.prev_batch;
        response.recursion_depth = found.recursion_depth;
        Ok(response)
    }};
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`
async fn get_relating_events(
    app: Arc<App>,
    call: Call<get_relating_events::v1::Request>,
) -> Result<get_relating_events::v1::Response> {
    let request = call.body;
    let wanted = wanted!(request, None, None);
    answer!(
        get_relating_events,
        find(&app, &call.requester, wanted).await?
    )
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}`
async fn get_relating_events_with_rel_type(
    app: Arc<App>,
    call: Call<get_relating_events_with_rel_type::v1::Request>,
) -> Result<get_relating_events_with_rel_type::v1::Response> {
    let request = call.body;
    let rel_type = Some(request.rel_type.to_string());
    let wanted = wanted!(request, rel_type, None);
    answer!(
        get_relating_events_with_rel_type,
        find(&app, &call.requester, wanted).await?
    )
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}`
async fn get_relating_events_with_rel_type_and_event_type(
    app: Arc<App>,
    call: Call<get_relating_events_with_rel_type_and_event_type::v1::Request>,
) -> Result<get_relating_events_with_rel_type_and_event_type::v1::Response> {
    let request = call.body;
    let rel_type = Some(request.rel_type.to_string());
    let event_type = Some(request.event_type.to_string());
    let wanted = wanted!(request, rel_type, event_type);
    answer!(
        get_relating_events_with_rel_type_and_event_type,
        find(&app, &call.requester, wanted).await?
    )
}

async fn find(app: &App, requester: &Requester, wanted: Wanted) -> Result<Found> {
    let viewer = Viewer::of(app, requester).await?;
    let (room, _) = readable(app, &wanted.room_id, &viewer).await?;
    let sight = Sight::quick(app, &room, &viewer).await?;
    let parent = timeline::visible_event(app, &room, &sight, &wanted.event_id).await?;
    let recursion_depth = wanted.recurse.then_some(RECURSION.into());
    let nothing = Found {
        chunk: Vec::new(),
        next_batch: None,
        prev_batch: None,
        recursion_depth,
    };
    let type_nid = match &wanted.event_type {
        Some(event_type) => match app.names.find_type(&app.db, event_type).await? {
            Some(nid) => Some(nid),
            None => return Ok(nothing),
        },
        None => None,
    };
    let backward = wanted.dir == Direction::Backward;
    let (first, last) = if backward {
        (Place::END, Place::START)
    } else {
        (Place::START, Place::END)
    };
    let from = match &wanted.from {
        Some(token) if backward => timeline::place_backward(app, &room, token).await?.0,
        Some(token) => timeline::place(app, &room, token).await?,
        None => first,
    };
    let to = match &wanted.to {
        Some(token) => timeline::place(app, &room, token).await?,
        None => last,
    };
    let mut range = Range {
        room: room.nid,
        from,
        to,
        direction: wanted.dir,
        upto: Pos::MAX,
    };
    let parents = if wanted.recurse {
        descendants(app, parent.nid).await?
    } else {
        vec![parent.nid]
    };
    let query = Query {
        parents: &parents,
        rel_type: wanted.rel_type.as_deref(),
        type_nid,
    };

    let limit = messages::limit(wanted.limit.unwrap_or(DEFAULT_LIMIT.into()));
    let mut events: Vec<Arc<Event>> = Vec::new();
    let mut more = true;
    for _ in 0..ROUNDS {
        let missing = limit - events.len();
        if missing == 0 || !more {
            break;
        }
        let asked = i64::try_from(missing).unwrap_or(i64::MAX);
        let page = relations::page(&app.db, room.rules, &query, &range, asked).await?;
        more = page.len() == missing;
        if let Some(last) = page.last() {
            range.from = range.beyond(Place::after(last));
        }
        events.extend(
            page.into_iter()
                .filter(|event| sight.sees(event))
                .map(Arc::new),
        );
    }
    let sight = Sight::load(app, &room, &viewer, &events).await?;
    Ok(Found {
        chunk: client_events(app, &room, &events, &sight, Form::WithRoomId).await?,
        next_batch: more.then(|| timeline::token(range.from).to_string()),
        prev_batch: wanted.from,
        recursion_depth,
    })
}

/// An event, its children and their children, however they relate: those may have children that fit.
async fn descendants(app: &App, event: EventNid) -> Result<Vec<EventNid>> {
    let mut all = vec![event];
    let mut level = all.clone();
    for _ in 1..RECURSION {
        level = relations::child_nids(&app.db, &level, MAX_PARENTS.into()).await?;
        level.retain(|nid| !all.contains(nid));
        if level.is_empty() || all.len() + level.len() > usize::from(MAX_PARENTS) {
            break;
        }
        all.extend(&level);
    }
    Ok(all)
}

/// `GET /_matrix/client/v1/rooms/{roomId}/threads`
///
/// The tokens are `p<pos>`: the position of the latest event of the last thread of a page.
async fn get_threads(
    app: Arc<App>,
    call: Call<get_threads::v1::Request>,
) -> Result<get_threads::v1::Response> {
    let request = call.body;
    let viewer = Viewer::of(&app, &call.requester).await?;
    let participant = match request.include {
        IncludeThreads::All => None,
        IncludeThreads::Participated => Some(viewer.user),
        _ => return Err(Error::invalid_param("`include` is `all` or `participated`")),
    };
    let mut before = request.from.as_deref().map_or(Ok(Pos::MAX), position)?;
    let limit = messages::limit(request.limit.unwrap_or(DEFAULT_LIMIT.into()));
    if limit == 0 {
        return Err(Error::invalid_param("`limit` is at least 1"));
    }
    let (room, _) = readable(&app, &request.room_id, &viewer).await?;
    let sight = Sight::quick(&app, &room, &viewer).await?;
    let mut roots = Vec::new();
    let mut more = true;
    for _ in 0..ROUNDS {
        let missing = limit - roots.len();
        if missing == 0 || !more {
            break;
        }
        let asked = i64::try_from(missing).unwrap_or(i64::MAX);
        let page = threads::page(&app.db, room.rules, room.nid, before, participant, asked).await?;
        more = page.len() == missing;
        for (mut root, last_pos) in page {
            before = last_pos;
            if !sight.may_see(&root) {
                continue;
            }
            if sight.ignores(&root) {
                // The thread stays, and says nothing of who began it.
                root.pdu = Arc::new(redact(&root.pdu, room.rules).map_err(Error::internal)?);
            }
            roots.push(Arc::new(root));
        }
    }
    let sight = Sight::load(&app, &room, &viewer, &roots).await?;
    let chunk = client_events(&app, &room, &roots, &sight, Form::WithRoomId).await?;
    let mut response = get_threads::v1::Response::new(raw(chunk));
    response.next_batch = more.then(|| format!("p{before}"));
    Ok(response)
}

fn position(token: &str) -> Result<Pos> {
    token
        .strip_prefix('p')
        .and_then(|pos| pos.parse().ok())
        .filter(|pos| format!("p{pos}") == token)
        .ok_or_else(|| Error::invalid_param("the token is not one of this server"))
}
