//! Three servers whose links break and come back at random end with the same room.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use homing::storage::events::{flags, stubs};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};

use crate::{
    links::{LinkedServer, Links},
    server::{TestServer, User},
    shared_rooms::state,
};

/// How much happens in a room.
const STEPS: usize = 50;

struct Room<'s> {
    id: String,
    servers: [&'s TestServer; 3],
    links: Links,
    /// On each server somebody who may do everything, and somebody to whom things are done.
    people: [[User<'s>; 2]; 3],
    /// Whether people lose what they may do, so that the servers judge differently what comes late.
    is_rough: bool,
    /// The events of each server.
    sent: Vec<String>,
    random: StdRng,
}

/// What somebody does: path below the room, and content.
type Deed = (String, Value);

impl<'s> Room<'s> {
    async fn create(servers: [&'s TestServer; 3], links: Links, seed: u64, is_rough: bool) -> Self {
        let mut people = Vec::new();
        for server in servers {
            people.push([
                server.register("first").await,
                server.register("second").await,
            ]);
        }
        let people: [[User<'s>; 2]; 3] = people
            .try_into()
            .unwrap_or_else(|_| panic!("three servers"));
        let mut levels: BTreeMap<_, _> = people
            .iter()
            .map(|[_, second]| (second.id.clone(), 50))
            .collect();
        levels.extend(
            people
                .iter()
                .skip(1)
                .map(|[first, _]| (first.id.clone(), 100)),
        );
        let owner = &people[0][0];
        if owner.server.app.config.rooms.default_version.as_str() != "12" {
            levels.insert(owner.id.clone(), 100);
        }
        let body =
            json!({ "preset": "public_chat", "power_level_content_override": { "users": levels } });
        let id = owner.create_room(body).await;
        let path = format!("/join/{id}?via={}", owner.server.name());
        for user in people.iter().flatten().skip(1) {
            user.post(&path, json!({})).await.ok();
        }
        let random = StdRng::seed_from_u64(seed);
        Self {
            id,
            servers,
            links,
            people,
            is_rough,
            sent: Vec::new(),
            random,
        }
    }

    /// Breaks or mends a link now and then, and lets somebody do something.
    async fn step(&mut self) {
        if self.random.random_bool(0.15) {
            let one = self.random.random_range(0..3);
            let two = (one + 1) % 3;
            let is_cut = self.random.random_bool(0.6);
            self.links.set(self.servers[one], self.servers[two], is_cut);
        }
        if self.random.random_bool(0.1) {
            self.wait_out_failures();
        }
        let (path, content) = if self.is_rough && self.random.random_bool(0.4) {
            self.rough_deed().await
        } else {
            self.deed()
        };
        let [first, second] = self.people.choose(&mut self.random).unwrap();
        let is_first = path != "leave" && self.random.random_bool(0.5);
        let who = if is_first { first } else { second };
        let path = format!("/rooms/{}/{path}", self.id);
        let is_put = path.contains("/state/") || path.contains("/send/");
        let answer = if is_put {
            who.put(&path, content).await
        } else {
            who.post(&path, content).await
        };
        // Not all is allowed to everybody; what is accepted must not be lost.
        if answer.status == 200 {
            self.sent
                .extend(answer.body["event_id"].as_str().map(ToOwned::to_owned));
        } else {
            assert_eq!(answer.status, 403, "{path}: {}", answer.body);
            assert!(self.is_rough, "{path}: {}", answer.body);
        }
    }

    /// Bans somebody who says something before their own server hears of it.
    async fn speak_too_late(&mut self) {
        let [one, two, three] = self.servers;
        self.links.set(one, two, true);
        self.links.set(one, three, true);
        let ([judge, _], [_, speaker]) = (&self.people[0], &self.people[1]);
        let path = format!("/rooms/{}/ban", self.id);
        let body = json!({ "user_id": speaker.id });
        judge.post(&path, body).await.ok();
        self.sent.push(speaker.say(&self.id, "too late").await);
    }

    fn deed(&mut self) -> Deed {
        let number: u32 = self.random.random();
        match self.random.random_range(0..6) {
            0 => (
                "state/m.room.topic".to_owned(),
                json!({ "topic": number.to_string() }),
            ),
            1 => (
                "state/m.room.name".to_owned(),
                json!({ "name": number.to_string() }),
            ),
            2 => (
                format!("state/org.example.thing/{}", number % 3),
                json!({ "n": number }),
            ),
            _ => (
                format!("send/m.room.message/{number}"),
                json!({ "msgtype": "m.text", "body": number.to_string() }),
            ),
        }
    }

    async fn rough_deed(&mut self) -> Deed {
        let [first, second] = self.people.choose(&mut self.random).unwrap();
        let target = json!({ "user_id": second.id });
        match self.random.random_range(0..7) {
            0 => ("kick".to_owned(), target),
            1 => ("ban".to_owned(), target),
            2 => ("unban".to_owned(), target),
            3 => ("leave".to_owned(), json!({})),
            4 => ("join".to_owned(), json!({})),
            5 => {
                let rule = ["public", "invite"].choose(&mut self.random).unwrap();
                (
                    "state/m.room.join_rules".to_owned(),
                    json!({ "join_rule": rule }),
                )
            }
            _ => {
                let path = format!("/rooms/{}/state/m.room.power_levels/", self.id);
                let mut levels = first.get(&path).await.ok();
                levels["users"][&second.id] = json!([0, 50].choose(&mut self.random).unwrap());
                ("state/m.room.power_levels".to_owned(), levels)
            }
        }
    }

    /// Lets the time pass after which a server tries another one again.
    fn wait_out_failures(&self) {
        for server in self.servers {
            server.app.clock.advance(Duration::from_hours(2));
        }
    }

    /// Waits until somebody can see an event, however much has come after it.
    async fn arrives(&self, user: &User<'_>, event: &str) {
        let path = format!("/rooms/{}/event/{event}", self.id);
        let sync = user.sync("").await;
        let mut since = sync["next_batch"].as_str().unwrap().to_owned();
        let wait = async {
            while user.get(&path).await.status != 200 {
                let sync = user.sync(&format!("since={since}&timeout=1000")).await;
                sync["next_batch"].as_str().unwrap().clone_into(&mut since);
                self.wait_out_failures();
            }
        };
        let wait = tokio::time::timeout(Duration::from_secs(30), wait).await;
        wait.unwrap_or_else(|_| panic!("{} does not see {event}", user.id));
    }

    /// Mends all links; each server says something, and the others hear it.
    async fn heal(&self) {
        self.links.mend();
        for [speaker, _] in &self.people {
            let said = speaker.say(&self.id, "are you there?").await;
            for [listener, _] in &self.people {
                self.arrives(listener, &said).await;
            }
        }
    }
}

/// All events of a room that somebody can scroll to.
async fn timeline(user: &User<'_>, room: &str) -> BTreeSet<String> {
    let mut events = BTreeSet::new();
    let mut from = String::new();
    loop {
        let path = format!("/rooms/{room}/messages?dir=b&limit=100{from}");
        let page = user.get(&path).await.ok();
        for event in page["chunk"].as_array().unwrap() {
            events.insert(event["event_id"].as_str().unwrap().to_owned());
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return events,
        }
    }
}

/// Plays a room on three servers and looks at how it ends; answers how many events were not shown by every server.
async fn play(seed: u64, is_rough: bool) -> usize {
    let links = Links::default();
    let servers = tokio::join!(
        LinkedServer::start(&links),
        LinkedServer::start(&links),
        LinkedServer::start(&links)
    );
    let servers = [&servers.0.server, &servers.1.server, &servers.2.server];
    let mut room = Room::create(servers, links, seed, is_rough).await;
    if is_rough {
        room.speak_too_late().await;
    }
    for _ in 0..STEPS {
        room.step().await;
    }
    room.heal().await;

    let mut states = Vec::new();
    let mut timelines = Vec::new();
    for [user, _] in &room.people {
        states.push(state(user, &room.id).await);
        timelines.push(timeline(user, &room.id).await);
    }
    assert_eq!(states[0], states[1], "seed {seed}");
    assert_eq!(states[0], states[2], "seed {seed}");
    let all: BTreeSet<String> = timelines.iter().flatten().cloned().collect();
    for event in &room.sent {
        assert!(all.contains(event), "seed {seed}: {event} is lost");
    }
    let mut hidden = 0;
    for (server, timeline) in servers.iter().zip(&timelines) {
        let missing: Vec<String> = all.difference(timeline).cloned().collect();
        assert!(
            is_rough || missing.is_empty(),
            "seed {seed}: {} lacks {missing:?}",
            server.name()
        );
        let kept = stubs(&server.app.db, missing.clone()).await.unwrap();
        for event in &missing {
            let flags = kept.get(event).map_or(0, |stub| stub.flags);
            assert_ne!(
                flags & flags::SOFT_FAILED,
                0,
                "seed {seed}: {} lacks {event} ({flags})",
                server.name()
            );
        }
        hidden += missing.len();
    }
    hidden
}

#[tokio::test]
async fn servers_that_were_apart_end_with_the_same_room() {
    for seed in 0..2 {
        Box::pin(play(seed, false)).await;
    }
}

#[tokio::test]
async fn servers_that_judged_differently_end_with_the_same_state() {
    let mut hidden = 0;
    for seed in 0..2 {
        hidden += Box::pin(play(seed, true)).await;
    }
    assert!(hidden > 0, "nothing came too late");
}
