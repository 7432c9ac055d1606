//! "Server-side search".

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use ruma::{
    OwnedMxcUri, OwnedUserId, UInt,
    api::client::search::search_events::{
        self,
        v3::{
            Criteria, EventContextResult, GroupingKey, OrderBy, ResultGroup, ResultGroupMap,
            ResultRoomEvents, SearchKeys, SearchResult, UserProfile,
        },
    },
    serde::Raw,
};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::messages::{self, RelatedBy};
use crate::{
    app::App,
    error::{Error, Result},
    filter,
    http::{Call, Routes},
    room::{
        client_event::{Form, client_event, client_events, raw},
        erasure,
        timeline::{self, EventFilter},
        visibility::{Sight, Viewer},
    },
    rooms::Room,
    storage::{
        self, Event, EventNid, Membership, RoomNid, UserNid, members,
        search::{self, Hit, Key, Place},
        timeline::{self as history, Range},
    },
};

/// How many results an answer has where the client does not say, and at most.
const DEFAULT_RESULTS: usize = 10;
const MAX_RESULTS: usize = 50;
/// How many events before and after a result a client may ask for.
const MAX_CONTEXT: usize = 20;
/// The most words that are looked for.
const MAX_WORDS: usize = 32;
/// How often results are looked for again because the requester may not see what was found.
const ROUNDS: usize = 6;
/// The most results that are looked at in one round.
const MAX_ROUND: usize = 1_000;

pub(super) fn routes() -> Routes {
    Routes::new().json::<search_events::v3::Request, _, _, _>(search_events)
}

/// What ruma does not tell: whether context is wanted at all, and the rest of the filter.
#[derive(Deserialize)]
struct Body {
    search_categories: BodyCategories,
}

#[derive(Deserialize)]
struct BodyCategories {
    room_events: Option<BodyCriteria>,
}

#[derive(Deserialize)]
struct BodyCriteria {
    event_context: Option<IgnoredAny>,
    #[serde(default)]
    filter: RelatedBy,
}

/// `POST /_matrix/client/v3/search`
///
/// `count` is exact where one answer has all results. Otherwise it is what the index knows: with results that the
/// requester may not see, but without those from rooms and senders that are not wanted.
async fn search_events(app: Arc<App>, call: Call<search_events::v3::Request>) -> Result<Answer> {
    let body: Body =
        serde_json::from_slice(&call.raw).map_err(|error| Error::bad_json(error.to_string()))?;
    let mut found = Categories::default();
    if let Some((criteria, body)) = call
        .body
        .search_categories
        .room_events
        .zip(body.search_categories.room_events)
    {
        let viewer = Viewer::of(&app, &call.requester).await?;
        let search = Search::new(&app, viewer, criteria, body).await?;
        found.room_events.rest = search.run(call.body.next_batch.as_deref()).await?;
        found.room_events.results = found.room_events.rest.results.is_empty().then_some([]);
    }
    Ok(Answer {
        search_categories: found,
    })
}

/// What was found. Ruma's type leaves out an empty list of results, which clients expect.
#[derive(Serialize)]
struct Answer {
    search_categories: Categories,
}

#[derive(Default, Serialize)]
struct Categories {
    room_events: RoomEvents,
}

#[derive(Default, Serialize)]
struct RoomEvents {
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<[(); 0]>,
    #[serde(flatten)]
    rest: ResultRoomEvents,
}

/// Where the next page begins: `k` for results by rank or `r` for recent ones, the place of the last result, and the
/// group (`~r`: a room, `~u`: a sender) if there are to be no others.
#[derive(Clone, Copy)]
struct Start {
    by_rank: bool,
    after: Place,
    group: Option<Group>,
}

#[derive(Clone, Copy)]
enum Group {
    Room(RoomNid),
    Sender(UserNid),
}

impl Start {
    fn parse(token: Option<&str>, by_rank: bool) -> Result<Self> {
        let Some(token) = token else {
            return Ok(Self {
                by_rank,
                after: Place::START,
                group: None,
            });
        };
        Self::read(token)
            .filter(|start| start.by_rank == by_rank)
            .ok_or_else(|| Error::invalid_param("the token is not one of this search"))
    }

    fn read(token: &str) -> Option<Self> {
        let (place, group) = match token.split_once('~') {
            Some((place, group)) => (place, Some(group)),
            None => (token, None),
        };
        let (order, place) = place.split_at_checked(1)?;
        let mut numbers = place.split('_').map(|number| number.parse::<i64>().ok());
        let after = Place {
            fit: numbers.next()??,
            ts: numbers.next()??,
            nid: EventNid(numbers.next()??),
        };
        let group = match group.map(|group| group.split_at_checked(1)) {
            None => None,
            Some(Some(("r", room))) => Some(Group::Room(RoomNid(room.parse().ok()?))),
            Some(Some(("u", user))) => Some(Group::Sender(UserNid(user.parse().ok()?))),
            Some(_) => return None,
        };
        (matches!(order, "k" | "r") && numbers.next().is_none()).then_some(Self {
            by_rank: order == "k",
            after,
            group,
        })
    }

    fn token(self) -> String {
        let Place { fit, ts, nid } = self.after;
        let order = if self.by_rank { 'k' } else { 'r' };
        let group = match self.group {
            None => String::new(),
            Some(Group::Room(room)) => format!("~r{}", room.0),
            Some(Group::Sender(user)) => format!("~u{}", user.0),
        };
        format!("{order}{fit}_{ts}_{}{group}", nid.0)
    }
}

/// What is known of all results.
struct Found {
    more: bool,
    /// Whether there are as many results as one answer has.
    is_full: bool,
    total: usize,
}

struct Search<'a> {
    app: &'a App,
    viewer: Viewer,
    criteria: Criteria,
    filter: EventFilter,
    with_context: bool,
    words: Vec<String>,
    keys: Vec<Key>,
    rooms: HashMap<RoomNid, Arc<Room>>,
    senders: Option<Vec<UserNid>>,
    not_senders: Vec<UserNid>,
}

impl<'a> Search<'a> {
    async fn new(
        app: &'a App,
        viewer: Viewer,
        criteria: Criteria,
        body: BodyCriteria,
    ) -> Result<Self> {
        filter::check_events(&criteria.filter)?;
        if matches!(criteria.order_by, Some(OrderBy::_Custom(_))) {
            return Err(Error::invalid_param("`order_by` is `recent` or `rank`"));
        }
        let filter = EventFilter {
            event: criteria.filter.clone(),
            related_by_rel_types: body.filter.related_by_rel_types,
            related_by_senders: body.filter.related_by_senders,
        };
        let members = members::of_user(&app.db, viewer.user).await?;
        let nids: Vec<_> = members
            .iter()
            .filter(|member| !matches!(member.membership, Membership::Invite | Membership::Knock))
            .map(|member| member.room)
            .collect();
        let mut rooms = app.rooms.many(&app.db, &app.log, &nids).await?;
        rooms.retain(|_, room| filter.wants_room(room));
        let keys = match &criteria.keys {
            None => vec![Key::Body, Key::Name, Key::Topic],
            Some(keys) => keys.iter().filter_map(key).collect(),
        };
        let senders = match &filter.event.senders {
            None => None,
            Some(senders) => Some(users(app, senders).await?),
        };
        let not_senders = users(app, &filter.event.not_senders).await?;
        Ok(Self {
            app,
            viewer,
            senders,
            not_senders,
            words: words(&criteria.search_term),
            with_context: body.event_context.is_some(),
            criteria,
            filter,
            keys,
            rooms,
        })
    }

    async fn run(mut self, next_batch: Option<&str>) -> Result<ResultRoomEvents> {
        let by_rank = !matches!(self.criteria.order_by, Some(OrderBy::Recent));
        let mut start = Start::parse(next_batch, by_rank)?;
        match start.group {
            Some(Group::Room(room)) => self.rooms.retain(|nid, _| *nid == room),
            Some(Group::Sender(user)) => {
                let is_wanted = self.senders.as_ref().is_none_or(|all| all.contains(&user));
                self.senders = Some(if is_wanted { vec![user] } else { Vec::new() });
            }
            None => {}
        }
        let (hits, found) = self.find(&mut start).await?;
        let is_all = next_batch.is_none() && !found.more;
        let count = if is_all {
            hits.len()
        } else {
            found.total.max(hits.len())
        };
        let mut answer = ResultRoomEvents::new();
        answer.count = Some(UInt::try_from(count).unwrap_or_default());
        // After a full page clients may always ask for the next one, though it be empty.
        let start = (found.more || found.is_full).then_some(start);
        answer.next_batch = start.map(Start::token);
        answer.highlights = self.words.clone();
        self.group(&hits, start, &mut answer);
        if self.criteria.include_state == Some(true) {
            self.add_state(&hits, &mut answer).await?;
        }
        for hit in hits {
            answer.results.push(self.result(hit).await?);
        }
        Ok(answer)
    }

    /// Finds a page of what the requester may see, and moves `start` to where the next one begins.
    async fn find(&self, start: &mut Start) -> Result<(Vec<Hit>, Found)> {
        let limit = self
            .filter
            .event
            .limit
            .map_or(DEFAULT_RESULTS, messages::limit)
            .min(MAX_RESULTS);
        let mut hits: Vec<Hit> = Vec::new();
        let mut found = Found {
            more: !(self.words.is_empty() || self.keys.is_empty() || self.rooms.is_empty()),
            is_full: false,
            total: 0,
        };
        let mut sights = HashMap::new();
        // One more tells whether there are more.
        let mut size = limit + 1;
        for _ in 0..ROUNDS {
            if hits.len() == limit || !found.more {
                break;
            }
            let page = self.page(*start, size).await?;
            found.more = page.hits.len() == size;
            found.total = found.total.max(usize::try_from(page.total).unwrap_or(0));
            for hit in page.hits {
                if hits.len() == limit {
                    found.more = true;
                    break;
                }
                start.after = hit.place;
                if self.wants(&hit.event, &mut sights).await? {
                    hits.push(hit);
                }
            }
            size = (4 * size).min(MAX_ROUND);
        }
        found.is_full = hits.len() == limit;
        if found.total == 0 && start.after != Place::START {
            // The page after the last one tells the same count as those before it.
            let first = Start {
                after: Place::START,
                ..*start
            };
            found.total = usize::try_from(self.page(first, 1).await?.total).unwrap_or(0);
        }
        Ok((hits, found))
    }

    async fn page(&self, start: Start, size: usize) -> Result<search::Page> {
        let nids: Vec<_> = self.rooms.keys().copied().collect();
        let query = search::Query {
            words: &self.words,
            keys: &self.keys,
            rooms: &nids,
            senders: self.senders.as_deref(),
            not_senders: &self.not_senders,
            by_rank: start.by_rank,
        };
        let rules = |room| self.rooms.get(&room).map(|room| room.rules);
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        Ok(search::page(&self.app.db, rules, &query, start.after, size).await?)
    }

    async fn wants<'s>(
        &'s self,
        event: &Event,
        sights: &mut HashMap<RoomNid, Sight<'s>>,
    ) -> Result<bool> {
        let Some(room) = self.rooms.get(&event.room) else {
            return Ok(false);
        };
        let sight = match sights.entry(event.room) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(Sight::quick(self.app, room, &self.viewer).await?),
        };
        let pruned = erasure::prune(self.app, room, sight, [event].into_iter()).await?;
        Ok(sight.sees(event)
            && !pruned.has(event)
            && timeline::matches(&self.filter.event, event)
            && timeline::is_related(self.app, &self.filter, event).await?)
    }

    /// Groups the results. A group has more if there may be more at all.
    fn group(&self, hits: &[Hit], start: Option<Start>, answer: &mut ResultRoomEvents) {
        let next = |group: Group| {
            let start = start.filter(|start| match (start.group, group) {
                (None, _) => true,
                (Some(Group::Room(all)), Group::Room(one)) => all == one,
                (Some(Group::Sender(all)), Group::Sender(one)) => all == one,
                _ => false,
            })?;
            Some(Start {
                group: Some(group),
                ..start
            })
        };
        for grouping in &self.criteria.groupings.group_by {
            match &grouping.key {
                Some(GroupingKey::RoomId) => {
                    let groups = groups(hits, |event| {
                        let room = self.rooms.get(&event.room)?;
                        Some((room.id.clone(), next(Group::Room(event.room))))
                    });
                    answer.groups.insert(ResultGroupMap::RoomId(groups));
                }
                Some(GroupingKey::Sender) => {
                    let groups = groups(hits, |event| {
                        let sender = event.pdu.sender.clone();
                        Some((sender, next(Group::Sender(event.sender))))
                    });
                    answer.groups.insert(ResultGroupMap::Sender(groups));
                }
                _ => {}
            }
        }
    }

    async fn add_state(&self, hits: &[Hit], answer: &mut ResultRoomEvents) -> Result<()> {
        for hit in hits {
            let Some(room) = self.rooms.get(&hit.event.room) else {
                continue;
            };
            if answer.state.contains_key(&room.id) {
                continue;
            }
            let sight = Sight::quick(self.app, room, &self.viewer).await?;
            let state = if sight.joined {
                let events = storage::state::whole(&self.app.db, room.rules, room.nid).await?;
                events.into_iter().map(Arc::new).collect()
            } else {
                let event = Arc::new(hit.event.clone());
                timeline::state_after(self.app, room, &event, None).await?
            };
            let state = client_events(self.app, room, &state, &sight, Form::WithRoomId).await?;
            answer.state.insert(room.id.clone(), raw(state));
        }
        Ok(())
    }

    async fn result(&self, hit: Hit) -> Result<SearchResult> {
        let mut result = SearchResult::new();
        let Some(room) = self.rooms.get(&hit.event.room) else {
            return Ok(result);
        };
        let event = Arc::new(hit.event);
        let events = std::slice::from_ref(&event);
        let sight = Sight::load(self.app, room, &self.viewer, events).await?;
        let json = client_event(self.app, room, &event, &sight, Form::WithRoomId).await?;
        result.rank = Some(hit.rank);
        result.result = Some(Raw::from_json(json));
        if self.with_context {
            result.context = self.context(room, &event, &sight).await?;
        }
        Ok(result)
    }

    async fn context(
        &self,
        room: &Room,
        event: &Arc<Event>,
        sight: &Sight<'_>,
    ) -> Result<EventContextResult> {
        let (app, wanted) = (self.app, &self.criteria.event_context);
        let limit = |limit| messages::limit(limit).min(MAX_CONTEXT);
        let everything = EventFilter::default();
        let older = Range::before(room.nid, history::Place::before(event));
        let newer = Range::after(room.nid, history::Place::after(event));
        let (before, after) = (limit(wanted.before_limit), limit(wanted.after_limit));
        let before = timeline::page(app, room, sight, older, &everything, before).await?;
        let after = timeline::page(app, room, sight, newer, &everything, after).await?;
        let mut context = EventContextResult::new();
        let oldest = before.events.last().unwrap_or(event);
        let newest = after.events.last().unwrap_or(event);
        context.start = Some(timeline::token(history::Place::before(oldest)).to_string());
        context.end = Some(timeline::token(history::Place::after(newest)).to_string());
        let form = Form::WithRoomId;
        context.events_before = raw(client_events(app, room, &before.events, sight, form).await?);
        context.events_after = raw(client_events(app, room, &after.events, sight, form).await?);
        if wanted.include_profile {
            let mut all = before.events;
            all.push(Arc::clone(event));
            all.extend(after.events);
            let members = timeline::members_of_senders(app, room, &all).await?;
            context.profile_info = members
                .iter()
                .filter_map(|member| profile(member))
                .collect();
        }
        Ok(context)
    }
}

fn profile(member: &Event) -> Option<(OwnedUserId, UserProfile)> {
    #[derive(Deserialize)]
    struct Content {
        displayname: Option<String>,
        avatar_url: Option<OwnedMxcUri>,
    }
    let user = OwnedUserId::try_from(member.pdu.state_key.as_deref()?).ok()?;
    let content: Content = member.pdu.content_as().ok()?;
    let mut profile = UserProfile::new();
    profile.displayname = content.displayname;
    profile.avatar_url = content.avatar_url;
    Some((user, profile))
}

fn groups<K: Ord>(
    hits: &[Hit],
    group: impl Fn(&Event) -> Option<(K, Option<Start>)>,
) -> BTreeMap<K, ResultGroup> {
    let mut groups = BTreeMap::new();
    for hit in hits {
        let order = UInt::try_from(groups.len()).unwrap_or_default();
        let Some((key, next)) = group(&hit.event) else {
            continue;
        };
        let group = groups.entry(key).or_insert_with(|| {
            let mut group = ResultGroup::new();
            group.order = Some(order);
            group.next_batch = next.map(Start::token);
            group
        });
        group.results.push(hit.event.pdu.event_id.clone());
    }
    groups
}

async fn users(app: &App, ids: &[OwnedUserId]) -> Result<Vec<UserNid>> {
    let ids = ids.iter().map(AsRef::as_ref);
    let found = app.names.find_users(&app.db, ids).await?;
    Ok(found.into_values().collect())
}

fn key(key: &SearchKeys) -> Option<Key> {
    match key {
        SearchKeys::ContentBody => Some(Key::Body),
        SearchKeys::ContentName => Some(Key::Name),
        SearchKeys::ContentTopic => Some(Key::Topic),
        _ => None,
    }
}

/// The words of a search term, without what is only punctuation.
fn words(term: &str) -> Vec<String> {
    term.split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(MAX_WORDS)
        .map(str::to_lowercase)
        .collect()
}
