//! Telling a push gateway of one event, or of how much is unread.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use homing_federation::client::{self, Limits};
use http::{HeaderMap, HeaderValue, Request, header};
use ruma::events::StateEventType;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::{
    notice::{About, More, Wish, body, is_high, tweaks},
    queue::{Notice, Outcome},
};
use crate::{
    app::App,
    error::{Error, Result},
    log::Change,
    preferences,
    room::{head, push, visibility::Viewer},
    rooms::Room,
    storage::{
        self, Event, Membership, PusherNid, RoomNid, UserNid, outside, pushers,
        receipts::EVERYTHING,
    },
    sync,
};

/// How long a gateway may take to answer, and how large its answer may be.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(10),
    bytes: 64 << 10,
};
/// After how long nobody needs to be told of an event any more, in milliseconds.
pub(super) const LONGEST: i64 = 24 * 60 * 60 * 1000;

/// Sends what is to be sent to a pusher that was told last of so many unread messages.
pub(super) async fn deliver(
    app: &App,
    nid: PusherNid,
    notice: Option<Arc<Notice>>,
    told: Option<i64>,
) -> Outcome {
    match try_to(app, nid, notice.as_deref(), told).await {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::warn!(%error, "somebody cannot be notified yet");
            Outcome::Failed(Duration::ZERO)
        }
    }
}

async fn try_to(
    app: &App,
    nid: PusherNid,
    notice: Option<&Notice>,
    told: Option<i64>,
) -> Result<Outcome> {
    let Some(pusher) = pushers::get(&app.db, nid).await? else {
        return Ok(Outcome::Gone);
    };
    let viewer = viewer(app, pusher.user).await?;
    let wish = Wish::of(&pusher).map_err(Error::internal)?;
    let about = match notice {
        Some(notice) => match about(app, &viewer, notice, wish.is_brief()).await? {
            Some(about) => Some(about),
            None => return Ok(Outcome::Needless),
        },
        None => None,
    };
    let unread = sync::badge(app, &viewer).await?;
    if about.is_none() && told == Some(unread) {
        return Ok(Outcome::Needless);
    }
    let body = body(&pusher, &wish, about.as_ref(), unread).to_string();
    let rejected = match ask(app, wish.url(), body).await {
        Ok(rejected) => rejected,
        Err(Refusal { error, pause }) => {
            tracing::debug!(url = wish.url(), %error, "a push gateway does not take a notification");
            return Ok(Outcome::Failed(pause));
        }
    };
    if rejected.contains(&pusher.pushkey) {
        let mut change = Change::new();
        change.write(pushers::reject(&pusher));
        app.log.append(change).await?;
        return Ok(Outcome::Needless);
    }
    Ok(Outcome::Taken(unread))
}

/// Who has a pusher, as one who reads.
pub(super) async fn viewer(app: &App, user: UserNid) -> Result<Viewer> {
    Ok(Viewer {
        user,
        user_id: app.names.user_id(&app.db, user).await?,
        device: None,
        ignored: preferences::ignored(app, user).await?,
    })
}

/// Why a gateway has not taken a notification, and for how long it wants to be left alone at least.
struct Refusal {
    error: client::Error,
    pause: Duration,
}

impl From<client::Error> for Refusal {
    fn from(error: client::Error) -> Self {
        let pause = Duration::ZERO;
        Self { error, pause }
    }
}

/// The time in a `Retry-After`, if it is not a date.
fn retry_after(answer: &HeaderMap) -> Option<Duration> {
    let seconds = answer.get(header::RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
}

/// Sends a notification. Answers the keys that the gateway rejects.
async fn ask(app: &App, url: &str, body: String) -> std::result::Result<Vec<String>, Refusal> {
    let nonsense = |error: &dyn std::fmt::Display| client::Error::Nonsense(error.to_string());
    let json = HeaderValue::from_static("application/json");
    let request = Request::post(url)
        .header(header::CONTENT_TYPE, json)
        .body(Bytes::from(body))
        .map_err(|error| nonsense(&error))?;
    let answer = app.push_gateways.request(request, LIMITS).await?;
    let status = answer.status();
    if !status.is_success() {
        return Err(Refusal {
            error: nonsense(&format!("it answers {status}")),
            pause: retry_after(answer.headers()).unwrap_or_default(),
        });
    }
    let bytes = answer.into_body().collect().await?;
    let answer: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| nonsense(&error))?;
    match answer.get("rejected") {
        None => Ok(Vec::new()),
        Some(rejected) => Ok(Vec::deserialize(rejected).map_err(|error| nonsense(&error))?),
    }
}

/// What is to be said of an event; nothing if it is old, was redacted, or the user knows of it.
async fn about(
    app: &App,
    viewer: &Viewer,
    notice: &Notice,
    is_brief: bool,
) -> Result<Option<About>> {
    if notice.at.saturating_add(LONGEST) < app.clock.now() {
        return Ok(None);
    }
    let rooms = app.rooms.many(&app.db, &app.log, &[notice.room]).await?;
    let Some(room) = rooms.get(&notice.room) else {
        return Ok(None);
    };
    let events = storage::events::some(&app.db, room.rules, &[notice.event]).await?;
    let Some(event) = events.first() else {
        return Ok(None);
    };
    if event.redacted_by.is_some() || !waits(app, viewer, notice, event).await? {
        return Ok(None);
    }
    let tweaks = tweaks(&notice.actions);
    let more = if is_brief {
        None
    } else {
        Some(more(app, room, viewer, event).await?)
    };
    Ok(Some(About {
        event_id: event.pdu.event_id.to_string(),
        room_id: room.id.to_string(),
        more,
        is_high: is_high(&event.pdu.event_type, &tweaks),
        tweaks,
    }))
}

/// Whether a user has not read an event yet, and is still in its room; of an invite, whether it was not answered.
async fn waits(app: &App, viewer: &Viewer, notice: &Notice, event: &Event) -> Result<bool> {
    let feed = app.bus.feed(&app.db, &app.log, viewer.user).await?;
    let state = feed.state();
    let thread = event.thread.map_or(0, |root| root.0);
    let has_read = [thread, EVERYTHING]
        .iter()
        .filter_map(|thread| state.markers.get(&(notice.room, *thread)))
        .any(|marker| marker.pos >= notice.pos);
    let member = state.memberships.get(&notice.room);
    if push::is_about(event, &viewer.user_id) {
        let is_current = member.is_some_and(|member| member.event == event.nid);
        return Ok(is_current && !has_read);
    }
    let is_there = member.is_some_and(|member| member.membership == Membership::Join);
    Ok(is_there && !has_read)
}

#[derive(Deserialize)]
struct MemberContent {
    displayname: Option<String>,
}

#[derive(Deserialize)]
struct NameContent {
    name: Option<String>,
}

#[derive(Deserialize)]
struct AliasContent {
    alias: Option<String>,
}

async fn more(app: &App, room: &Room, viewer: &Viewer, event: &Event) -> Result<More> {
    let sender = event.pdu.sender.clone();
    let (sender_display_name, room_name, room_alias);
    if room.is_here() {
        let (member, empty) = (StateEventType::RoomMember, "");
        let found: Option<MemberContent> =
            head::state_content(app, room, &member, sender.as_str()).await?;
        sender_display_name = found.and_then(|found| found.displayname);
        let found: Option<NameContent> =
            head::state_content(app, room, &StateEventType::RoomName, empty).await?;
        room_name = found.and_then(|found| found.name);
        let found: Option<AliasContent> =
            head::state_content(app, room, &StateEventType::RoomCanonicalAlias, empty).await?;
        room_alias = found.and_then(|found| found.alias);
    } else {
        let told = Told::load(app, viewer.user, room.nid).await?;
        sender_display_name = told
            .content("m.room.member", sender.as_str())
            .and_then(|found: MemberContent| found.displayname);
        room_name = told
            .content("m.room.name", "")
            .and_then(|found: NameContent| found.name);
        room_alias = told
            .content("m.room.canonical_alias", "")
            .and_then(|found: AliasContent| found.alias);
    }
    let not_empty = |text: &String| !text.is_empty();
    Ok(More {
        event_type: event.pdu.event_type.to_string(),
        sender: sender.into(),
        sender_display_name: sender_display_name.filter(not_empty),
        room_name: room_name.filter(not_empty),
        room_alias: room_alias.filter(not_empty),
        user_is_target: (&*event.pdu.event_type == "m.room.member")
            .then(|| push::is_about(event, &viewer.user_id)),
        content: Some(event.pdu.content.clone()),
    })
}

/// What a user was told of a room in which this server is not.
struct Told(Vec<Stripped>);

#[derive(Deserialize)]
struct Stripped {
    #[serde(rename = "type")]
    event_type: String,
    state_key: String,
    content: Box<RawValue>,
}

impl Told {
    async fn load(app: &App, user: UserNid, room: RoomNid) -> Result<Self> {
        let told = outside::told(&app.db, user, &[room]).await?;
        let json = told.into_iter().next().map(|(_, json)| json);
        let events = json.and_then(|json| serde_json::from_str(&json).ok());
        Ok(Self(events.unwrap_or_default()))
    }

    fn content<T: serde::de::DeserializeOwned>(&self, event_type: &str, key: &str) -> Option<T> {
        let event = self
            .0
            .iter()
            .find(|event| event.event_type == event_type && event.state_key == key)?;
        serde_json::from_str(event.content.get()).ok()
    }
}
