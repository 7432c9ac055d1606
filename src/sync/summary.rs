//! What a room is called after, and how many are in it ("Calculating the display name for a room").

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::OwnedUserId;

use super::{
    Context,
    answer::Summary,
    batch::Batch,
    lookup::{self, key},
    state::is_member,
};
use crate::{
    error::Result,
    storage::{self, Membership, RoomNid},
};

/// What a room is called after, and how many are in it.
#[derive(Debug)]
pub(super) struct Called {
    heroes: Option<Vec<OwnedUserId>>,
    joined: i64,
    invited: i64,
}

impl Called {
    pub(super) fn heroes(&self) -> impl Iterator<Item = &OwnedUserId> {
        self.heroes.iter().flatten()
    }

    pub(super) fn into_summary(self) -> Summary {
        Summary {
            heroes: self.heroes,
            joined: Some(self.joined),
            invited: Some(self.invited),
        }
    }
}

/// Finds the summaries of the joined rooms whose members have changed.
pub(super) async fn load(context: &Context<'_>, batch: &mut Batch<'_>) -> Result<()> {
    let mut wanted = Vec::new();
    for part in &mut batch.parts {
        let mut events = part.timeline.iter().chain(&part.state);
        if part.is_joined()
            && (part.is_whole(context) || part.limited || events.any(|event| is_member(event)))
        {
            let seen = part.room.seen();
            part.called = Some(Called {
                heroes: None,
                joined: seen.joined_count,
                invited: seen.invited_count,
            });
            drop(seen);
            for event_type in ["m.room.name", "m.room.canonical_alias"] {
                wanted.push((Arc::clone(&part.room), key(event_type, "")));
            }
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let rooms: HashSet<RoomNid> = wanted.iter().map(|(room, _)| room.nid).collect();
    let named: HashSet<RoomNid> = lookup::state(context, wanted)
        .await?
        .values()
        .filter(|event| is_name(event.pdu.content.get()))
        .map(|event| event.room)
        .collect();
    let nameless: Vec<RoomNid> = rooms.difference(&named).copied().collect();
    let mut heroes: HashMap<RoomNid, Vec<storage::sync::Hero>> = HashMap::new();
    for hero in storage::sync::heroes(
        &context.app.db,
        &batch.rules,
        context.viewer.user,
        &nameless,
    )
    .await?
    {
        heroes.entry(hero.event.room).or_default().push(hero);
    }
    for part in &mut batch.parts {
        let (Some(called), Some(mut heroes)) = (&mut part.called, heroes.remove(&part.room.nid))
        else {
            continue;
        };
        if heroes.iter().any(storage::sync::Hero::is_there) {
            heroes.retain(storage::sync::Hero::is_there);
        }
        let ids = heroes.iter().filter_map(|hero| {
            let id = hero.event.pdu.state_key.as_deref()?;
            OwnedUserId::try_from(id).ok()
        });
        called.heroes = Some(ids.collect());
    }
    Ok(())
}

impl storage::sync::Hero {
    fn is_there(&self) -> bool {
        self.membership <= Membership::Join
    }
}

/// Whether the content of a name or alias event names something.
fn is_name(content: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Content {
        #[serde(alias = "alias")]
        name: Option<String>,
    }
    serde_json::from_str::<Content>(content)
        .is_ok_and(|content| content.name.is_some_and(|name| !name.is_empty()))
}
