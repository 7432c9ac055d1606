//! `event_search`: the words of messages, room names and topics.

use homing_federation::Pdu;
use ruma::room_version_rules::RoomVersionRules;
use serde::Deserialize;

use super::{Db, Event, EventNid, Insert, Result, RoomNid, UserNid, Write, events::readable};
use crate::{args, sql};

/// How much of a text can be found, in bytes.
const MAX_TEXT: usize = 16 * 1024;
/// The most rooms that are named to the index; more are told apart afterwards.
const MAX_ROOMS: usize = 100;

static SEARCH: Insert = Insert {
    table: "event_search",
    columns: &["rowid", "room", "key", "words"],
    key: 0,
    conflict: "",
};

/// Which part of a content words are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `content.body` of messages.
    Body,
    /// `content.name` of room names.
    Name,
    /// `content.topic` of topics.
    Topic,
}

impl Key {
    fn word(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Name => "name",
            Self::Topic => "topic",
        }
    }
}

fn room_word(room: RoomNid) -> String {
    format!("room{}", room.0)
}

/// Makes an event findable, if it has words.
#[must_use]
pub fn add(event: &Event) -> Option<Write> {
    let (key, text) = text(&event.pdu)?;
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // PostgreSQL takes no NUL.
    let text = text[..end].replace('\0', " ");
    let row = args![event.nid, room_word(event.room), key.word(), text];
    Some(Write::Insert(&SEARCH, row))
}

/// The words of an event and where they are from.
fn text(pdu: &Pdu) -> Option<(Key, String)> {
    #[derive(Deserialize)]
    struct Content {
        body: Option<String>,
        name: Option<String>,
        topic: Option<String>,
    }
    let key = match (&*pdu.event_type, pdu.state_key.as_deref()) {
        ("m.room.message", None) => Key::Body,
        ("m.room.name", Some("")) => Key::Name,
        ("m.room.topic", Some("")) => Key::Topic,
        _ => return None,
    };
    let content: Content = pdu.content_as().ok()?;
    let text = match key {
        Key::Body => content.body,
        Key::Name => content.name,
        Key::Topic => content.topic,
    };
    Some((key, text.filter(|text| !text.is_empty())?))
}

/// Makes a redacted event unfindable.
#[must_use]
pub fn remove(event: EventNid) -> Write {
    Write::Run(
        sql!("DELETE FROM event_search WHERE rowid = $1"),
        args![event],
    )
}

/// What is looked for.
#[derive(Debug)]
pub struct Query<'a> {
    /// All of these words; each has a letter or digit.
    pub words: &'a [String],
    /// In one of these parts.
    pub keys: &'a [Key],
    /// In one of these rooms.
    pub rooms: &'a [RoomNid],
    /// From one of these users; `None`: from anybody.
    pub senders: Option<&'a [UserNid]>,
    /// From none of these users.
    pub not_senders: &'a [UserNid],
    /// Whether the best come first; else the latest do.
    pub by_rank: bool,
}

impl Query<'_> {
    fn named_rooms(&self) -> Vec<String> {
        if self.rooms.len() > MAX_ROOMS {
            return Vec::new();
        }
        self.rooms.iter().map(|room| room_word(*room)).collect()
    }

    /// In the language of FTS5.
    fn match_text(&self) -> String {
        let quoted = |word: &str| format!("\"{}\"", word.replace('"', "\"\""));
        let words: Vec<_> = self.words.iter().map(|word| quoted(word)).collect();
        let keys: Vec<_> = self.keys.iter().map(|key| quoted(key.word())).collect();
        let rooms: Vec<_> = self.named_rooms().iter().map(|room| quoted(room)).collect();
        let text = format!(
            "words : ({}) AND key : ({})",
            words.join(" AND "),
            keys.join(" OR ")
        );
        if rooms.is_empty() {
            return text;
        }
        format!("{text} AND room : ({})", rooms.join(" OR "))
    }

    /// What PostgreSQL's `tsquery` is made of: where to look.
    fn place_text(&self) -> String {
        let one_of = |words: Vec<String>| {
            let quoted: Vec<_> = words.iter().map(|word| format!("'#{word}'")).collect();
            format!("({})", quoted.join("|"))
        };
        let mut text = one_of(self.keys.iter().map(|key| key.word().to_owned()).collect());
        let rooms = self.named_rooms();
        if !rooms.is_empty() {
            text.push('&');
            text.push_str(&one_of(rooms));
        }
        text
    }
}

/// Where a result is among all. Later ones are less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// How well it fits, in thousand millionths; 0 if that does not matter.
    pub fit: i64,
    /// When the event was sent, in milliseconds since 1970.
    pub ts: i64,
    /// The event.
    pub nid: EventNid,
}

impl Place {
    /// Before all results.
    pub const START: Self = Self {
        fit: i64::MAX,
        ts: i64::MAX,
        nid: EventNid(i64::MAX),
    };
}

/// An event that was found.
#[derive(Debug)]
pub struct Hit {
    /// The event.
    pub event: Event,
    /// How well it fits; more is better.
    pub rank: f64,
    /// Where it is among the results.
    pub place: Place,
}

/// Some results.
#[derive(Debug, Default)]
pub struct Page {
    /// The results.
    pub hits: Vec<Hit>,
    /// How many there are in all; 0 if none are here.
    pub total: i64,
}

/// The next `limit` results after a place. `rules` knows the rules of each room.
pub async fn page<'r>(
    db: &Db,
    rules: impl Fn(RoomNid) -> Option<&'r RoomVersionRules>,
    wanted: &Query<'_>,
    after: Place,
    limit: i64,
) -> Result<Page> {
    let query = sql!(
        "WITH found AS MATERIALIZED (SELECT nid, ts, rank, CAST(rank * 1000000000 AS BIGINT) * $8 AS fit FROM (SELECT e.nid, e.ts, ",
        only {
            sqlite: "-bm25(event_search) AS rank FROM event_search s CROSS JOIN event e ON e.nid = s.rowid WHERE event_search MATCH $3 AND $1 = $1 AND $2 = $2 ",
            postgres: "CAST(ts_rank(s.vector, plainto_tsquery('simple', $1)) AS DOUBLE PRECISION) AS rank FROM event_search s JOIN event e ON e.nid = s.rowid WHERE s.vector @@ (plainto_tsquery('simple', $1) && CAST($2 AS tsquery)) AND numnode(plainto_tsquery('simple', $1)) > 0 AND $3 = $3 "
        },
        "AND e.redacted_by IS NULL AND e.flags & 7 = 0 AND e.room_nid ",
        list(4),
        " AND ($5 = 0 OR e.sender_nid ",
        list(6),
        ") AND NOT (e.sender_nid ",
        list(7),
        ")) AS matching) SELECT ",
        (event_columns),
        ", f.rank, f.fit, (SELECT count(*) FROM found) FROM (SELECT nid, ts, rank, fit FROM found ",
        "WHERE (fit, ts, nid) < ($9, $10, $11) ORDER BY fit DESC, ts DESC, nid DESC LIMIT $12) AS f ",
        "JOIN event e ON e.nid = f.nid JOIN event_json j ON j.nid = e.nid ",
        "ORDER BY f.fit DESC, f.ts DESC, f.nid DESC"
    );
    let args = args![
        wanted.words.join(" "),
        wanted.place_text(),
        wanted.match_text(),
        wanted.rooms,
        i64::from(wanted.senders.is_some()),
        wanted.senders.unwrap_or_default(),
        wanted.not_senders,
        i64::from(wanted.by_rank),
        after.fit,
        after.ts,
        after.nid,
        limit
    ];
    let mut page = Page::default();
    for row in db.rows(query, args).await? {
        let Some(rules) = rules(RoomNid(row.get(2)?)) else {
            continue;
        };
        let Some(event) = readable(&row, rules)? else {
            continue;
        };
        let place = Place {
            fit: row.get(19)?,
            ts: i64::from(event.pdu.origin_server_ts.0),
            nid: event.nid,
        };
        page.total = row.get(20)?;
        page.hits.push(Hit {
            event,
            rank: row.get(18)?,
            place,
        });
    }
    Ok(page)
}
