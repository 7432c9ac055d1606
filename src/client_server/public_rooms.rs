//! "Published room directory".

use std::sync::Arc;

use ruma::{
    ServerName, UInt,
    api::client::{
        directory::{
            get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility,
        },
        room::Visibility,
    },
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    log::Change,
    room::{
        aliases,
        directory::{self, Direction, Page, Place, Query},
        summary::Summary,
    },
    storage,
};

/// How many rooms an answer has where the request does not say.
const DEFAULT_LIMIT: usize = 100;
/// The most rooms in one answer.
const MAX_LIMIT: usize = 500;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_public_rooms::v3::Request, _, _>(get_public_rooms)
        .add::<get_public_rooms_filtered::v3::Request, _, _>(get_public_rooms_filtered)
        .add::<get_room_visibility::v3::Request, _, _>(get_room_visibility)
        .filled::<set_room_visibility::v3::Request, _, _>(
            "visibility",
            "\"public\"",
            set_room_visibility,
        )
}

/// `GET /_matrix/client/v3/publicRooms`
async fn get_public_rooms(
    app: Arc<App>,
    call: Call<get_public_rooms::v3::Request>,
) -> Result<get_public_rooms::v3::Response> {
    let request = call.body;
    check_server(&app, request.server.as_deref())?;
    let query = Query::default();
    let page = page(&app, request.since.as_deref(), request.limit, &query).await?;
    let mut response = get_public_rooms::v3::Response::new(Vec::new());
    response.prev_batch = page.before.map(|place| token(Direction::Backward, place));
    response.next_batch = page.after.map(|place| token(Direction::Forward, place));
    response.total_room_count_estimate = UInt::try_from(page.total).ok();
    response.chunk = page.rooms.into_iter().map(Summary::chunk).collect();
    Ok(response)
}

/// `POST /_matrix/client/v3/publicRooms`
///
/// The rooms of third-party networks are none here, so only `room_network`s that comprise Matrix have rooms.
async fn get_public_rooms_filtered(
    app: Arc<App>,
    call: Call<get_public_rooms_filtered::v3::Request>,
) -> Result<get_public_rooms_filtered::v3::Response> {
    let request = call.body;
    check_server(&app, request.server.as_deref())?;
    let query = Query {
        term: request
            .filter
            .generic_search_term
            .map(|term| term.trim().to_lowercase())
            .filter(|term| !term.is_empty()),
        room_types: request
            .filter
            .room_types
            .iter()
            .map(|kind| kind.as_str().map(ToOwned::to_owned))
            .collect(),
    };
    let page = page(&app, request.since.as_deref(), request.limit, &query).await?;
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.prev_batch = page.before.map(|place| token(Direction::Backward, place));
    response.next_batch = page.after.map(|place| token(Direction::Forward, place));
    response.total_room_count_estimate = UInt::try_from(page.total).ok();
    response.chunk = page.rooms.into_iter().map(Summary::chunk).collect();
    Ok(response)
}

fn check_server(app: &App, server: Option<&ServerName>) -> Result<()> {
    match server {
        Some(server) if server != app.name() => Err(Error::not_found(format!(
            "the room directory of {server} is out of reach: this server does not reach other servers yet"
        ))),
        _ => Ok(()),
    }
}

async fn page(app: &App, since: Option<&str>, limit: Option<UInt>, query: &Query) -> Result<Page> {
    let limit = match limit.map(u64::from) {
        // As other servers have it: no limit of the client's.
        Some(0) => MAX_LIMIT,
        Some(limit) => usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT),
        None => DEFAULT_LIMIT,
    };
    let since = since
        .map(|token| parse(token).ok_or_else(|| Error::invalid_param("`since` is no token")))
        .transpose()?;
    directory::page(app, since, limit, query).await
}

/// `n<members>_<room>` to go on, `p<members>_<room>` to go back.
fn token(direction: Direction, (members, room): Place) -> String {
    let sign = match direction {
        Direction::Forward => 'n',
        Direction::Backward => 'p',
    };
    format!("{sign}{members}_{}", room.0)
}

fn parse(text: &str) -> Option<(Direction, Place)> {
    let direction = match text.get(..1)? {
        "n" => Direction::Forward,
        "p" => Direction::Backward,
        _ => return None,
    };
    let (members, room) = text[1..].split_once('_')?;
    let place = (members.parse().ok()?, storage::RoomNid(room.parse().ok()?));
    Some((direction, place)).filter(|_| token(direction, place) == text)
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
