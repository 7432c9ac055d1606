//! "Client Config": account data, global and of a room.

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    UserId,
    api::{
        client::config::{
            get_global_account_data, get_room_account_data, set_global_account_data,
            set_room_account_data,
        },
        error::ErrorKind,
    },
    serde::Raw,
};
use serde_json::value::RawValue;

use crate::{
    app::App,
    auth::Requester,
    bus::Effect,
    error::{Error, Result},
    http::{Call, Routes},
    log::Change,
    preferences::{self, IGNORED_USERS, PUSH_RULES},
    rate_limit::{self, Class},
    room::read,
    storage::{RoomNid, UserNid, account_data},
};

/// The largest content of one item, in bytes.
const CONTENT_BYTES: usize = 256 * 1024;
/// The longest type, in bytes.
const TYPE_BYTES: usize = 255;
/// The most items that one user can have.
const ITEMS: i64 = 20_000;
/// The most users that one can ignore.
const IGNORED: usize = 5_000;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<set_global_account_data::v3::Request, _, _>(set_global)
        .add::<get_global_account_data::v3::Request, _, _>(get_global)
        .add::<set_room_account_data::v3::Request, _, _>(set_room)
        .add::<get_room_account_data::v3::Request, _, _>(get_room)
}

/// `PUT /_matrix/client/v3/user/{userId}/account_data/{type}`
async fn set_global(
    app: Arc<App>,
    call: Call<set_global_account_data::v3::Request>,
) -> Result<set_global_account_data::v3::Response> {
    let body = &call.body;
    call.requester.must_be(&body.user_id)?;
    let event_type = body.event_type.to_string();
    if event_type == IGNORED_USERS {
        ignore(&app, &call.requester, body.data.json()).await?;
    } else {
        put(&app, &call.requester, None, &event_type, body.data.json()).await?;
    }
    Ok(set_global_account_data::v3::Response::new())
}

/// `GET /_matrix/client/v3/user/{userId}/account_data/{type}`
///
/// Push rules are there even if they were never set.
async fn get_global(
    app: Arc<App>,
    call: Call<get_global_account_data::v3::Request>,
) -> Result<get_global_account_data::v3::Response> {
    let body = &call.body;
    let event_type = body.event_type.to_string();
    call.requester.must_be(&body.user_id)?;
    let json = if event_type == PUSH_RULES {
        preferences::push_rules_content(&app, call.requester.user, &body.user_id).await?
    } else {
        get(&app, call.requester.user, None, &event_type).await?
    };
    let content = Raw::from_json_string(json).map_err(Error::internal)?;
    Ok(get_global_account_data::v3::Response::new(content))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`
async fn set_room(
    app: Arc<App>,
    call: Call<set_room_account_data::v3::Request>,
) -> Result<set_room_account_data::v3::Response> {
    let body = &call.body;
    call.requester.must_be(&body.user_id)?;
    let room = app.room(&body.room_id).await?.nid;
    let event_type = body.event_type.to_string();
    put(
        &app,
        &call.requester,
        Some(room),
        &event_type,
        body.data.json(),
    )
    .await?;
    Ok(set_room_account_data::v3::Response::new())
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`
async fn get_room(
    app: Arc<App>,
    call: Call<get_room_account_data::v3::Request>,
) -> Result<get_room_account_data::v3::Response> {
    let body = &call.body;
    call.requester.must_be(&body.user_id)?;
    let room = app.room(&body.room_id).await?.nid;
    let event_type = body.event_type.to_string();
    let json = get(&app, call.requester.user, Some(room), &event_type).await?;
    let content = Raw::from_json_string(json).map_err(Error::internal)?;
    Ok(get_room_account_data::v3::Response::new(content))
}

async fn get(app: &App, user: UserNid, room: Option<RoomNid>, event_type: &str) -> Result<String> {
    let found = if event_type.contains('\0') {
        None
    } else {
        account_data::get(&app.db, user, room, event_type).await?
    };
    found.ok_or_else(|| Error::not_found("no account data of this type"))
}

/// Checks that a client may set this.
fn check(app: &App, requester: &Requester, event_type: &str, content: &RawValue) -> Result<()> {
    if matches!(event_type, "m.fully_read" | PUSH_RULES) {
        return Err(Error::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::BadJson,
            format!("{event_type} has an endpoint of its own"),
        ));
    }
    if event_type.is_empty() || event_type.len() > TYPE_BYTES || event_type.contains('\0') {
        return Err(Error::invalid_param("this type is not possible"));
    }
    if !content.get().starts_with('{') {
        return Err(Error::bad_json("account data is a JSON object"));
    }
    rate_limit::check(app, Class::Messages, requester)
}

/// Sets what a client may set.
async fn put(
    app: &App,
    requester: &Requester,
    room: Option<RoomNid>,
    event_type: &str,
    content: &RawValue,
) -> Result<()> {
    check(app, requester, event_type, content)?;
    let _one_at_a_time = app.preferences.edit(requester.user).await;
    set(app, requester.user, room, event_type, content.get()).await
}

/// Sets whom the requester ignores, and puts right what is unread to them. In a task of its own: a client that hangs up
/// does not stop it half way.
async fn ignore(app: &Arc<App>, requester: &Requester, content: &RawValue) -> Result<()> {
    check(app, requester, IGNORED_USERS, content)?;
    check_ignored(app, &requester.user_id, content.get()).await?;
    let (app, user, content) = (Arc::clone(app), requester.user, content.to_owned());
    let work = tokio::spawn(async move {
        let _one_at_a_time = app.preferences.edit(user).await;
        let before = preferences::ignored(&app, user).await?;
        set(&app, user, None, IGNORED_USERS, content.get()).await?;
        let now = preferences::ignored(&app, user).await?;
        let added: Vec<UserNid> = now.difference(&before).copied().collect();
        let removed: Vec<UserNid> = before.difference(&now).copied().collect();
        read::leave_out(&app, user, &added, 1).await?;
        read::leave_out(&app, user, &removed, -1).await
    });
    work.await.map_err(Error::internal)?
}

/// Sets one item, and tells the user's syncs.
///
/// # Errors
/// `M_TOO_LARGE` if it is, or there are too many.
pub(super) async fn set(
    app: &App,
    user: UserNid,
    room: Option<RoomNid>,
    event_type: &str,
    json: &str,
) -> Result<()> {
    if json.len() > CONTENT_BYTES {
        return Err(Error::too_large(format!(
            "account data has at most {CONTENT_BYTES} bytes"
        )));
    }
    let is_new = account_data::get(&app.db, user, room, event_type)
        .await?
        .is_none();
    if is_new && account_data::count(&app.db, user).await? >= ITEMS {
        return Err(Error::too_large("there is too much account data already"));
    }
    let mut change = Change::new();
    let at = change.position();
    change.write(account_data::set(user, room, event_type, json, at));
    change.effect(Effect::Own { user, at });
    app.log.append(change).await?;
    if room.is_none() && matches!(event_type, PUSH_RULES | IGNORED_USERS) {
        app.preferences.forget(user);
    }
    Ok(())
}

/// Gives the users who are to be ignored their integers, so that they are recognized when they appear.
async fn check_ignored(app: &App, user: &UserId, json: &str) -> Result<()> {
    let ids = preferences::ignored_users(json);
    if ids.len() > IGNORED {
        return Err(Error::too_large(format!(
            "at most {IGNORED} users can be ignored"
        )));
    }
    if ids.iter().any(|id| id == user) {
        return Err(Error::invalid_param("you cannot ignore yourself"));
    }
    app.names
        .users(&app.db, &app.log, ids.iter().map(AsRef::as_ref))
        .await?;
    Ok(())
}
