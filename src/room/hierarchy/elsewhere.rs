//! What other servers tell of rooms that this server is not in.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use ruma::{
    OwnedRoomId, OwnedServerName, RoomId,
    api::federation::space::get_hierarchy::v1::Request,
    room::{RoomSummary, RoomType},
};
use tokio::time::Instant;

use super::{Asker, Node, children_of, load};
use crate::{
    app::App,
    error::{Error, Result},
    remote::{self, Space},
    room::{self, summary},
    storage::UserNid,
};

/// The most servers that are asked about one room.
const SERVERS: usize = 3;
/// The most rooms about which others are asked on one walk.
const ROOMS: usize = 100;
/// How many are asked about at once.
const AT_ONCE: usize = 8;
/// How long a walk may wait for others.
const WALK_TIME: Duration = Duration::from_secs(40);
/// The most that is read of what a server tells of a room, in bytes.
const SPACE_BYTES: u64 = 1 << 20;
/// How long what was told, and that nothing was told, is kept for the next page, in milliseconds.
const KEPT: i64 = 300_000;
const SILENCE_KEPT: i64 = 30_000;

/// Rooms that are met on a walk and that this server is not in.
pub(super) struct Elsewhere<'a> {
    app: &'a App,
    user: UserNid,
    /// Whether others are to be asked also about what they have told lately.
    fresh: bool,
    left: usize,
    until: Instant,
    /// What is known of rooms from those that lead to them.
    told: HashMap<OwnedRoomId, RoomSummary>,
    /// Of which rooms others will not tell this server.
    closed: HashSet<OwnedRoomId>,
}

impl<'a> Elsewhere<'a> {
    pub(super) fn new(app: &'a App, user: UserNid, fresh: bool) -> Self {
        Self {
            app,
            user,
            fresh,
            left: ROOMS,
            until: Instant::now() + WALK_TIME,
            told: HashMap::new(),
            closed: HashSet::new(),
        }
    }

    /// What is told of rooms, each with the servers that may tell: of those of which the user may know.
    pub(super) async fn nodes(
        &mut self,
        rooms: Vec<(OwnedRoomId, Vec<OwnedServerName>)>,
    ) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        let mut asked = Vec::new();
        let mut silent = Vec::new();
        for (room, via) in rooms {
            match self.told.remove(&room) {
                Some(summary) if summary.room_type != Some(RoomType::Space) => nodes.push(Node {
                    summary,
                    children: Vec::new(),
                }),
                _ if self.closed.contains(&room) => {}
                _ if self.left > 0 && Instant::now() < self.until => {
                    self.left -= 1;
                    asked.push((room, via));
                }
                _ => silent.push(room),
            }
        }
        let (app, fresh, until) = (self.app, self.fresh, self.until);
        let answers = stream::iter(asked).map(|(room, via)| async move {
            let space = tokio::time::timeout_at(until, space(app, &room, &via, fresh)).await;
            (room, space.ok().flatten())
        });
        let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
        for (room, space) in answers {
            let Some(space) = space else {
                silent.push(room);
                continue;
            };
            nodes.push(Node {
                summary: space.room.summary.clone(),
                children: children_of(space.room.children_state.iter().cloned()),
            });
            let children = space.children.iter().cloned();
            let children = children.map(|child| (child.room_id.clone(), child));
            self.told.extend(children);
            let closed = space.inaccessible_children.iter().cloned();
            self.closed.extend(closed);
        }
        let summaries: Vec<_> = nodes.iter().map(|node| &node.summary).collect();
        let visible = summary::known_from_others(self.app, Some(self.user), &summaries).await?;
        nodes.retain(|node| visible.contains(&node.summary.room_id));
        // Better what was known here once than nothing.
        let old = load(self.app, Asker::User(self.user), &silent).await?;
        nodes.extend(old.nodes);
        Ok(nodes)
    }
}

/// What the first of some servers that knows a room tells of it. Unless it is to be `fresh`, that may be a few minutes
/// old.
pub async fn space(
    app: &App,
    room: &RoomId,
    via: &[OwnedServerName],
    fresh: bool,
) -> Option<Space> {
    let now = app.clock.now();
    let known = app.remote.spaces.get(room).filter(|_| !fresh);
    if let Some((_, told)) = known.filter(|(until, _)| *until > now) {
        return told;
    }
    let mut told = None;
    for server in via
        .iter()
        .filter(|via| **via != app.server_name)
        .take(SERVERS)
    {
        let request = Request::new(room.to_owned());
        match remote::ask(app, server, request, SPACE_BYTES).await {
            Ok(answer) if answer.room.summary.room_id == room => {
                told = Some(Arc::new(answer));
                break;
            }
            Ok(_) => tracing::debug!(%server, %room, "another server tells of another room"),
            Err(error) => tracing::debug!(%server, %room, %error, "another server tells nothing"),
        }
    }
    let kept = if told.is_some() { KEPT } else { SILENCE_KEPT };
    let entry = (now + kept, told.clone());
    app.remote.spaces.insert(room.to_owned(), entry);
    told
}

/// What other servers tell of one room, if they let the user know (or, without a user, anybody).
///
/// # Errors
/// `M_NOT_FOUND` if they tell nothing.
pub async fn summary(
    app: &App,
    user: Option<UserNid>,
    room: &RoomId,
    via: &[OwnedServerName],
) -> Result<RoomSummary> {
    let unknown = || Error::not_found("there is no such room, or you may not know of it");
    let space = space(app, room, via, true).await.ok_or_else(unknown)?;
    let told = &space.room.summary;
    let visible = summary::known_from_others(app, user, &[told]).await?;
    if visible.contains(room) {
        Ok(told.clone())
    } else {
        Err(unknown())
    }
}

/// The servers that may know of a room about which nobody has said more than its id, but perhaps those who have invited
/// the user to it.
///
/// # Errors
/// If the database fails.
pub async fn servers(
    app: &App,
    user: Option<UserNid>,
    room: &RoomId,
) -> Result<Vec<OwnedServerName>> {
    let mut found: Vec<OwnedServerName> = match app.room(room).await {
        Ok(room) => match (room.other_servers(), user) {
            (known, Some(user)) if known.is_empty() => {
                room::remote::told_by(app, &room, user).await?
            }
            (known, _) => known,
        },
        Err(Error::Matrix { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    if let Some(server) = room.server_name()
        && !found.iter().any(|known| known == server)
    {
        found.insert(0, server.to_owned());
    }
    Ok(found)
}
