//! "Server-side key backups".

mod answer;

use std::{collections::BTreeMap, sync::Arc};

use axum::response::Response;
use ruma::{
    OwnedRoomId, RoomId, UInt,
    api::client::backup::{
        KeyBackupData, RoomKeyBackup, add_backup_keys, add_backup_keys_for_room,
        add_backup_keys_for_session, create_backup_version, delete_backup_keys,
        delete_backup_keys_for_room, delete_backup_keys_for_session, delete_backup_version,
        get_backup_info, get_backup_keys, get_backup_keys_for_room, get_backup_keys_for_session,
        get_latest_backup_info, update_backup_version,
    },
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::{error::Category, value::RawValue};

use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    http::{Call, Routes},
    key_backup::{self, Part, State},
    storage::key_backup::{Backup, Session, Worth},
};

/// The largest request, in bytes. Clients send some hundred keys of about 1 KiB at once.
const BODY: usize = 8 << 20;
/// The most keys in one request.
const KEYS: usize = 10_000;
/// The largest `session_data` and `auth_data`, in bytes.
const SESSION_DATA: usize = 16 << 10;
const AUTH_DATA: usize = 64 << 10;
/// The longest name of an algorithm, and id of a session, in bytes.
const NAME: usize = 255;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<create_backup_version::v3::Request, _, _>(create_backup_version)
        .json::<get_latest_backup_info::v3::Request, _, _, _>(get_latest_backup_info)
        .json::<get_backup_info::v3::Request, _, _, _>(get_backup_info)
        .add::<update_backup_version::v3::Request, _, _>(update_backup_version)
        .add::<delete_backup_version::v3::Request, _, _>(delete_backup_version)
        .sized::<add_backup_keys::v3::Request, _, _>(BODY, add_backup_keys)
        .sized::<add_backup_keys_for_room::v3::Request, _, _>(BODY, add_backup_keys_for_room)
        .add::<add_backup_keys_for_session::v3::Request, _, _>(add_backup_keys_for_session)
        .stream::<get_backup_keys::v3::Request, _, _>(get_backup_keys)
        .stream::<get_backup_keys_for_room::v3::Request, _, _>(get_backup_keys_for_room)
        .add::<get_backup_keys_for_session::v3::Request, _, _>(get_backup_keys_for_session)
        .add::<delete_backup_keys::v3::Request, _, _>(delete_backup_keys)
        .add::<delete_backup_keys_for_room::v3::Request, _, _>(delete_backup_keys_for_room)
        .add::<delete_backup_keys_for_session::v3::Request, _, _>(delete_backup_keys_for_session)
}

/// What a client says of a backup.
#[derive(Deserialize)]
struct Described<'a> {
    algorithm: String,
    #[serde(borrow)]
    auth_data: &'a RawValue,
    version: Option<String>,
}

impl<'a> Described<'a> {
    fn read(json: &'a RawValue) -> Result<Self> {
        let described: Self = read(json)?;
        if described.algorithm.is_empty() || described.algorithm.len() > NAME {
            return Err(Error::invalid_param(format!(
                "the name of an algorithm has 1 to {NAME} bytes"
            )));
        }
        object("auth_data", described.auth_data, AUTH_DATA)?;
        Ok(described)
    }
}

/// What a client is told of a backup. (ruma's type would have the algorithm parsed again.)
#[derive(Serialize)]
struct Info {
    algorithm: String,
    auth_data: Box<RawValue>,
    count: i64,
    etag: String,
    version: String,
}

impl Info {
    fn of(backup: Backup) -> Result<Self> {
        Ok(Self {
            algorithm: backup.algorithm,
            auth_data: RawValue::from_string(backup.auth_data).map_err(Error::internal)?,
            count: backup.count,
            etag: backup.etag.to_string(),
            version: backup.version.to_string(),
        })
    }
}

/// The key of a session as clients send it.
#[derive(Deserialize)]
struct Key<'a> {
    first_message_index: UInt,
    forwarded_count: UInt,
    is_verified: bool,
    #[serde(borrow)]
    session_data: &'a RawValue,
}

fn session(room: &RoomId, session_id: &str, key: &Raw<KeyBackupData>) -> Result<Session> {
    // Ruma's type knows the data of one algorithm only.
    let key: Key<'_> = read(key.json())?;
    if session_id.is_empty() || session_id.len() > NAME || session_id.contains('\0') {
        return Err(Error::invalid_param(format!(
            "the id of a session has 1 to {NAME} bytes"
        )));
    }
    object("session_data", key.session_data, SESSION_DATA)?;
    Ok(Session {
        room_id: room.as_str().to_owned(),
        session_id: session_id.to_owned(),
        worth: Worth {
            is_unverified: !key.is_verified,
            first_message_index: key.first_message_index.into(),
            forwarded_count: key.forwarded_count.into(),
        },
        json: key.session_data.get().to_owned(),
    })
}

fn read<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T> {
    serde_json::from_str(json.get()).map_err(|error| {
        let message = error.to_string();
        if error.classify() == Category::Data && message.contains("missing field") {
            Error::missing_param(message)
        } else {
            Error::bad_json(message)
        }
    })
}

fn object(name: &str, json: &RawValue, most: usize) -> Result<()> {
    if json.get().len() > most {
        return Err(Error::too_large(format!(
            "`{name}` has at most {most} bytes"
        )));
    }
    if json.get().starts_with('{') {
        Ok(())
    } else {
        Err(Error::bad_json(format!("`{name}` is an object")))
    }
}

/// `POST /_matrix/client/v3/room_keys/version`
async fn create_backup_version(
    app: Arc<App>,
    call: Call<create_backup_version::v3::Request>,
) -> Result<create_backup_version::v3::Response> {
    let described = Described::read(call.body.algorithm.json())?;
    let auth_data = described.auth_data.get();
    let user = call.requester.user;
    let version = key_backup::create(&app, user, &described.algorithm, auth_data).await?;
    Ok(create_backup_version::v3::Response::new(
        version.to_string(),
    ))
}

/// `GET /_matrix/client/v3/room_keys/version`
async fn get_latest_backup_info(
    app: Arc<App>,
    call: Call<get_latest_backup_info::v3::Request>,
) -> Result<Info> {
    Info::of(key_backup::current(&app, call.requester.user).await?)
}

/// `GET /_matrix/client/v3/room_keys/version/{version}`
async fn get_backup_info(app: Arc<App>, call: Call<get_backup_info::v3::Request>) -> Result<Info> {
    Info::of(key_backup::backup(&app, call.requester.user, &call.body.version).await?)
}

/// `PUT /_matrix/client/v3/room_keys/version/{version}`
async fn update_backup_version(
    app: Arc<App>,
    call: Call<update_backup_version::v3::Request>,
) -> Result<update_backup_version::v3::Response> {
    let request = &call.body;
    let described = Described::read(request.algorithm.json())?;
    if described
        .version
        .is_some_and(|version| version != request.version)
    {
        return Err(Error::invalid_param("the path has another `version`"));
    }
    key_backup::update(
        &app,
        call.requester.user,
        &request.version,
        &described.algorithm,
        described.auth_data.get(),
    )
    .await?;
    Ok(update_backup_version::v3::Response::new())
}

/// `DELETE /_matrix/client/v3/room_keys/version/{version}`
async fn delete_backup_version(
    app: Arc<App>,
    call: Call<delete_backup_version::v3::Request>,
) -> Result<delete_backup_version::v3::Response> {
    key_backup::delete_version(&app, call.requester.user, &call.body.version).await?;
    Ok(delete_backup_version::v3::Response::new())
}

/// Adds keys; answers the etag and the count.
async fn add(
    app: &App,
    requester: &Requester,
    version: &str,
    rooms: &BTreeMap<OwnedRoomId, RoomKeyBackup>,
) -> Result<(String, UInt)> {
    let keys: usize = rooms.values().map(|room| room.sessions.len()).sum();
    if keys > KEYS {
        return Err(Error::too_large(format!(
            "at most {KEYS} keys can be sent at once"
        )));
    }
    let keys = rooms.iter().flat_map(|(room, keys)| {
        let keys = keys.sessions.iter();
        keys.map(move |(id, key)| session(room, id, key))
    });
    let keys = keys.collect::<Result<Vec<_>>>()?;
    told(key_backup::put(app, requester.user, version, &keys).await?)
}

fn told(state: State) -> Result<(String, UInt)> {
    let count = state.count.try_into().map_err(Error::internal)?;
    Ok((state.etag.to_string(), count))
}

/// `PUT /_matrix/client/v3/room_keys/keys`
async fn add_backup_keys(
    app: Arc<App>,
    call: Call<add_backup_keys::v3::Request>,
) -> Result<add_backup_keys::v3::Response> {
    let request = &call.body;
    let (etag, count) = add(&app, &call.requester, &request.version, &request.rooms).await?;
    Ok(add_backup_keys::v3::Response::new(etag, count))
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}`
async fn add_backup_keys_for_room(
    app: Arc<App>,
    call: Call<add_backup_keys_for_room::v3::Request>,
) -> Result<add_backup_keys_for_room::v3::Response> {
    let request = call.body;
    let rooms = [(request.room_id, RoomKeyBackup::new(request.sessions))].into();
    let (etag, count) = add(&app, &call.requester, &request.version, &rooms).await?;
    Ok(add_backup_keys_for_room::v3::Response::new(etag, count))
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`
async fn add_backup_keys_for_session(
    app: Arc<App>,
    call: Call<add_backup_keys_for_session::v3::Request>,
) -> Result<add_backup_keys_for_session::v3::Response> {
    let request = call.body;
    let key = session(&request.room_id, &request.session_id, &request.session_data)?;
    let state = key_backup::put(&app, call.requester.user, &request.version, &[key]).await?;
    let (etag, count) = told(state)?;
    Ok(add_backup_keys_for_session::v3::Response::new(etag, count))
}

/// `GET /_matrix/client/v3/room_keys/keys`
async fn get_backup_keys(
    app: Arc<App>,
    call: Call<get_backup_keys::v3::Request>,
) -> Result<Response> {
    let backup = key_backup::backup(&app, call.requester.user, &call.body.version).await?;
    Ok(answer::whole(app, backup.nid))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}`
async fn get_backup_keys_for_room(
    app: Arc<App>,
    call: Call<get_backup_keys_for_room::v3::Request>,
) -> Result<Response> {
    let backup = key_backup::backup(&app, call.requester.user, &call.body.version).await?;
    Ok(answer::room(app, backup.nid, &call.body.room_id))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`
async fn get_backup_keys_for_session(
    app: Arc<App>,
    call: Call<get_backup_keys_for_session::v3::Request>,
) -> Result<get_backup_keys_for_session::v3::Response> {
    let request = &call.body;
    let (user, room) = (call.requester.user, request.room_id.as_str());
    let found = key_backup::session(&app, user, &request.version, room, &request.session_id);
    let json = answer::key(&found.await?);
    let key = Raw::from_json_string(json).map_err(Error::internal)?;
    Ok(get_backup_keys_for_session::v3::Response::new(key))
}

/// Deletes keys; answers the etag and the count.
async fn delete(
    app: &App,
    requester: &Requester,
    version: &str,
    part: Part<'_>,
) -> Result<(String, UInt)> {
    told(key_backup::delete(app, requester.user, version, part).await?)
}

/// `DELETE /_matrix/client/v3/room_keys/keys`
async fn delete_backup_keys(
    app: Arc<App>,
    call: Call<delete_backup_keys::v3::Request>,
) -> Result<delete_backup_keys::v3::Response> {
    let (etag, count) = delete(&app, &call.requester, &call.body.version, Part::All).await?;
    Ok(delete_backup_keys::v3::Response::new(etag, count))
}

/// `DELETE /_matrix/client/v3/room_keys/keys/{roomId}`
async fn delete_backup_keys_for_room(
    app: Arc<App>,
    call: Call<delete_backup_keys_for_room::v3::Request>,
) -> Result<delete_backup_keys_for_room::v3::Response> {
    let request = &call.body;
    let part = Part::Room(request.room_id.as_str());
    let (etag, count) = delete(&app, &call.requester, &request.version, part).await?;
    Ok(delete_backup_keys_for_room::v3::Response::new(etag, count))
}

/// `DELETE /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`
async fn delete_backup_keys_for_session(
    app: Arc<App>,
    call: Call<delete_backup_keys_for_session::v3::Request>,
) -> Result<delete_backup_keys_for_session::v3::Response> {
    let request = &call.body;
    let part = Part::Session(request.room_id.as_str(), &request.session_id);
    let (etag, count) = delete(&app, &call.requester, &request.version, part).await?;
    Ok(delete_backup_keys_for_session::v3::Response::new(
        etag, count,
    ))
}
