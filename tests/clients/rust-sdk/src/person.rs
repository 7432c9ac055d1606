//! A client with an account, which receives only through `/sync`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use matrix_sdk::{
    Client, Room,
    config::{RequestConfig, SyncSettings},
    deserialized_responses::TimelineEvent,
    encryption::{BackupDownloadStrategy, EncryptionSettings},
    ruma::{
        OwnedEventId, OwnedRoomId, UserId,
        api::client::{
            account::register,
            filter::FilterDefinition,
            sync::sync_events::{
                self,
                v3::{Filter, Timeline},
            },
            uiaa,
        },
        events::{
            AnySyncEphemeralRoomEvent, AnySyncMessageLikeEvent, AnySyncTimelineEvent,
            SyncMessageLikeEvent,
            room::message::{OriginalSyncRoomMessageEvent, RoomMessageEventContent},
        },
    },
    sync::{JoinedRoomUpdate, State, SyncResponse},
};
use tokio::time::{Instant, timeout_at};

pub const PASSWORD: &str = "correct horse battery staple";

/// Time after which something that should have arrived counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time that a sync may sleep: longer than the patience.
const SLEEP: Duration = Duration::from_secs(30);

pub struct Person {
    pub name: String,
    pub client: Client,
    pub room_id: Option<OwnedRoomId>,
    /// Whether what is said in the room must come encrypted.
    pub is_private: bool,
    /// A new device that has not been given the keys of older messages yet.
    pub lacks_keys: bool,
}

impl Person {
    pub async fn new(url: &str, name: &str, is_private: bool) -> Result<Self> {
        let client = Client::builder()
            .homeserver_url(url)
            .request_config(RequestConfig::new().disable_retry())
            .with_encryption_settings(EncryptionSettings {
                backup_download_strategy: BackupDownloadStrategy::OneShot,
                ..EncryptionSettings::default()
            })
            .build()
            .await?;
        Ok(Self {
            name: name.to_owned(),
            client,
            room_id: None,
            is_private,
            lacks_keys: false,
        })
    }

    pub async fn log_in(&self, device_name: &str) -> Result<()> {
        self.client
            .matrix_auth()
            .login_username(&self.name, PASSWORD)
            .initial_device_display_name(device_name)
            .send()
            .await?;
        Ok(())
    }

    pub async fn register(&self) -> Result<()> {
        let mut request = register::v3::Request::new();
        request.username = Some(self.name.clone());
        request.password = Some(PASSWORD.to_owned());
        request.initial_device_display_name = Some("matrix-sdk".to_owned());
        let Err(error) = self.client.matrix_auth().register(request.clone()).await else {
            bail!("an account was made without authentication");
        };
        let info = error
            .as_uiaa_response()
            .with_context(|| format!("not a challenge: {error}"))?;
        let mut dummy = uiaa::Dummy::new();
        dummy.session.clone_from(&info.session);
        request.auth = Some(uiaa::AuthData::Dummy(dummy));
        self.client.matrix_auth().register(request).await?;
        ensure!(self.user_id()?.localpart() == self.name);
        Ok(())
    }

    pub fn user_id(&self) -> Result<&UserId> {
        self.client.user_id().context("not logged in")
    }

    pub fn room(&self) -> Result<Room> {
        let room_id = self.room_id.as_ref().context("in no room yet")?;
        self.client
            .get_room(room_id)
            .context("the client does not know the room")
    }

    pub async fn say(&self, text: &str) -> Result<OwnedEventId> {
        let content = RoomMessageEventContent::text_plain(text);
        Ok(self.room()?.send(content).await?.response.event_id)
    }

    /// Waits for the message with this text, which must be this event.
    pub async fn hear(
        &self,
        text: &str,
        event_id: &OwnedEventId,
    ) -> Result<OriginalSyncRoomMessageEvent> {
        let event = self.receive_message(text).await?;
        ensure!(
            event.event_id == *event_id,
            "“{text}” is {} and not {event_id}",
            event.event_id
        );
        Ok(event)
    }

    pub async fn receive_message(&self, text: &str) -> Result<OriginalSyncRoomMessageEvent> {
        self.receive_event(&format!("“{text}”"), |event| match event {
            AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomMessage(
                SyncMessageLikeEvent::Original(message),
            )) if message.content.body() == text => Some(message),
            _ => None,
        })
        .await
    }

    /// Syncs until a timeline event of the room meets the condition.
    pub async fn receive_event<T>(
        &self,
        what: &str,
        find: impl Fn(AnySyncTimelineEvent) -> Option<T>,
    ) -> Result<T> {
        self.receive_in_room(what, |room| {
            timeline(room).ok()?.into_iter().find_map(&find)
        })
        .await
    }

    pub async fn receive_ephemeral<T>(
        &self,
        what: &str,
        find: impl Fn(AnySyncEphemeralRoomEvent) -> Option<T>,
    ) -> Result<T> {
        self.receive_in_room(what, |room| {
            room.ephemeral
                .iter()
                .filter_map(|event| event.deserialize().ok())
                .find_map(&find)
        })
        .await
    }

    pub async fn receive_in_room<T>(
        &self,
        what: &str,
        find: impl Fn(&JoinedRoomUpdate) -> Option<T>,
    ) -> Result<T> {
        let room_id = self.room_id.as_ref().context("in no room yet")?;
        self.receive(what, |response| {
            response.rooms.joined.get(room_id).and_then(&find)
        })
        .await
    }

    /// Syncs until a response meets the condition.
    pub async fn receive<T>(
        &self,
        what: &str,
        find: impl Fn(&SyncResponse) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(response) = timeout_at(deadline, self.sync(SLEEP)).await {
            let response = response?;
            if let Some(found) = find(&response) {
                return Ok(found);
            }
            seen.push(response);
        }
        bail!(
            "{} did not receive {what} within {PATIENCE:?}; synced: {seen:#?}",
            self.name
        )
    }

    /// One sync, in which every event must be one that ruma can read and, if it is encrypted, that
    /// this device has the key of.
    pub async fn sync(&self, sleep: Duration) -> Result<SyncResponse> {
        let response = self
            .client
            .sync_once(SyncSettings::new().timeout(sleep))
            .await?;
        for room in response.rooms.joined.values() {
            readable(room)?;
            self.intelligible(&room.timeline.events)?;
        }
        for event in &response.presence {
            event
                .deserialize()
                .with_context(|| format!("{:?}", event.json()))?;
        }
        Ok(response)
    }

    /// An error if one of the events could not be decrypted, or was said in the open in a private room.
    pub fn intelligible(&self, events: &[TimelineEvent]) -> Result<()> {
        for event in events {
            ensure!(
                self.lacks_keys || !event.kind.is_utd(),
                "{} cannot decrypt {:?}",
                self.name,
                event.kind
            );
            let was_said = event.kind.event_type().as_deref() == Some("m.room.message");
            let is_redacted = event
                .raw()
                .get_field::<serde_json::Value>("content")?
                .is_some_and(|content| content.as_object().is_some_and(|map| map.is_empty()));
            ensure!(
                !self.is_private || !was_said || is_redacted || event.encryption_info().is_some(),
                "{} was told in the open: {:?}",
                self.name,
                event.kind
            );
        }
        Ok(())
    }

    /// The room's timeline as a client without a token receives it.
    ///
    /// Not by `sync_once`, which drops a response that ends where the last one did.
    pub async fn timeline_from_scratch(&self, limit: u32) -> Result<Timeline> {
        let mut filter = FilterDefinition::default();
        filter.room.timeline.limit = Some(limit.into());
        let mut request = sync_events::v3::Request::new();
        request.filter = Some(Filter::FilterDefinition(filter));
        let mut response = self.client.send(request).await?;
        let room_id = self.room_id.as_ref().context("in no room yet")?;
        let room = response
            .rooms
            .join
            .remove(room_id)
            .context("the room is missing")?;
        Ok(room.timeline)
    }
}

/// The events of the timeline; an error if one cannot be read.
fn timeline(room: &JoinedRoomUpdate) -> Result<Vec<AnySyncTimelineEvent>> {
    let events = room.timeline.events.iter();
    events
        .map(|event| {
            event
                .raw()
                .deserialize()
                .with_context(|| format!("{:?}", event.raw().json()))
        })
        .collect()
}

fn readable(room: &JoinedRoomUpdate) -> Result<()> {
    timeline(room)?;
    let (State::Before(state) | State::After(state)) = &room.state;
    for event in state {
        event
            .deserialize()
            .with_context(|| format!("{:?}", event.json()))?;
    }
    for event in &room.ephemeral {
        event
            .deserialize()
            .with_context(|| format!("{:?}", event.json()))?;
    }
    Ok(())
}
