//! "Room Tagging": the `m.tag` of a room's account data.

use std::sync::Arc;

use ruma::{
    RoomId,
    api::client::tag::{create_tag, delete_tag, get_tags},
};
use serde_json::{Map, Value, json};

use super::account_data;
use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    storage::{self, RoomNid, UserNid},
};

const TAG: &str = "m.tag";
/// The longest name of a tag, in bytes.
const NAME_BYTES: usize = 255;
/// The most tags of a room.
const TAGS: usize = 100;
/// The most bytes of what is said about one tag.
const INFO_BYTES: usize = 4096;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_tags::v3::Request, _, _>(get_tags)
        .add::<create_tag::v3::Request, _, _>(create_tag)
        .add::<delete_tag::v3::Request, _, _>(delete_tag)
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags`
async fn get_tags(
    app: Arc<App>,
    call: Call<get_tags::v3::Request>,
) -> Result<get_tags::v3::Response> {
    call.requester.must_be(&call.body.user_id)?;
    let (_, tags) = tags(&app, call.requester.user, &call.body.room_id).await?;
    // What a client has set as account data need not be tags; then there are none that it can read.
    let tags = serde_json::from_value(Value::Object(tags)).unwrap_or_default();
    Ok(get_tags::v3::Response::new(tags))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`
async fn create_tag(
    app: Arc<App>,
    call: Call<create_tag::v3::Request>,
) -> Result<create_tag::v3::Response> {
    let body = call.body;
    call.requester.must_be(&body.user_id)?;
    if body.tag.is_empty() || body.tag.len() > NAME_BYTES {
        return Err(Error::invalid_param(format!(
            "the name of a tag has 1 to {NAME_BYTES} bytes"
        )));
    }
    if body
        .tag_info
        .order
        .is_some_and(|order| !(0.0..=1.0).contains(&order))
    {
        return Err(Error::invalid_param("an order is from 0 to 1"));
    }
    if call.raw.len() > INFO_BYTES {
        return Err(Error::too_large("too much is said about the tag"));
    }
    let info: Map<String, Value> =
        serde_json::from_slice(&call.raw).map_err(|error| Error::bad_json(error.to_string()))?;
    let user = call.requester.user;
    let _one_at_a_time = app.preferences.edit(user).await;
    let (room, mut tags) = tags(&app, user, &body.room_id).await?;
    if tags.len() >= TAGS && !tags.contains_key(&body.tag) {
        return Err(Error::too_large(format!("a room has at most {TAGS} tags")));
    }
    tags.insert(body.tag, Value::Object(info));
    set(&app, user, room, tags).await?;
    Ok(create_tag::v3::Response::new())
}

/// `DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`
async fn delete_tag(
    app: Arc<App>,
    call: Call<delete_tag::v3::Request>,
) -> Result<delete_tag::v3::Response> {
    let body = call.body;
    call.requester.must_be(&body.user_id)?;
    let user = call.requester.user;
    let _one_at_a_time = app.preferences.edit(user).await;
    let (room, mut tags) = tags(&app, user, &body.room_id).await?;
    if tags.remove(&body.tag).is_some() {
        set(&app, user, room, tags).await?;
    }
    Ok(delete_tag::v3::Response::new())
}

/// A room and the user's tags of it.
async fn tags(app: &App, user: UserNid, room: &RoomId) -> Result<(RoomNid, Map<String, Value>)> {
    let room = app.room(room).await?.nid;
    let stored = storage::account_data::get(&app.db, user, Some(room), TAG).await?;
    let content: Option<Value> = stored.and_then(|json| serde_json::from_str(&json).ok());
    let tags = match content.map(|mut content| content["tags"].take()) {
        Some(Value::Object(tags)) => tags,
        _ => Map::new(),
    };
    Ok((room, tags))
}

async fn set(app: &App, user: UserNid, room: RoomNid, tags: Map<String, Value>) -> Result<()> {
    let content = json!({ "tags": tags }).to_string();
    account_data::set(app, user, Some(room), TAG, &content).await
}
