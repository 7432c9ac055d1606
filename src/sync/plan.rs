//! Which rooms a sync is about.

use std::collections::{HashMap, HashSet};

use super::{Request, Since, device_lists::Company};
use crate::{
    app::App,
    bus::{Feed, FeedState},
    error::Result,
    preferences::{self, PUSH_RULES},
    storage::{self, AccountData, DeviceNid, Member, Membership, Pos, RoomNid, UserNid},
};

/// What a sync is to tell.
#[derive(Debug)]
pub(super) struct Plan {
    /// Up to where everything is told.
    pub(super) upto: Pos,
    /// The same for what only memory knows.
    pub(super) ephemeral: u64,
    /// What the user is to each of the rooms.
    pub(super) rooms: Vec<Member>,
    /// The rooms of which it is to be told who is typing.
    pub(super) typing: HashSet<RoomNid>,
    /// The users of whom it is to be told how they are; `None`: all who are there.
    pub(super) presence: Option<Vec<UserNid>>,
    /// The users whose devices have changed.
    pub(super) devices: HashSet<UserNid>,
    /// Who has come and gone.
    pub(super) company: Company,
    /// Account data that changed, by room.
    pub(super) account_data: HashMap<Option<RoomNid>, Vec<AccountData>>,
}

/// Whether there is anything after `since`, as far as can be told without a look at it.
pub(super) fn has_news(app: &App, feed: &Feed, device: DeviceNid, since: Since) -> bool {
    let _settled = app.bus.settled();
    let state = feed.state();
    since.pos < state.from
        || since.ephemeral < state.ephemeral_from
        || state.has_news(since.pos)
        || state.has_message(device, since.to_device.unwrap_or(since.pos))
        || state.typing.values().any(|at| *at > since.ephemeral)
        || state.presence.values().any(|at| *at > since.ephemeral)
}

impl Plan {
    /// Finds out what there is to tell: without a query if the user has synced lately and nothing of their own changed.
    pub(super) async fn make(
        app: &App,
        request: &Request,
        feed: &Feed,
        since: Option<Since>,
    ) -> Result<Self> {
        let pos = since.map_or(0, |since| since.pos);
        // What changed before the feed began is not in it.
        let is_old = pos < feed.state().from;
        let (older, forgotten) = if is_old && since.is_some() {
            let rooms = storage::sync::changed_rooms(&app.db, feed.user, pos).await?;
            let forgotten = storage::members::forgotten_since(&app.db, feed.user, pos).await?;
            (rooms, forgotten)
        } else {
            (Vec::new(), Vec::new())
        };
        let (mut plan, own) = {
            let settled = app.bus.settled();
            let state = feed.state();
            let mut rooms: HashSet<RoomNid> = older.into_iter().collect();
            match since {
                Some(_) => rooms.extend(state.changed_since(pos)),
                None => rooms.extend(state.memberships.keys()),
            }
            if request.full_state {
                rooms.extend(current_rooms(&state));
            }
            let mut typing = typing(app, &state, since);
            let now = app.clock.now();
            typing.extend(rooms.iter().filter(|room| {
                // Who has just come learns who has been typing since before.
                let member = state.memberships.get(room);
                member
                    .is_some_and(|member| member.membership == Membership::Join && member.pos > pos)
                    && !app.typing.users(**room, now).is_empty()
            }));
            rooms.extend(&typing);
            // Who was thrown out while no client of theirs was looking learns of it all the same.
            let shown = |member: &Member| {
                since.is_some()
                    || member.membership < Membership::Leave
                    || member.sender != feed.user
                    || request.filter.room.include_leave
            };
            let mut gone: HashMap<RoomNid, &Member> = HashMap::new();
            if since.is_some() {
                let forgotten = forgotten.iter().chain(state.forgotten.values());
                let forgotten = forgotten.filter(|member| {
                    member.pos > pos && !state.memberships.contains_key(&member.room)
                });
                gone.extend(forgotten.map(|member| (member.room, member)));
            }
            let plan = Self {
                upto: *settled,
                ephemeral: app.bus.ephemeral(),
                rooms: rooms
                    .iter()
                    .filter_map(|room| state.memberships.get(room))
                    .filter(|member| shown(member))
                    .chain(gone.into_values())
                    .cloned()
                    .collect(),
                typing,
                presence: since
                    .filter(|since| since.ephemeral >= state.ephemeral_from)
                    .map(|since| changed(&state.presence, since)),
                devices: since.map_or_else(HashSet::new, |_| state.devices_since(pos).collect()),
                company: Company::default(),
                account_data: HashMap::new(),
            };
            (plan, is_old || state.own_pos > pos)
        };
        if is_old && since.is_some() {
            let window = (pos, plan.upto);
            let changed = storage::device_lists::changed(&app.db, feed.user, window);
            plan.devices.extend(changed.await?);
        }
        if own || since.is_none() {
            plan.add_account_data(app, feed, pos).await?;
        }
        Ok(plan)
    }

    async fn add_account_data(&mut self, app: &App, feed: &Feed, since: Pos) -> Result<()> {
        let mut planned: HashSet<RoomNid> = self.rooms.iter().map(|member| member.room).collect();
        for item in storage::account_data::since(&app.db, feed.user, since).await? {
            if let Some(room) = item.room
                && since > 0
                && planned.insert(room)
            {
                self.rooms
                    .extend(feed.state().memberships.get(&room).cloned());
            }
            self.account_data.entry(item.room).or_default().push(item);
        }
        if since == 0 {
            self.add_push_rules(app, feed.user).await?;
        }
        Ok(())
    }

    /// Everybody has push rules, also those who never set any.
    async fn add_push_rules(&mut self, app: &App, user: UserNid) -> Result<()> {
        let user_id = app.names.user_id(&app.db, user).await?;
        let global = self.account_data.entry(None).or_default();
        global.retain(|item| item.event_type != PUSH_RULES);
        global.push(AccountData {
            room: None,
            event_type: PUSH_RULES.to_owned(),
            json: preferences::push_rules_content(app, user, &user_id).await?,
            pos: 0,
        });
        Ok(())
    }
}

/// The rooms that the user is in or could be in.
fn current_rooms(state: &FeedState) -> impl Iterator<Item = RoomNid> {
    state
        .memberships
        .values()
        .filter(|member| member.membership < Membership::Leave)
        .map(|member| member.room)
}

/// The rooms in which somebody has begun or ended typing; those in which somebody types, if it is not known since when.
fn typing(app: &App, state: &FeedState, since: Option<Since>) -> HashSet<RoomNid> {
    match since {
        Some(since) if since.ephemeral >= state.ephemeral_from => {
            changed(&state.typing, since).into_iter().collect()
        }
        _ => {
            let now = app.clock.now();
            current_rooms(state)
                .filter(|room| !app.typing.users(*room, now).is_empty())
                .collect()
        }
    }
}

fn changed<K: Copy>(changes: &HashMap<K, u64>, since: Since) -> Vec<K> {
    changes
        .iter()
        .filter(|(_, at)| **at > since.ephemeral)
        .map(|(key, _)| *key)
        .collect()
}
