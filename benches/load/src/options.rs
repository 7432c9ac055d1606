//! The command line.

use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measures a Matrix homeserver through its Client-Server API. Prints one JSON line per scenario.
#[derive(Parser, Debug)]
pub struct Options {
    /// What to measure, in this order.
    #[arg(required = true)]
    pub scenarios: Vec<Scenario>,
    /// Where the server listens, such as `http://127.0.0.1:8008`.
    #[arg(long)]
    pub url: String,
    /// What the server is called in the output.
    #[arg(long, default_value = "")]
    pub name: String,
    /// Used for `m.login.registration_token` where registration is not open.
    #[arg(long)]
    pub registration_token: Option<String>,
    /// Processes whose CPU time and memory are measured, with their children: the server first.
    #[arg(long, value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// A file that keeps prepared accounts and rooms between runs.
    #[arg(long)]
    pub state: Option<std::path::PathBuf>,
    /// How often each scenario is run.
    #[arg(long, default_value_t = 1)]
    pub repeat: usize,
    /// For how long a scenario that measures a rate goes on, in seconds.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Requests in flight while a scenario is prepared.
    #[arg(long, default_value_t = 8)]
    pub preparing: usize,

    /// Requests in flight in `register`, `login`, `create_room` and `state_send`.
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Direct rooms of `dm_send`: each has one message in flight. As many claims are in flight in
    /// `keys_claim`, and as many pairs are there in `to_device`.
    #[arg(long, default_value_t = 20)]
    pub dm_rooms: usize,
    /// In `dm_send`, the receivers sync meanwhile.
    #[arg(long)]
    pub dm_receivers_sync: bool,
    /// Direct rooms of `dm_latency`.
    #[arg(long, default_value_t = 5)]
    pub latency_rooms: usize,
    /// Messages of `dm_latency` per room, one every half second.
    #[arg(long, default_value_t = 20)]
    pub latency_messages: usize,
    /// Syncing members of the room of `room_fanout`.
    #[arg(long, default_value_t = 100)]
    pub fanout_members: usize,
    /// Rooms of the account of `sync_initial`.
    #[arg(long, default_value_t = 200)]
    pub initial_rooms: usize,
    /// Messages in each of those rooms.
    #[arg(long, default_value_t = 10)]
    pub initial_messages: usize,
    /// Rooms of each account of `sync_idle`.
    #[arg(long, default_value_t = 10)]
    pub idle_rooms: usize,
    /// Messages that `messages_walk` walks back through.
    #[arg(long, default_value_t = 10_000)]
    pub walk_messages: usize,
    /// Accounts of `memory_sleeping`, each asleep in a sync.
    #[arg(long, default_value_t = 2_000)]
    pub sleepers: usize,
    /// Pairs of people of `people`, each in a direct room.
    #[arg(long, default_value_t = 5)]
    pub people_pairs: usize,
    /// Members of the room of `large_room_join`.
    #[arg(long, default_value_t = 200)]
    pub join_members: usize,
    /// Devices whose keys `keys_claim` claims.
    #[arg(long, default_value_t = 100)]
    pub claim_devices: usize,
    /// One-time keys of each of these devices.
    #[arg(long, default_value_t = 450)]
    pub claim_keys: usize,
    /// Joins of `large_room_join`.
    #[arg(long, default_value_t = 20)]
    pub joins: usize,
}

impl Options {
    /// For how long a scenario that measures a rate goes on.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// What can be measured.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "snake_case")]
pub enum Scenario {
    /// Memory of the server as it is; meant for a server just started.
    MemoryIdle,
    /// Messages in many direct rooms at once.
    DmSend,
    /// From before the send to the arrival in the receiver's sleeping sync.
    DmLatency,
    /// A message to a room whose members all sleep in a sync.
    RoomFanout,
    /// First syncs of an account in many rooms.
    SyncInitial,
    /// Incremental syncs with nothing new.
    SyncIdle,
    /// Paging back through a long room, 100 events a page.
    MessagesWalk,
    /// Memory while many accounts sleep in a sync.
    MemorySleeping,
    /// New accounts; mostly password hashing.
    Register,
    /// Logins by password; mostly password hashing.
    Login,
    /// New private rooms.
    CreateRoom,
    /// State events.
    StateSend,
    /// Typing, receipts and presence while the other person syncs.
    People,
    /// One-time keys of many devices, one a request, 20 requests in flight.
    KeysClaim,
    /// Messages to devices that sleep in a sync, 20 pairs at once.
    ToDevice,
    /// Joins of a room with many members.
    LargeRoomJoin,
}
