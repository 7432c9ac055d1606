//! "Rooms", "Creation".

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use homing_federation::{json::strict_json, room_version};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, RoomAliasId, UserId,
    api::{
        client::room::create_room::v3::{Request, Response, RoomPreset},
        error::ErrorKind,
    },
    events::{StateEventType, room::member::MembershipState},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::sync::Mutex;
use tracing::{error, info};

use super::public_rooms;
use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    http::{Call, Routes},
    rate_limit::{self, Class},
    room::{
        self,
        append::{NewEvent, Sender},
        create::{self, Defaults, NewRoom, Preset, canonical},
        membership,
    },
    storage::aliases,
};

/// How many people of other servers are invited at the same time.
const INVITES_AT_ONCE: usize = 10;
/// The most people who can be invited to a room while it is created.
const MAX_INVITES: usize = 200;
/// The most state events that a room can be created with.
const MAX_INITIAL_STATE: usize = 200;
/// The longest room type, in bytes.
const MAX_ROOM_TYPE: usize = 255;

pub(super) fn routes() -> Routes {
    Routes::new().add::<Request, _, _>(create_room)
}

/// `POST /_matrix/client/v3/createRoom`
async fn create_room(app: Arc<App>, call: Call<Request>) -> Result<Response> {
    let (request, requester) = (call.body, &call.requester);
    rate_limit::check(&app, Class::Joins, requester)?;
    if !request.invite.is_empty() {
        rate_limit::check(&app, Class::Invites, requester)?;
    }
    if request.invite.len() > MAX_INVITES || request.initial_state.len() > MAX_INITIAL_STATE {
        return Err(Error::invalid_param(
            "too many invites or state events at once",
        ));
    }
    if !request.invite_3pid.is_empty() {
        let message = "this server has no identity server to find people by e-mail or phone";
        return Err(Error::new(
            http::StatusCode::BAD_REQUEST,
            ErrorKind::ThreepidDenied,
            message,
        ));
    }
    let version = request
        .room_version
        .clone()
        .unwrap_or_else(|| app.config.rooms.default_version.clone());
    let Some(rules) = room_version::rules(&version) else {
        let message = format!("room version {version} is not known here");
        return Err(Error::new(
            http::StatusCode::BAD_REQUEST,
            ErrorKind::UnsupportedRoomVersion,
            message,
        ));
    };
    let published = public_rooms::is_public(&request.visibility)?;
    let defaults = Defaults {
        rules: &rules.authorization,
        preset: preset(request.preset.as_ref(), published)?,
        creator: &requester.user_id,
        invited: &request.invite,
    };
    let mut creation_content = creation_content(&request)?;
    if defaults.invited_are_creators() {
        add_creators(&mut creation_content, requester, &request.invite);
    }
    check_strangers(&app, &request, &creation_content)?;
    let alias = match &request.room_alias_name {
        Some(name) => Some(free_alias(&app, name).await?),
        None => None,
    };
    let events = first_events(&app, requester, &request, &defaults, alias.as_deref()).await?;
    let new = NewRoom {
        version,
        creation_content,
        events,
        alias,
        published,
    };
    let sender = Sender::of(requester);
    let room = create::create(&app, &sender, new).await?;
    let strangers: BTreeSet<_> = request.invite.iter().collect();
    let strangers = strangers.into_iter().filter(|user| !app.is_local(user));
    let failures = Mutex::new(Vec::new());
    let invites = stream::iter(strangers).for_each_concurrent(INVITES_AT_ONCE, async |user| {
        let invited = async {
            let invite = invite(&app, user, request.is_direct).await?;
            membership::invite_remote(&app, &room, &sender, user, invite).await
        };
        let Err(error) = invited.await else {
            return;
        };
        match &error {
            Error::Matrix { .. } => {
                info!(room = %room.id, %user, %error, "somebody of another server is not invited");
            }
            error => error!(room = %room.id, %user, %error, "an invite failed"),
        }
        failures.lock().await.push(error);
    });
    invites.await;
    // The room is there, and the client has to learn its id; who was not invited is no member of it. But a direct chat with
    // nobody is none.
    let mut failures = failures.into_inner();
    let invited: BTreeSet<_> = request.invite.iter().collect();
    let is_lonely = request.is_direct && failures.len() == invited.len();
    if is_lonely && let Some(error) = failures.pop() {
        membership::leave(&app, &room, &sender, None).await?;
        membership::forget(&app, &room, &sender).await?;
        return Err(error);
    }
    Ok(Response::new(room.id.clone()))
}

/// Makes sure that people of other servers are invited only where they could come.
fn check_strangers(app: &App, request: &Request, creation: &CanonicalJsonObject) -> Result<()> {
    let Some(stranger) = request.invite.iter().find(|user| !app.is_local(user)) else {
        return Ok(());
    };
    let is_closed = creation.get("m.federate") == Some(&CanonicalJsonValue::Bool(false));
    let why = if !app.config.federation.enabled {
        "this one does not talk to others"
    } else if is_closed {
        "users of other servers cannot be in this room"
    } else {
        return Ok(());
    };
    Err(Error::forbidden(format!(
        "{stranger} is on another server, and {why}"
    )))
}

fn preset(preset: Option<&RoomPreset>, published: bool) -> Result<Preset> {
    Ok(match preset {
        Some(RoomPreset::PrivateChat) => Preset::PrivateChat,
        Some(RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        Some(RoomPreset::PublicChat) => Preset::PublicChat,
        Some(_) => return Err(Error::invalid_param("unknown preset")),
        None if published => Preset::PublicChat,
        None => Preset::PrivateChat,
    })
}

/// What the client wants the create event to say. Who creates the room and its version are not the client's to say.
fn creation_content(request: &Request) -> Result<CanonicalJsonObject> {
    let Some(raw) = &request.creation_content else {
        return Ok(CanonicalJsonObject::new());
    };
    raw.deserialize()
        .map_err(|error| Error::bad_json(format!("creation_content: {error}")))?;
    let mut content = object(Some(raw))?.unwrap_or_default();
    content.remove("creator");
    content.remove("room_version");
    if let Some(CanonicalJsonValue::String(room_type)) = content.get("type")
        && (room_type.len() > MAX_ROOM_TYPE || room_type.contains('\0'))
    {
        return Err(Error::invalid_param("this is no room type"));
    }
    Ok(content)
}

/// The alias of this localpart, if no room has it.
async fn free_alias(app: &App, name: &str) -> Result<ruma::OwnedRoomAliasId> {
    let alias = room::aliases::from_name(app, name)?;
    match aliases::get(&app.db, &alias).await? {
        Some(_) => Err(create::alias_taken()),
        None => Ok(alias),
    }
}

/// From room version 12 on, who is as powerful as the creator is a creator too.
fn add_creators(
    content: &mut CanonicalJsonObject,
    requester: &Requester,
    invited: &[ruma::OwnedUserId],
) {
    let entry = content
        .entry("additional_creators".to_owned())
        .or_insert_with(|| CanonicalJsonValue::Array(Vec::new()));
    // Anything but a list is left for the rules to refuse.
    if let CanonicalJsonValue::Array(creators) = entry {
        for user in invited.iter().filter(|user| **user != requester.user_id) {
            let user = CanonicalJsonValue::String(user.to_string());
            if !creators.contains(&user) {
                creators.push(user);
            }
        }
    }
}

/// The events after the create event, in the order of the specification.
async fn first_events(
    app: &App,
    requester: &Requester,
    request: &Request,
    defaults: &Defaults<'_>,
    alias: Option<&RoomAliasId>,
) -> Result<Vec<NewEvent>> {
    let join = membership::content(app, &requester.user_id, MembershipState::Join).await?;
    let overrides = object(request.power_level_content_override.as_ref())?;
    let initial_state: Vec<NewEvent> = request
        .initial_state
        .iter()
        .map(initial_event)
        .filter(|event| {
            // The request's own fields overwrite these.
            !event.as_ref().is_ok_and(|event| {
                event.state_key.as_deref() == Some("")
                    && (event.event_type == "m.room.name" && request.name.is_some()
                        || event.event_type == "m.room.topic" && request.topic.is_some())
            })
        })
        .collect::<Result<_>>()?;
    check_initial_state(&initial_state, alias)?;
    let mut events = vec![
        NewEvent::state(StateEventType::RoomMember, requester.user_id.as_str(), join),
        defaults.power_levels(overrides)?,
    ];
    if let Some(alias) = alias {
        let content = canonical(json!({ "alias": alias }))?;
        events.push(NewEvent::state(
            StateEventType::RoomCanonicalAlias,
            "",
            content,
        ));
    }
    let given = |event: &NewEvent| {
        let mut others = initial_state.iter();
        others
            .any(|other| other.event_type == event.event_type && other.state_key == event.state_key)
    };
    events.extend(defaults.access()?.into_iter().filter(|event| !given(event)));
    events.extend(initial_state.iter().cloned());
    if let Some(name) = &request.name {
        events.push(NewEvent::state(
            StateEventType::RoomName,
            "",
            canonical(json!({ "name": name }))?,
        ));
    }
    if let Some(topic) = &request.topic {
        let content = canonical(json!({
            "topic": topic,
            "m.topic": { "m.text": [{ "mimetype": "text/plain", "body": topic }] },
        }))?;
        events.push(NewEvent::state(StateEventType::RoomTopic, "", content));
    }
    let mut invited = HashSet::new();
    let local = request.invite.iter().filter(|user| app.is_local(user));
    for user in local.filter(|user| invited.insert(*user)) {
        events.push(invite(app, user, request.is_direct).await?);
    }
    Ok(events)
}

/// Checks what the rules of rooms leave open, or what other endpoints check too.
fn check_initial_state(events: &[NewEvent], alias: Option<&RoomAliasId>) -> Result<()> {
    for event in events {
        let state_key = event.state_key.as_deref().unwrap_or_default();
        room::content::check(&event.event_type, state_key, &event.content)?;
        match event.event_type.as_str() {
            "m.room.create" | "m.room.member" => {
                return Err(Error::invalid_param(format!(
                    "{} is not for initial_state",
                    event.event_type
                )));
            }
            "m.room.canonical_alias" => {
                let named = room::aliases::named_in(&event.content)
                    .ok_or_else(|| Error::bad_json("aliases are strings"))?;
                let own = alias.map(RoomAliasId::as_str);
                if named.iter().any(|alias| Some(*alias) != own) {
                    return Err(room::aliases::bad_alias(
                        "an alias cannot lead to a room that does not exist yet",
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

async fn invite(app: &App, user: &UserId, is_direct: bool) -> Result<NewEvent> {
    let mut content = membership::content(app, user, MembershipState::Invite).await?;
    if is_direct {
        content.insert("is_direct".to_owned(), CanonicalJsonValue::Bool(true));
    }
    Ok(NewEvent::state(
        StateEventType::RoomMember,
        user.as_str(),
        content,
    ))
}

/// One event of `initial_state`.
fn initial_event<T>(raw: &Raw<T>) -> Result<NewEvent> {
    #[derive(Deserialize)]
    struct Initial<'a> {
        #[serde(rename = "type")]
        event_type: String,
        #[serde(default)]
        state_key: String,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    let initial: Initial<'_> = serde_json::from_str(raw.json().get())
        .map_err(|error| Error::bad_json(error.to_string()))?;
    let content = strict_json(initial.content.get().as_bytes())?;
    Ok(NewEvent::state(
        initial.event_type,
        initial.state_key,
        content,
    ))
}

/// A JSON object as a client sent it.
fn object<T>(raw: Option<&Raw<T>>) -> Result<Option<CanonicalJsonObject>> {
    raw.map(|raw| Ok(strict_json(raw.json().get().as_bytes())?))
        .transpose()
}
