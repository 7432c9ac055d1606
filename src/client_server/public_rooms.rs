//! "Published room directory".

use std::sync::Arc;

use ruma::{
    ServerName, UInt,
    api::{
        client::{
            directory::{
                get_public_rooms, get_public_rooms_filtered, get_room_visibility,
                set_room_visibility,
            },
            room::Visibility,
        },
        federation::directory as federation,
    },
    directory::{PublicRoomsChunk, RoomNetwork},
    room::JoinRuleKind,
};
use serde::Serialize;

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    log::Change,
    remote,
    room::{
        aliases,
        directory::{self, Page, Query, token_after, token_before},
        summary::Summary,
    },
    storage,
};

/// The largest part of another server's directory, in bytes of JSON.
const DIRECTORY_BYTES: u64 = 4 << 20;

pub(super) fn routes() -> Routes {
    Routes::new()
        .json::<get_public_rooms::v3::Request, _, _, _>(get_public_rooms)
        .json::<get_public_rooms_filtered::v3::Request, _, _, _>(get_public_rooms_filtered)
        .add::<get_room_visibility::v3::Request, _, _>(get_room_visibility)
        .filled::<set_room_visibility::v3::Request, _, _>(
            "visibility",
            "\"public\"",
            set_room_visibility,
        )
}

/// A page of a directory. Ruma leaves out the join rule of rooms that are open to all, which clients look for.
#[derive(Serialize)]
struct Directory {
    chunk: Vec<Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_room_count_estimate: Option<UInt>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    join_rule: Option<JoinRuleKind>,
    #[serde(flatten)]
    room: PublicRoomsChunk,
}

impl From<PublicRoomsChunk> for Entry {
    fn from(room: PublicRoomsChunk) -> Self {
        let is_left_out = room.join_rule == JoinRuleKind::default();
        Self {
            join_rule: is_left_out.then(JoinRuleKind::default),
            room,
        }
    }
}

impl Directory {
    /// A page with the tokens of the pages before and after it.
    fn new(
        rooms: Vec<PublicRoomsChunk>,
        (prev_batch, next_batch): (Option<String>, Option<String>),
        total_room_count_estimate: Option<UInt>,
    ) -> Self {
        Self {
            chunk: rooms.into_iter().map(Entry::from).collect(),
            prev_batch,
            next_batch,
            total_room_count_estimate,
        }
    }
}

impl From<Page> for Directory {
    fn from(page: Page) -> Self {
        let rooms = page.rooms.into_iter().map(Summary::chunk).collect();
        let batches = (page.before.map(token_before), page.after.map(token_after));
        Self::new(rooms, batches, UInt::try_from(page.total).ok())
    }
}

/// `GET /_matrix/client/v3/publicRooms`
async fn get_public_rooms(
    app: Arc<App>,
    call: Call<get_public_rooms::v3::Request>,
) -> Result<Directory> {
    let request = call.body;
    if let Some(server) = elsewhere(&app, request.server.as_deref()) {
        let mut asked = federation::get_public_rooms::v1::Request::new();
        (asked.limit, asked.since) = (request.limit, request.since);
        let told = remote::ask(&app, server, asked, DIRECTORY_BYTES).await?;
        let batches = (told.prev_batch, told.next_batch);
        let total = told.total_room_count_estimate;
        return Ok(Directory::new(told.chunk, batches, total));
    }
    let (query, network) = (Query::default(), RoomNetwork::All);
    let (since, limit) = (request.since.as_deref(), request.limit);
    let page = directory::asked(&app, since, limit, &network, &query).await?;
    Ok(page.into())
}

/// `POST /_matrix/client/v3/publicRooms`
///
/// The rooms of third-party networks are none here, so only `room_network`s that comprise Matrix have rooms.
async fn get_public_rooms_filtered(
    app: Arc<App>,
    call: Call<get_public_rooms_filtered::v3::Request>,
) -> Result<Directory> {
    directory::check_networks(&call.raw)?;
    let request = call.body;
    if let Some(server) = elsewhere(&app, request.server.as_deref()) {
        let mut asked = federation::get_public_rooms_filtered::v1::Request::new();
        (asked.limit, asked.since) = (request.limit, request.since);
        (asked.filter, asked.room_network) = (request.filter, request.room_network);
        let told = remote::ask(&app, server, asked, DIRECTORY_BYTES).await?;
        let batches = (told.prev_batch, told.next_batch);
        let total = told.total_room_count_estimate;
        return Ok(Directory::new(told.chunk, batches, total));
    }
    let query = Query::from(request.filter);
    let (since, limit) = (request.since.as_deref(), request.limit);
    let network = &request.room_network;
    let page = directory::asked(&app, since, limit, network, &query).await?;
    Ok(page.into())
}

/// The server whose directory is asked for, if it is another one.
fn elsewhere<'s>(app: &App, server: Option<&'s ServerName>) -> Option<&'s ServerName> {
    server.filter(|server| *server != app.name())
}

/// `GET /_matrix/client/v3/directory/list/room/{roomId}`
async fn get_room_visibility(
    app: Arc<App>,
    call: Call<get_room_visibility::v3::Request>,
) -> Result<get_room_visibility::v3::Response> {
    let room = app.room(&call.body.room_id).await?;
    let visibility = if storage::summaries::is_published(&app.db, room.nid).await? {
        Visibility::Public
    } else {
        Visibility::Private
    };
    Ok(get_room_visibility::v3::Response::new(visibility))
}

/// Whether a visibility in the directory is the public one.
///
/// # Errors
/// `M_INVALID_PARAM` for one that the specification does not have.
pub(super) fn is_public(visibility: &Visibility) -> Result<bool> {
    match visibility {
        Visibility::Public => Ok(true),
        Visibility::Private => Ok(false),
        _ => Err(Error::invalid_param(
            "`visibility` is \"public\" or \"private\"",
        )),
    }
}

/// `PUT /_matrix/client/v3/directory/list/room/{roomId}`
///
/// For who may change the room's `m.room.canonical_alias`, and for administrators.
async fn set_room_visibility(
    app: Arc<App>,
    call: Call<set_room_visibility::v3::Request>,
) -> Result<set_room_visibility::v3::Response> {
    let request = call.body;
    let room = app.room(&request.room_id).await?;
    let published = is_public(&request.visibility)?;
    if !aliases::may_manage(&app, &room, &call.requester).await? {
        return Err(Error::forbidden(
            "it takes the power to change the room's main alias",
        ));
    }
    let mut change = Change::new();
    change.write(storage::rooms::publish(room.nid, published));
    app.log.append(change).await?;
    Ok(set_room_visibility::v3::Response::new())
}
