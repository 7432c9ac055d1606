//! Spaces: walking down a tree of rooms (Client-Server API, "Discovering rooms within spaces").

use std::collections::{HashMap, HashSet};

use ruma::{
    OwnedRoomId, RoomId,
    events::space::child::{HierarchySpaceChildEvent, SpaceChildOrd as _},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::summary::{self, Summary};
use crate::{
    app::App,
    error::{Error, Result},
    storage::{RoomNid, UserNid, summaries},
};

/// The most rooms that are looked at for one request; what lies beyond is not found.
const MAX_ROOMS: usize = 2_000;
/// The most child events that are read for all spaces of one level.
const MAX_CHILDREN: i64 = 5_000;

/// How somebody wants to walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// How many steps down from the root.
    pub max_depth: u64,
    /// Whether only suggested children count.
    pub suggested_only: bool,
}

/// A room of the tree.
#[derive(Debug)]
pub struct Node {
    /// What is told of it.
    pub summary: Summary,
    /// Its children in their order; empty if it is no space.
    pub children: Vec<Child>,
}

/// A child of a space.
#[derive(Debug)]
pub struct Child {
    /// The `m.space.child` event as the specification wants it.
    pub event: Raw<HierarchySpaceChildEvent>,
    id: OwnedRoomId,
    suggested: bool,
}

/// The rooms below a room that the user may know of, depth first; each is there once. The first is the room itself.
///
/// The number of queries depends on the depth of the tree, not on the number of rooms.
///
/// # Errors
/// `M_FORBIDDEN` if the user may not know of the room itself.
pub async fn walk(app: &App, user: UserNid, root: &RoomId, walk: Walk) -> Result<Vec<Node>> {
    let mut nodes = HashMap::new();
    let mut seen = HashSet::from([root.to_owned()]);
    let mut level = vec![root.to_owned()];
    for depth in 0..=walk.max_depth {
        let found = load(app, user, &level).await?;
        level = Vec::new();
        if depth < walk.max_depth {
            for child in found.iter().flat_map(|node| walk.of(node)) {
                if seen.len() < MAX_ROOMS && seen.insert(child.to_owned()) {
                    level.push(child.to_owned());
                }
            }
        }
        nodes.extend(
            found
                .into_iter()
                .map(|node| (node.summary.id.clone(), node)),
        );
        if level.is_empty() {
            break;
        }
    }
    if !nodes.contains_key(root) {
        return Err(Error::forbidden(format!("you may not look into {root}")));
    }
    let order = depth_first(&nodes, root, walk);
    Ok(order
        .into_iter()
        .filter_map(|id| nodes.remove(&id))
        .collect())
}

impl Walk {
    fn of(self, node: &Node) -> impl DoubleEndedIterator<Item = &RoomId> {
        node.children
            .iter()
            .filter(move |child| child.suggested || !self.suggested_only)
            .map(|child| &*child.id)
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
            stack.extend(walk.of(node).rev().map(|child| (child, depth + 1)));
        }
    }
    order
}

/// The rooms with these ids that the user may know of.
async fn load(app: &App, user: UserNid, ids: &[OwnedRoomId]) -> Result<Vec<Node>> {
    let mut rooms = summary::by_ids(app, ids).await?;
    let visible = summary::access(app, Some(user), &rooms).await?.visible;
    rooms.retain(|room| visible.contains(&room.nid));
    let spaces: Vec<RoomNid> = rooms
        .iter()
        .filter(|room| room.room_type.as_deref() == Some("m.space"))
        .map(|room| room.nid)
        .collect();
    let mut children: HashMap<RoomNid, Vec<(HierarchySpaceChildEvent, Child)>> = HashMap::new();
    if !spaces.is_empty() {
        for (room, json) in
            summaries::state_of_type(&app.db, &spaces, "m.space.child", MAX_CHILDREN).await?
        {
            children.entry(room).or_default().extend(child(&json)?);
        }
    }
    Ok(rooms
        .into_iter()
        .map(|summary| {
            let mut children = children.remove(&summary.nid).unwrap_or_default();
            children.sort_by(|(one, _), (other, _)| one.cmp_space_child(other));
            Node {
                summary,
                children: children.into_iter().map(|(_, child)| child).collect(),
            }
        })
        .collect())
}

/// The child that a state event names, if it names one.
fn child(json: &str) -> Result<Option<(HierarchySpaceChildEvent, Child)>> {
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
    let event =
        Raw::from_json(serde_json::value::to_raw_value(&stripped).map_err(Error::internal)?);
    // A child whose event cannot be read, or that can be reached through no server, is none (any more).
    let parsed: Option<HierarchySpaceChildEvent> = event.deserialize().ok();
    Ok(parsed
        .filter(|parsed| !parsed.content.via.is_empty())
        .map(|parsed| {
            let child = Child {
                event,
                id: parsed.state_key.clone(),
                suggested: parsed.content.suggested,
            };
            (parsed, child)
        }))
}
