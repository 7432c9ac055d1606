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
            Criteria, EventContextResult, GroupingKey, OrderBy, ResultCategories, ResultGroup,
            ResultGroupMap, ResultRoomEvents, SearchKeys, SearchResult, UserProfile,
        },
    },
    serde::Raw,
};
use serde::{Deserialize, de::IgnoredAny};

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
        self, Event, EventNid, Membership, RoomNid, members,
        search::{self, Hit, Key},
        timeline::{Place, Range},
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
const ROUNDS: usize = 5;

pub(super) fn routes() -> Routes {
    Routes::new().add::<search_events::v3::Request, _, _>(search_events)
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
/// The tokens are `n<number of results so far>` when ordered by rank, and `r<time>_<number>` of the last result
/// otherwise.
async fn search_events(
    app: Arc<App>,
    call: Call<search_events::v3::Request>,
) -> Result<search_events::v3::Response> {
    let body: Body =
        serde_json::from_slice(&call.raw).map_err(|error| Error::bad_json(error.to_string()))?;
    let mut found = ResultCategories::new();
    if let Some((criteria, body)) = call
        .body
        .search_categories
        .room_events
        .zip(body.search_categories.room_events)
    {
        let viewer = Viewer::of(&app, &call.requester).await?;
        let search = Search::new(&app, viewer, criteria, body).await?;
        found.room_events = search.run(call.body.next_batch.as_deref()).await?;
    }
    Ok(search_events::v3::Response::new(found))
}

/// Where the next page begins.
#[derive(Clone, Copy)]
enum Start {
    After(i64),
    Before(i64, EventNid),
}

impl Start {
    fn parse(token: Option<&str>, by_rank: bool) -> Result<Self> {
        let start = match token {
            None if by_rank => Some(Self::After(0)),
            None => Some(Self::Before(i64::MAX, EventNid(i64::MAX))),
            Some(token) if by_rank => token
                .strip_prefix('n')
                .and_then(|count| count.parse().ok())
                .filter(|count| *count >= 0)
                .map(Self::After),
            Some(token) => token
                .strip_prefix('r')
                .and_then(|rest| rest.split_once('_'))
                .and_then(|(ts, nid)| {
                    Some(Self::Before(ts.parse().ok()?, EventNid(nid.parse().ok()?)))
                }),
        };
        start.ok_or_else(|| Error::invalid_param("the token is not one of this server"))
    }

    fn beyond(self, hit: &Hit) -> Self {
        match self {
            Self::After(count) => Self::After(count + 1),
            Self::Before(..) => {
                let ts = i64::from(hit.event.pdu.origin_server_ts.0);
                Self::Before(ts, hit.event.nid)
            }
        }
    }

    fn token(self) -> String {
        match self {
            Self::After(count) => format!("n{count}"),
            Self::Before(ts, nid) => format!("r{ts}_{}", nid.0),
        }
    }
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
        let mut rooms = app.rooms.many(&app.db, || app.head(), &nids).await?;
        rooms.retain(|_, room| filter.wants_room(room));
        let keys = match &criteria.keys {
            None => vec![Key::Body, Key::Name, Key::Topic],
            Some(keys) => keys.iter().filter_map(key).collect(),
        };
        Ok(Self {
            app,
            viewer,
            words: words(&criteria.search_term),
            with_context: body.event_context.is_some(),
            criteria,
            filter,
            keys,
            rooms,
        })
    }

    async fn run(&self, next_batch: Option<&str>) -> Result<ResultRoomEvents> {
        let by_rank = !matches!(self.criteria.order_by, Some(OrderBy::Recent));
        let mut start = Start::parse(next_batch, by_rank)?;
        let mut answer = ResultRoomEvents::new();
        let mut hits: Vec<Hit> = Vec::new();
        let limit = self
            .filter
            .event
            .limit
            .map_or(DEFAULT_RESULTS, messages::limit)
            .min(MAX_RESULTS);
        let mut more = !(self.words.is_empty() || self.keys.is_empty() || self.rooms.is_empty());
        let mut sights = HashMap::new();
        for _ in 0..ROUNDS {
            let missing = limit - hits.len();
            if missing == 0 || !more {
                break;
            }
            let page = self.page(start, missing).await?;
            more = page.len() == missing;
            for hit in page {
                start = start.beyond(&hit);
                if self.wants(&hit.event, &mut sights).await? {
                    hits.push(hit);
                }
            }
        }
        answer.count = Some(UInt::try_from(hits.len()).unwrap_or_default());
        answer.next_batch = more.then(|| start.token());
        answer.highlights = self.words.clone();
        self.group(&hits, &mut answer);
        if self.criteria.include_state == Some(true) {
            self.add_state(&hits, &mut answer).await?;
        }
        for hit in hits {
            answer.results.push(self.result(hit).await?);
        }
        Ok(answer)
    }

    async fn page(&self, start: Start, limit: usize) -> Result<Vec<Hit>> {
        let nids: Vec<_> = self.rooms.keys().copied().collect();
        let query = search::Query {
            words: &self.words,
            keys: &self.keys,
            rooms: &nids,
        };
        let rules = |room| self.rooms.get(&room).map(|room| room.rules);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (db, query) = (&self.app.db, &query);
        Ok(match start {
            Start::After(count) => search::best(db, rules, query, count, limit).await?,
            Start::Before(ts, nid) => search::recent(db, rules, query, (ts, nid), limit).await?,
        })
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

    fn group(&self, hits: &[Hit], answer: &mut ResultRoomEvents) {
        for grouping in &self.criteria.groupings.group_by {
            match &grouping.key {
                Some(GroupingKey::RoomId) => {
                    let groups = groups(hits, |event| event.pdu.room_id.clone());
                    answer.groups.insert(ResultGroupMap::RoomId(groups));
                }
                Some(GroupingKey::Sender) => {
                    let groups = groups(hits, |event| event.pdu.sender.clone());
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
                let events =
                    storage::state::current(&self.app.db, room.rules, room.nid, None).await?;
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
        let older = Range::before(room.nid, Place::before(event));
        let newer = Range::after(room.nid, Place::after(event));
        let (before, after) = (limit(wanted.before_limit), limit(wanted.after_limit));
        let before = timeline::page(app, room, sight, older, &everything, before).await?;
        let after = timeline::page(app, room, sight, newer, &everything, after).await?;
        let mut context = EventContextResult::new();
        let oldest = before.events.last().unwrap_or(event);
        let newest = after.events.last().unwrap_or(event);
        context.start = Some(timeline::token(Place::before(oldest)).to_string());
        context.end = Some(timeline::token(Place::after(newest)).to_string());
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

fn groups<K: Ord>(hits: &[Hit], key: impl Fn(&Event) -> K) -> BTreeMap<K, ResultGroup> {
    let mut groups = BTreeMap::new();
    for hit in hits {
        let order = UInt::try_from(groups.len()).unwrap_or_default();
        let group = groups.entry(key(&hit.event)).or_insert_with(|| {
            let mut group = ResultGroup::new();
            group.order = Some(order);
            group
        });
        group.results.push(hit.event.pdu.event_id.clone());
    }
    groups
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
