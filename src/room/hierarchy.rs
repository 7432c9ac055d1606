//! Spaces: walking down a tree of rooms (Client-Server API, "Discovering rooms within spaces").

pub mod elsewhere;

use std::collections::{HashMap, HashSet};

use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, ServerName,
    events::space::child::{HierarchySpaceChildEvent, SpaceChildOrd as _},
    room::RoomSummary,
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::summary::{self, Summary};
use crate::{
    app::App,
    error::{Error, Result},
    storage::{RoomNid, UserNid, members, summaries},
};
use elsewhere::Elsewhere;

/// The most rooms that are looked at for one request; what lies beyond is not found.
const MAX_ROOMS: usize = 2_000;
/// The most child events that are read for all spaces of one level.
const MAX_CHILDREN: i64 = 5_000;

/// The most children of which another server is told.
const MAX_PART: usize = 50;

/// How somebody wants to walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// How many steps down from the root.
    pub max_depth: u64,
    /// Whether only suggested children count.
    pub suggested_only: bool,
    /// Whether other servers are to be asked also about what they have told lately.
    pub fresh: bool,
}

/// A room of the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is told of it.
    pub summary: RoomSummary,
    /// Its children in their order; empty if it is no space.
    pub children: Vec<Child>,
}

/// A child of a space.
#[derive(Clone, Debug)]
pub struct Child {
    /// The `m.space.child` event as the specification wants it.
    pub event: Raw<HierarchySpaceChildEvent>,
    id: OwnedRoomId,
    via: Vec<OwnedServerName>,
    suggested: bool,
}

/// The rooms below a room that the user may know of, depth first; each is there once. The first is the room itself.
///
/// The number of queries depends on the depth of the tree, not on the number of rooms. Of rooms that this server is not
/// in, other servers are asked.
///
/// # Errors
/// `M_FORBIDDEN` if the user may not know of the room itself.
pub async fn walk(app: &App, user: UserNid, root: &RoomId, walk: Walk) -> Result<Vec<Node>> {
    let mut nodes = HashMap::new();
    let mut seen = HashSet::from([root.to_owned()]);
    let mut level = vec![(
        root.to_owned(),
        elsewhere::servers(app, Some(user), root).await?,
    )];
    let mut elsewhere = Elsewhere::new(app, user, walk.fresh);
    for depth in 0..=walk.max_depth {
        let ids = level.iter().map(|(id, _)| id.clone()).collect();
        let here = resident(app, ids).await?;
        let mut found = load(app, Asker::User(user), &here).await?.nodes;
        let here: HashSet<OwnedRoomId> = here.into_iter().collect();
        level.retain(|(id, _)| !here.contains(id));
        found.extend(elsewhere.nodes(level).await?);
        level = Vec::new();
        if depth < walk.max_depth {
            for child in found.iter().flat_map(|node| walk.of(node)) {
                if seen.len() < MAX_ROOMS && seen.insert(child.id.clone()) {
                    level.push((child.id.clone(), child.via.clone()));
                }
            }
        }
        nodes.extend(
            found
                .into_iter()
                .map(|node| (node.summary.room_id.clone(), node)),
        );
        if level.is_empty() {
            break;
        }
    }
    if !nodes.contains_key(root) {
        return Err(Error::forbidden(format!("you may not look into {root}")));
    }
    let order = depth_first(&nodes, root, walk);
    let mut nodes: Vec<_> = order
        .into_iter()
        .filter_map(|id| nodes.remove(&id))
        .collect();
    if walk.suggested_only {
        for node in &mut nodes {
            node.children.retain(|child| child.suggested);
        }
    }
    Ok(nodes)
}

impl Walk {
    fn of(self, node: &Node) -> impl DoubleEndedIterator<Item = &Child> {
        node.children
            .iter()
            .filter(move |child| child.suggested || !self.suggested_only)
    }
}

/// The ids of the rooms in the order in which one meets them.
fn depth_first(nodes: &HashMap<OwnedRoomId, Node>, root: &RoomId, walk: Walk) -> Vec<OwnedRoomId> {
    let mut order = Vec::with_capacity(nodes.len());
    let mut met = HashSet::new();
    let mut stack = vec![(root, 0)];
    while let Some((id, depth)) = stack.pop() {
        let Some(node) = nodes.get(id) else { continue };
        if !met.insert(id) {
            continue;
        }
        order.push(id.to_owned());
        if depth < walk.max_depth {
            stack.extend(walk.of(node).rev().map(|child| (&*child.id, depth + 1)));
        }
    }
    order
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum Asker<'a> {
    User(UserNid),
    Server(&'a ServerName),
}

/// Rooms that are known here.
#[derive(Debug, Default)]
struct Found {
    /// Those that the asker may know of.
    nodes: Vec<Node>,
    /// The others.
    hidden: Vec<OwnedRoomId>,
}

async fn load(app: &App, asker: Asker<'_>, ids: &[OwnedRoomId]) -> Result<Found> {
    let rooms = summary::by_ids(app, ids).await?;
    let visible = match asker {
        Asker::User(user) => summary::access(app, Some(user), &rooms).await?.visible,
        Asker::Server(server) => summary::known_to_server(app, server, &rooms).await?,
    };
    let (rooms, hidden): (Vec<Summary>, Vec<Summary>) = rooms
        .into_iter()
        .partition(|room| visible.contains(&room.nid));
    let spaces: Vec<RoomNid> = rooms
        .iter()
        .filter(|room| room.room_type.as_deref() == Some("m.space"))
        .map(|room| room.nid)
        .collect();
    let mut children: HashMap<RoomNid, Vec<Raw<HierarchySpaceChildEvent>>> = HashMap::new();
    if !spaces.is_empty() {
        for (room, json) in
            summaries::state_of_type(&app.db, &spaces, "m.space.child", MAX_CHILDREN).await?
        {
            match stripped(&json) {
                Ok(child) => children.entry(room).or_default().push(child),
                Err(error) => tracing::error!(room = room.0, %error, "a child cannot be read"),
            }
        }
    }
    let nodes = rooms.into_iter().map(|summary| {
        let children = children.remove(&summary.nid).unwrap_or_default();
        Node {
            summary: summary.into_summary(),
            children: children_of(children.into_iter()),
        }
    });
    Ok(Found {
        nodes: nodes.collect(),
        hidden: hidden.into_iter().map(|room| room.id).collect(),
    })
}

/// What another server is told of a space.
#[derive(Debug)]
pub struct Part {
    /// The space.
    pub room: Node,
    /// Those of its children that are known here, and of which the server may know.
    pub children: Vec<RoomSummary>,
    /// Those of its children that are known here, and of which it may not know.
    pub inaccessible: Vec<OwnedRoomId>,
}

/// A room and its children, as another server may know of them.
///
/// # Errors
/// `M_NOT_FOUND` if it may not know of the room.
pub async fn part(
    app: &App,
    server: &ServerName,
    root: &RoomId,
    suggested_only: bool,
) -> Result<Part> {
    let asker = Asker::Server(server);
    let mut found = load(app, asker, &resident(app, vec![root.to_owned()]).await?).await?;
    let mut room = found
        .nodes
        .pop()
        .ok_or_else(|| Error::not_found("there is no such room, or you may not know of it"))?;
    room.children
        .retain(|child| child.suggested || !suggested_only);
    let mut met = HashSet::from([root]);
    let children = room.children.iter().map(|child| &*child.id);
    let children = children.filter(|child| met.insert(*child));
    let children: Vec<OwnedRoomId> = children.take(MAX_PART).map(ToOwned::to_owned).collect();
    let found = load(app, asker, &resident(app, children).await?).await?;
    Ok(Part {
        room,
        children: found.nodes.into_iter().map(|node| node.summary).collect(),
        inaccessible: found.hidden,
    })
}

/// Those of some rooms that this server is in; what it knows of others is old.
async fn resident(app: &App, ids: Vec<OwnedRoomId>) -> Result<Vec<OwnedRoomId>> {
    let names = ids.iter().map(ToString::to_string).collect();
    let known = members::with_local_users(&app.db, names).await?;
    let known: HashSet<String> = known.into_iter().collect();
    let mut ids = ids;
    ids.retain(|id| known.contains(id.as_str()));
    Ok(ids)
}

/// A state event as other servers and clients get it.
fn stripped(json: &str) -> Result<Raw<HierarchySpaceChildEvent>> {
    #[derive(Deserialize)]
    struct Stored<'a> {
        #[serde(borrow)]
        content: &'a RawValue,
        sender: String,
        state_key: String,
        origin_server_ts: u64,
    }
    let stored: Stored<'_> = serde_json::from_str(json).map_err(Error::internal)?;
    let stripped = json!({
        "type": "m.space.child",
        "content": stored.content,
        "sender": stored.sender,
        "state_key": stored.state_key,
        "origin_server_ts": stored.origin_server_ts,
    });
    let json = serde_json::value::to_raw_value(&stripped).map_err(Error::internal)?;
    Ok(Raw::from_json(json))
}

/// The children that events name, in their order. One whose event cannot be read, or that can be reached through no
/// server, is none (any more).
fn children_of(events: impl Iterator<Item = Raw<HierarchySpaceChildEvent>>) -> Vec<Child> {
    let mut children: Vec<(HierarchySpaceChildEvent, Child)> = events
        .filter_map(|event| {
            let parsed = event.deserialize().ok()?;
            let child = Child {
                event,
                id: parsed.state_key.clone(),
                via: parsed.content.via.clone(),
                suggested: parsed.content.suggested,
            };
            (!child.via.is_empty()).then_some((parsed, child))
        })
        .collect();
    children.sort_by(|(one, _), (other, _)| one.cmp_space_child(other));
    children.into_iter().map(|(_, child)| child).collect()
}
