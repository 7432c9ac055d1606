//! The server's parts, as every handler sees them.

use std::sync::Arc;

use homing_federation::{Client, SigningKey, client::Guarded, server_keys::OwnKeys};
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedServerName, RoomId, ServerName, UserId};
use tokio_util::sync::CancellationToken;

use crate::{
    accounts::{Erased, Nonces},
    application_services::ApplicationServices,
    auth::{Origins, Seen, Sessions},
    bus::Bus,
    clock::Clock,
    config::Config,
    early_receipts::EarlyReceipts,
    error::{Error, Result},
    files::Files,
    filter::Filters,
    http::Bodies,
    keys::Stocks,
    lazy_members::LazyMembers,
    log::Log,
    names::Names,
    password::Passwords,
    preferences::KnownPreferences,
    presence::Presence,
    rate_limit::Buckets,
    remote::Remote,
    rooms::{Room, Rooms},
    server_keys::ServerKeys,
    staging::Staging,
    storage::{Db, DeviceNid, Pos, RoomNid, UserNid},
    telemetry::Metrics,
    turns::Turns,
    typing::Typing,
    uiaa::Uiaa,
    web::Web,
};

/// The events that devices have sent lately, by room, type and transaction id.
pub type Txns = Cache<(DeviceNid, RoomNid, Arc<str>, Arc<str>), OwnedEventId>;

/// One running server. Two of them can live in one process.
#[derive(Debug)]
pub struct App {
    /// The settings.
    pub config: Config,
    /// The name that its users have behind the colon.
    pub server_name: OwnedServerName,
    /// The database, to read.
    pub db: Db,
    /// The log, to write.
    pub log: Log,
    /// Ids and their integers.
    pub names: Names,
    /// The rooms in memory.
    pub rooms: Arc<Rooms>,
    /// Who is connected.
    pub bus: Arc<Bus>,
    /// The events that devices have sent lately.
    pub txns: Txns,
    /// The memory for the bodies of requests.
    pub bodies: Bodies,
    /// The sessions in memory.
    pub sessions: Sessions,
    /// The one-time keys that are handed out next.
    pub key_stocks: Stocks,
    /// One thing at a time is done with the list of devices of a user of another server.
    pub remote_lists: Turns<UserNid>,
    /// Which member events devices have been sent.
    pub lazy_members: LazyMembers,
    /// The filters in memory.
    pub filters: Filters,
    /// Push rules and ignored users in memory.
    pub preferences: KnownPreferences,
    /// Who types where.
    pub typing: Typing,
    /// Who is there.
    pub presence: Presence,
    /// When devices were seen, not yet written.
    pub seen: Seen,
    /// Receipts of other servers that wait for their events.
    pub early_receipts: EarlyReceipts,
    /// Events of other servers that wait for what they rest on.
    pub staging: Staging,
    /// One transaction of each other server is worked on at a time.
    pub transactions: Turns<OwnedServerName>,
    /// One request at a time changes the key backups of a user.
    pub key_backups: Turns<UserNid>,
    /// One request at a time makes the dehydrated device of a user.
    pub dehydrated_devices: Turns<UserNid>,
    /// What hashes passwords.
    pub passwords: Passwords,
    /// How often who did what.
    pub buckets: Buckets,
    /// The nonces of registrations by shared secret.
    pub nonces: Nonces,
    /// The application services.
    pub services: ApplicationServices,
    /// The users who had themselves erased.
    pub erased: Erased,
    /// The sessions of the User-Interactive Authentication API.
    pub uiaa: Uiaa,
    /// What other servers have answered lately.
    pub remote: Remote,
    /// What is known of pages to which people link.
    pub web: Web,
    /// The media on disk.
    pub files: Files,
    /// The key that signs events and requests.
    pub signing_key: Arc<SigningKey>,
    /// All keys of this server, that one among them.
    pub own_keys: OwnKeys,
    /// The keys of other servers.
    pub server_keys: ServerKeys,
    /// How many requests of other servers are being answered.
    pub origins: Origins,
    /// The memory for the bodies of their requests.
    pub server_bodies: Bodies,
    /// What sends requests to other servers.
    pub federation: Client,
    /// What sends requests to push gateways.
    pub push_gateways: Guarded,
    /// The time.
    pub clock: Clock,
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the server is to end.
    pub shutdown: CancellationToken,
}

impl App {
    /// The room with this id.
    ///
    /// # Errors
    /// `M_NOT_FOUND` if this server does not know it.
    pub async fn room(&self, id: &RoomId) -> Result<Arc<Room>> {
        let room = self.rooms.by_id(&self.db, &self.log, id).await?;
        room.ok_or_else(|| Error::not_found(format!("there is no room {id} here")))
    }

    /// The room with this id, for what only its members may do: of a room that is not known here nobody is a member.
    ///
    /// # Errors
    /// `M_FORBIDDEN` if this server does not know it.
    pub async fn member_room(&self, id: &RoomId) -> Result<Arc<Room>> {
        let room = self.rooms.by_id(&self.db, &self.log, id).await?;
        room.ok_or_else(|| Error::forbidden(format!("you are not in {id}")))
    }

    /// The nid of a user, given now if it must be.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn user(&self, id: &UserId) -> Result<UserNid> {
        self.names.user(&self.db, &self.log, id).await
    }

    /// The newest position that readers may rely on.
    #[must_use]
    pub fn head(&self) -> Pos {
        self.log.head()
    }

    /// Whether the user's account is (or would be) here.
    #[must_use]
    pub fn is_local(&self, user: &UserId) -> bool {
        user.server_name() == self.name()
    }

    /// The name of this server.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.server_name
    }
}
