//! Pages of a room's history, as a viewer sees them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{
    OwnedUserId,
    api::client::filter::{LazyLoadOptions, RoomEventFilter, UrlFilter},
};

use super::{head, visibility::Sight};
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    rooms::Room,
    storage::{
        self, Event, EventNid, Pos, TypeNid, UserNid,
        events::flags,
        relations,
        state::StateAt,
        timeline::{Outline, Place, Range},
    },
    token::Token,
};

/// How often a page is filled up with older events because the viewer may not see or does not want those before.
const ROUNDS: usize = 5;
/// How many events are looked at for one page, each time.
const SCAN: i64 = 1000;

/// Which events somebody wants.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// What the specification calls `RoomEventFilter`.
    pub event: RoomEventFilter,
    /// Only events to which others relate in one of these ways.
    pub related_by_rel_types: Option<Vec<String>>,
    /// Only events to which one of these users relates others.
    pub related_by_senders: Option<Vec<OwnedUserId>>,
}

impl EventFilter {
    /// Whether members are sent only as they are needed.
    #[must_use]
    pub fn is_lazy(&self) -> bool {
        matches!(
            self.event.lazy_load_options,
            LazyLoadOptions::Enabled { .. }
        )
    }

    /// Whether events of this room are wanted at all.
    #[must_use]
    pub fn wants_room(&self, room: &Room) -> bool {
        !self.event.not_rooms.contains(&room.id)
            && self
                .event
                .rooms
                .as_ref()
                .is_none_or(|rooms| rooms.contains(&room.id))
    }

    fn is_related(&self) -> bool {
        self.related_by_rel_types.is_some() || self.related_by_senders.is_some()
    }
}

/// Whether an event is one that the filter wants. What it says of rooms and of relations is not asked here.
#[must_use]
pub fn matches(filter: &RoomEventFilter, event: &Event) -> bool {
    let (event_type, sender) = (&*event.pdu.event_type, &event.pdu.sender);
    let is_type =
        |patterns: &[String]| patterns.iter().any(|pattern| wildcard(pattern, event_type));
    let has_url = event.flags & flags::HAS_URL != 0;
    filter.types.as_deref().is_none_or(is_type)
        && !is_type(&filter.not_types)
        && filter
            .senders
            .as_ref()
            .is_none_or(|senders| senders.contains(sender))
        && !filter.not_senders.contains(sender)
        && match filter.url_filter {
            Some(UrlFilter::EventsWithUrl) => has_url,
            Some(UrlFilter::EventsWithoutUrl) => !has_url,
            None => true,
        }
}

/// Whether `text` is what `pattern` says, where each `*` stands for anything.
#[must_use]
pub fn wildcard(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

/// A page of history.
#[derive(Debug)]
pub struct Page {
    /// The events, in the order of the range.
    pub events: Vec<Arc<Event>>,
    /// Where to go on; `None` if there is nothing more.
    pub next: Option<Place>,
}

impl Page {
    /// Lets a page that goes back end with the last event of at least this depth, if there is one.
    pub fn end_at(&mut self, depth: i64) {
        let count = self.events.partition_point(|event| event.depth() >= depth);
        if count > 0 && count < self.events.len() {
            self.events.truncate(count);
            self.next = self.events.last().map(|event| Place::before(event));
        }
    }

    /// Lets a page that goes forward end with the last event of less than this depth, if there is one.
    pub fn end_before(&mut self, depth: i64) {
        let count = self.events.partition_point(|event| event.depth() < depth);
        if count > 0 && count < self.events.len() {
            self.events.truncate(count);
            self.next = self.events.last().map(|event| Place::after(event));
        }
    }
}

/// Where a token stands in a room's history.
///
/// # Errors
/// `M_INVALID_PARAM` if it is not a token, or of a position that this server has not reached.
pub async fn place(app: &App, room: &Room, token: &str) -> Result<Place> {
    match token.parse()? {
        Token::History { depth, ord, .. } | Token::Timeline { depth, ord, .. } => {
            Ok(Place { depth, ord })
        }
        Token::Sync { pos, .. } if pos > app.head() => Err(Error::invalid_param(
            "the token is from a time that has not come",
        )),
        Token::Sync { pos, .. } => Ok(storage::timeline::place_at(&app.db, room.nid, pos).await?),
    }
}

/// Where somebody who walks back from a token begins, so that they pass all that had come then, and up to which position
/// that is. What came just before the token need not be the end of the history: a branch may have come late.
///
/// # Errors
/// Those of [`place`].
pub async fn place_backward(app: &App, room: &Room, token: &str) -> Result<(Place, Pos)> {
    let place = place(app, room, token).await?;
    match token.parse()? {
        Token::History { upto, .. } => Ok((place, upto.unwrap_or(Pos::MAX))),
        Token::Sync { pos, .. } | Token::Timeline { pos, .. } => {
            let end = storage::timeline::end_at(&app.db, room.nid, pos).await?;
            Ok((place.max(end), pos))
        }
    }
}

/// The token of a place.
#[must_use]
pub fn token(place: Place) -> Token {
    token_upto(place, Pos::MAX)
}

/// The token of a place that somebody has reached who is not told what came after a position.
#[must_use]
pub fn token_upto(place: Place, upto: Pos) -> Token {
    Token::History {
        depth: place.depth,
        ord: place.ord,
        upto: (upto != Pos::MAX).then_some(upto),
    }
}

/// The next events of a range, at most `limit`, that the viewer may see and wants to. A page may be empty although there
/// is more; then `next` is set.
///
/// # Errors
/// If the database fails.
pub async fn page(
    app: &App,
    room: &Room,
    sight: &Sight<'_>,
    mut range: Range,
    filter: &EventFilter,
    limit: usize,
) -> Result<Page> {
    let mut events = Vec::new();
    if !filter.wants_room(room) {
        return Ok(Page { events, next: None });
    }
    let exact = Exact::of(app, &filter.event).await?;
    for _ in 0..ROUNDS {
        let wanted = limit.saturating_sub(events.len());
        if wanted == 0 {
            break;
        }
        let (mut found, next) = exact.read(app, room, &range, wanted).await?;
        found.retain(|event| sight.sees(event) && matches(&filter.event, event));
        if filter.is_related() {
            let related = related(app, filter, &found).await?;
            found.retain(|event| related.contains(&event.nid));
        }
        events.extend(found.into_iter().map(Arc::new));
        match next {
            Some(next) => range.from = next,
            None => return Ok(Page { events, next: None }),
        }
    }
    Ok(Page {
        events,
        next: Some(range.from),
    })
}

/// Whether others relate to an event as the filter says.
///
/// # Errors
/// If the database fails.
pub async fn is_related(app: &App, filter: &EventFilter, event: &Event) -> Result<bool> {
    if !filter.is_related() {
        return Ok(true);
    }
    let found = related(app, filter, std::slice::from_ref(event)).await?;
    Ok(!found.is_empty())
}

/// Those of `events` to which others relate as the filter says.
async fn related(app: &App, filter: &EventFilter, events: &[Event]) -> Result<HashSet<EventNid>> {
    let senders = match &filter.related_by_senders {
        Some(senders) => {
            let ids = senders.iter().map(|id| &**id);
            let known = app.names.find_users(&app.db, ids).await?;
            Some(known.into_values().collect::<Vec<UserNid>>())
        }
        None => None,
    };
    let nids: Vec<EventNid> = events.iter().map(|event| event.nid).collect();
    let rel_types = filter.related_by_rel_types.clone();
    Ok(relations::related(&app.db, &nids, rel_types, senders.as_deref()).await?)
}

/// The parts of a filter that can be asked without an event's JSON.
struct Exact {
    /// `None`: all types, or some that only a pattern tells.
    types: Option<HashSet<TypeNid>>,
    senders: Option<HashSet<UserNid>>,
    url: Option<UrlFilter>,
}

impl Exact {
    async fn of(app: &App, filter: &RoomEventFilter) -> Result<Self> {
        let types = match &filter.types {
            Some(types) if types.iter().all(|pattern| !pattern.contains('*')) => {
                let mut nids = HashSet::new();
                for event_type in types.iter().filter(|event_type| !event_type.contains('\0')) {
                    nids.extend(app.names.find_type(&app.db, event_type).await?);
                }
                Some(nids)
            }
            _ => None,
        };
        let senders = match &filter.senders {
            Some(senders) => {
                let ids = senders.iter().map(|id| &**id);
                let known = app.names.find_users(&app.db, ids).await?;
                Some(known.into_values().collect())
            }
            None => None,
        };
        Ok(Self {
            types,
            senders,
            url: filter.url_filter,
        })
    }

    fn is_empty(&self) -> bool {
        self.types.is_none() && self.senders.is_none() && self.url.is_none()
    }

    fn matches(&self, outline: &Outline) -> bool {
        let has_url = outline.flags & flags::HAS_URL != 0;
        self.types
            .as_ref()
            .is_none_or(|types| types.contains(&outline.type_nid))
            && self
                .senders
                .as_ref()
                .is_none_or(|senders| senders.contains(&outline.sender))
            && match self.url {
                Some(UrlFilter::EventsWithUrl) => has_url,
                Some(UrlFilter::EventsWithoutUrl) => !has_url,
                None => true,
            }
    }

    /// The next events of a range, at most `wanted`, and where to go on.
    async fn read(
        &self,
        app: &App,
        room: &Room,
        range: &Range,
        wanted: usize,
    ) -> Result<(Vec<Event>, Option<Place>)> {
        let limit = i64::try_from(wanted).unwrap_or(SCAN).min(SCAN);
        if self.is_empty() {
            let page = storage::timeline::page(&app.db, room.rules, range, limit);
            let (events, last) = page.await?;
            return Ok((events, last.map(|last| range.beyond(last))));
        }
        let outlines = storage::timeline::outlines(&app.db, range, SCAN).await?;
        let mut next = outlines
            .last()
            .filter(|_| i64::try_from(outlines.len()).is_ok_and(|read| read >= SCAN))
            .map(|last| range.beyond(last.place));
        let mut nids = Vec::new();
        for (index, outline) in outlines.iter().enumerate() {
            if !self.matches(outline) {
                continue;
            }
            nids.push(outline.nid);
            if nids.len() == wanted {
                if index + 1 < outlines.len() {
                    next = Some(range.beyond(outline.place));
                }
                break;
            }
        }
        let mut events = storage::events::some(&app.db, room.rules, &nids).await?;
        storage::timeline::sort(&mut events, range.direction);
        Ok((events, next))
    }
}

/// The state just after an event: the whole, or what some keys have.
///
/// # Errors
/// If the database fails.
pub async fn state_after(
    app: &App,
    room: &Room,
    event: &Arc<Event>,
    keys: Option<&[Key]>,
) -> Result<Vec<Arc<Event>>> {
    let before = StateAt {
        line: event.state_line,
        sv: event.state_sv,
    };
    let mut state = state_at(app, room, before, keys).await?;
    let wanted = |event: &Event| {
        keys.is_none_or(|keys| {
            keys.iter().any(|(event_type, state_key)| {
                **event_type == *event.pdu.event_type
                    && Some(&**state_key) == event.pdu.state_key.as_deref()
            })
        })
    };
    if event.key.is_some() && wanted(event) {
        state.retain(|other| other.key != event.key);
        state.push(Arc::clone(event));
    }
    Ok(state)
}

/// The state at a version of a line: the whole, or what some keys have.
///
/// # Errors
/// If the database fails.
pub async fn state_at(
    app: &App,
    room: &Room,
    at: StateAt,
    keys: Option<&[Key]>,
) -> Result<Vec<Arc<Event>>> {
    let events = if let Some(keys) = keys {
        let nids = app.names.find_keys(&app.db, keys).await?;
        let nids: Vec<_> = nids.into_values().collect();
        storage::state::at(&app.db, room.rules, at, &nids).await?
    } else {
        let nids = storage::state::all_at(&app.db, at).await?;
        let nids: Vec<_> = nids.into_iter().map(|(_, event)| event).collect();
        storage::events::some(&app.db, room.rules, &nids).await?
    };
    Ok(events.into_iter().map(Arc::new).collect())
}

/// The member events of those who sent `events`, as they were at the newest of these.
///
/// # Errors
/// If the database fails.
pub async fn members_of_senders(
    app: &App,
    room: &Room,
    events: &[Arc<Event>],
) -> Result<Vec<Arc<Event>>> {
    let Some(newest) = events.iter().max_by_key(|event| Place::after(event)) else {
        return Ok(Vec::new());
    };
    let keys = sender_keys(events);
    state_after(app, room, newest, Some(&keys)).await
}

/// The keys of the member events of those who sent `events`.
#[must_use]
pub fn sender_keys(events: &[Arc<Event>]) -> Vec<Key> {
    let mut keys: Vec<Key> = events
        .iter()
        .map(|event| ("m.room.member".into(), event.pdu.sender.as_str().into()))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The event with this id, if the viewer may see it.
///
/// # Errors
/// `M_NOT_FOUND` if there is none or the viewer may not see it.
pub async fn visible_event(
    app: &App,
    room: &Room,
    sight: &Sight<'_>,
    event_id: &ruma::EventId,
) -> Result<Arc<Event>> {
    let recent = {
        let seen = room.seen();
        let mut events = seen.events.iter();
        events
            .find(|event| event.pdu.event_id == *event_id)
            .cloned()
    };
    let event = match recent {
        Some(event) => Some(event),
        None => storage::events::readable_by_id(&app.db, room.rules, room.nid, event_id.as_str())
            .await?
            .map(Arc::new),
    };
    event
        .filter(|event| sight.sees(event))
        .ok_or_else(|| Error::not_found("there is no such event that you may see"))
}

/// The event of the current state with this key.
///
/// # Errors
/// If the database fails.
pub async fn current(app: &App, room: &Room, key: &Key) -> Result<Option<Arc<Event>>> {
    let mut state: HashMap<_, _> =
        head::current_state(app, room, std::slice::from_ref(key)).await?;
    Ok(state.remove(key).flatten())
}

/// The last event at or before a place, whoever may see it.
///
/// # Errors
/// If the database fails.
pub async fn last_before(app: &App, room: &Room, place: Place) -> Result<Option<Arc<Event>>> {
    let range = Range::before(room.nid, place);
    let (mut page, _) = storage::timeline::page(&app.db, room.rules, &range, 1).await?;
    Ok(page.pop().map(Arc::new))
}

/// The event with which a room begins to have members: the join of its creator, or the first event that is known here.
///
/// # Errors
/// If the database fails.
pub async fn beginning(app: &App, room: &Room) -> Result<Option<Arc<Event>>> {
    let all = Range::after(room.nid, Place::START);
    let (first, _) = storage::timeline::page(&app.db, room.rules, &all, 2).await?;
    let mut first = first.into_iter();
    let event = match first.next() {
        Some(create) if is_create(&create) => first.next().or(Some(create)),
        event => event,
    };
    Ok(event.map(Arc::new))
}

/// Whether an event is the one that made its room.
#[must_use]
pub fn is_create(event: &Event) -> bool {
    &*event.pdu.event_type == "m.room.create" && event.pdu.state_key.as_deref() == Some("")
}

#[cfg(test)]
mod tests {
    use super::wildcard;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("*", "", true),
            ("m.*", "m.room.name", true),
            ("m.*", "x.m.", false),
            ("*.name", "m.room.name", true),
            ("m.*.*e", "m.room.name", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a**b", "ab", true),
            ("", "a", false),
        ] {
            assert_eq!(wildcard(pattern, text), expected, "{pattern} {text}");
        }
    }
}
