//! What is not kept: typing, receipts and presence, on their way to a destination. Of what says the same thing anew only the
//! last counts.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Serialize;

use crate::storage::{ReceiptThread, RoomNid, UserNid};

/// The most that waits for a destination; what comes later is dropped.
const MOST: usize = 1000;
/// How many of the hundred EDUs of a transaction may be of each kind; the others are for what is kept.
const TYPING_EDUS: usize = 30;
const RECEIPT_EDUS: usize = 10;
const PRESENCE_EDUS: usize = 10;
/// How many users are in one presence EDU.
const PRESENCE_USERS: usize = 100;

/// Something that is not kept.
#[derive(Debug)]
pub(super) enum Note {
    /// Somebody types, or does not any more.
    Typing {
        room: RoomNid,
        user: UserNid,
        /// The EDU.
        json: String,
    },
    /// Somebody has read something.
    Receipt {
        room: RoomNid,
        user: UserNid,
        thread: ReceiptThread,
        said: Said,
    },
    /// Somebody has come or gone.
    Presence {
        user: UserNid,
        /// The entry of the EDU's `push`.
        json: String,
    },
}

/// A receipt as it is sent.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) room: OwnedRoomId,
    pub(super) user: OwnedUserId,
    pub(super) event: String,
    pub(super) thread: Option<Arc<str>>,
    pub(super) ts: i64,
}

/// What tells notes about the same thing from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Typing(RoomNid, UserNid),
    Receipt(RoomNid, UserNid, i64),
    Presence(UserNid),
}

/// What waits for a destination.
#[derive(Debug, Default)]
pub(super) struct Edus(BTreeMap<About, Arc<Note>>);

/// An EDU; its fields are in the order of canonical JSON.
#[derive(Serialize)]
struct Edu<C> {
    content: C,
    edu_type: &'static str,
}

/// The EDU that says whether a user types. `None` if that cannot be written, which does not happen.
pub(super) fn typing(room: &OwnedRoomId, user: &OwnedUserId, typing: bool) -> Option<String> {
    #[derive(Serialize)]
    struct Content<'a> {
        room_id: &'a OwnedRoomId,
        typing: bool,
        user_id: &'a OwnedUserId,
    }
    let content = Content {
        room_id: room,
        typing,
        user_id: user,
    };
    let edu_type = "m.typing";
    serde_json::to_string(&Edu { content, edu_type }).ok()
}

/// Receipts by room, kind and user.
type Receipts<'a> =
    BTreeMap<&'a OwnedRoomId, BTreeMap<&'static str, BTreeMap<&'a OwnedUserId, Receipt<'a>>>>;

#[derive(Serialize)]
struct Receipt<'a> {
    data: Data<'a>,
    event_ids: [&'a str; 1],
}

#[derive(Serialize)]
struct Data<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<&'a str>,
    ts: i64,
}

impl Edus {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, note: &Arc<Note>) {
        let about = match &**note {
            Note::Typing { room, user, .. } => About::Typing(*room, *user),
            Note::Receipt {
                room, user, thread, ..
            } => About::Receipt(*room, *user, thread.number()),
            Note::Presence { user, .. } => About::Presence(*user),
        };
        let is_full = self.0.len() >= MOST;
        match self.0.entry(about) {
            Entry::Occupied(mut known) => drop(known.insert(Arc::clone(note))),
            Entry::Vacant(place) if !is_full => drop(place.insert(Arc::clone(note))),
            Entry::Vacant(_) => {}
        }
    }

    /// The EDUs for a transaction, at most a hundred. What has no place in it is left for the next.
    pub(super) fn take(&mut self) -> Vec<String> {
        let notes = std::mem::take(&mut self.0);
        let mut edus = Vec::new();
        let mut receipts: Vec<Receipts<'_>> = Vec::new();
        let mut presence: Vec<&str> = Vec::new();
        for (about, note) in &notes {
            let has_place = match &**note {
                Note::Typing { json, .. } => {
                    let has_place = edus.len() < TYPING_EDUS;
                    if has_place {
                        edus.push(json.clone());
                    }
                    has_place
                }
                Note::Receipt { said, .. } => place(&mut receipts, said),
                Note::Presence { json, .. } => {
                    let has_place = presence.len() < PRESENCE_EDUS * PRESENCE_USERS;
                    if has_place {
                        presence.push(json);
                    }
                    has_place
                }
            };
            if !has_place {
                self.0.insert(*about, Arc::clone(note));
            }
        }
        edus.extend(receipts.into_iter().filter_map(|content| {
            let edu_type = "m.receipt";
            serde_json::to_string(&Edu { content, edu_type }).ok()
        }));
        edus.extend(presence.chunks(PRESENCE_USERS).map(|users| {
            let users = users.join(",");
            format!("{{\"content\":{{\"push\":[{users}]}},\"edu_type\":\"m.presence\"}}")
        }));
        edus
    }
}

/// Puts a receipt into the first EDU that has none of the same user in the same room. Answers whether there is one.
fn place<'a>(edus: &mut Vec<Receipts<'a>>, said: &'a Said) -> bool {
    let is_free = |edu: &Receipts<'a>| {
        let of_room = edu.get(&said.room).and_then(|kinds| kinds.get("m.read"));
        of_room.is_none_or(|users| !users.contains_key(&said.user))
    };
    let index = edus.iter().position(is_free).unwrap_or(edus.len());
    if index == RECEIPT_EDUS {
        return false;
    }
    if index == edus.len() {
        edus.push(Receipts::new());
    }
    let receipt = Receipt {
        data: Data {
            thread_id: said.thread.as_deref(),
            ts: said.ts,
        },
        event_ids: [&said.event],
    };
    let of_room = edus[index].entry(&said.room).or_default();
    let users = of_room.entry("m.read").or_default();
    users.insert(&said.user, receipt);
    true
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};
    use serde_json::{Value, json};

    use super::*;

    fn receipt(user: i64, thread: ReceiptThread, event: &str) -> Arc<Note> {
        let room = RoomNid(1);
        let said = Said {
            room: room_id!("!r:a.example").to_owned(),
            user: OwnedUserId::try_from(format!("@{user}:a.example")).unwrap(),
            event: event.to_owned(),
            thread: (thread == ReceiptThread::Main).then(|| "main".into()),
            ts: 5,
        };
        Arc::new(Note::Receipt {
            room,
            user: UserNid(user),
            thread,
            said,
        })
    }

    fn taken(edus: &mut Edus) -> Vec<Value> {
        let edus = edus.take();
        for edu in &edus {
            let canonical: ruma::CanonicalJsonValue = serde_json::from_str(edu).unwrap();
            assert_eq!(canonical.to_string(), *edu, "canonical");
        }
        edus.iter()
            .map(|edu| serde_json::from_str(edu).unwrap())
            .collect()
    }

    #[test]
    fn of_what_is_said_anew_the_last_counts() {
        let mut edus = Edus::default();
        let (room, user) = (room_id!("!r:a.example"), user_id!("@u:a.example"));
        for is_typing in [true, false] {
            let json = typing(&room.to_owned(), &user.to_owned(), is_typing).unwrap();
            let (room, user) = (RoomNid(1), UserNid(1));
            edus.add(&Arc::new(Note::Typing { room, user, json }));
        }
        let (user, json) = (UserNid(1), "{\"user_id\":\"@u:a.example\"}".to_owned());
        edus.add(&Arc::new(Note::Presence { user, json }));
        for (user, event) in [(1, "$1"), (2, "$1"), (1, "$2")] {
            edus.add(&receipt(user, ReceiptThread::Unthreaded, event));
        }
        edus.add(&receipt(1, ReceiptThread::Main, "$3"));
        let said = |event: &str| json!({ "data": { "ts": 5 }, "event_ids": [event] });
        let main = json!({ "data": { "ts": 5, "thread_id": "main" }, "event_ids": ["$3"] });
        let content = json!({ "room_id": room, "user_id": "@u:a.example", "typing": false });
        let expected = [
            json!({ "edu_type": "m.typing", "content": content }),
            json!({ "edu_type": "m.receipt", "content": { room.as_str(): { "m.read": {
                "@1:a.example": main, "@2:a.example": said("$1"),
            } } } }),
            json!({ "edu_type": "m.receipt", "content": { room.as_str(): { "m.read": {
                "@1:a.example": said("$2"),
            } } } }),
            json!({ "edu_type": "m.presence", "content": { "push": [{ "user_id": "@u:a.example" }] } }),
        ];
        assert_eq!(taken(&mut edus), expected);
        assert!(edus.is_empty());
    }

    #[test]
    fn a_transaction_has_a_hundred_at_most_and_the_rest_waits() {
        let mut edus = Edus::default();
        for user in 0..2000 {
            let (room, user) = (RoomNid(1), UserNid(user));
            let json = "{}".to_owned();
            edus.add(&Arc::new(Note::Typing { room, user, json }));
        }
        assert_eq!(edus.0.len(), MOST);
        let mut count = 0;
        while !edus.is_empty() {
            let taken = edus.take().len();
            assert!(0 < taken && taken <= 100);
            count += taken;
        }
        assert_eq!(count, MOST);
    }
}
