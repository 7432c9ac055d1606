//! The user directory, mutual rooms, reports, typing, and what there is none of.

use std::time::Duration;

use homing::storage::{RoomNid, UserNid, reports};
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{TestServer, User};

async fn search(user: &User<'_>, term: &str, limit: u64) -> (Vec<String>, bool) {
    let body = json!({ "search_term": term, "limit": limit });
    let answer = user.post("/user_directory/search", body).await.ok();
    let ids = answer["results"].as_array().unwrap().iter();
    let ids = ids.map(|one| one["user_id"].as_str().unwrap().to_owned());
    (ids.collect(), answer["limited"].as_bool().unwrap())
}

async fn name(user: &User<'_>, name: &str) {
    let path = format!("/profile/{}/displayname", user.id);
    user.put(&path, json!({ "displayname": name })).await.ok();
}

#[tokio::test]
async fn people_are_found_by_those_who_share_a_room_or_in_public_rooms() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let (near, public) = (
        server.register("near").await,
        server.register("public").await,
    );
    let (published, hidden) = (
        server.register("other").await,
        server.register("hidden").await,
    );
    for (user, called) in [
        (&near, "Zoë Nah"),
        (&public, "Zoë Public"),
        (&published, "ZOË Published"),
        (&hidden, "Zoë Hidden"),
    ] {
        name(user, called).await;
    }
    let room = alice.create_room(json!({ "invite": [near.id] })).await;
    public.create_room(json!({ "preset": "public_chat" })).await;
    published
        .create_room(json!({ "visibility": "public" }))
        .await;
    hidden.create_room(json!({})).await;
    assert_eq!(search(&alice, "zoë n", 10).await.0, [""; 0], "only invited");
    near.post(&format!("/join/{room}"), json!({})).await.ok();

    let (found, limited) = search(&alice, "zOë", 10).await;
    assert_eq!((&found[0], found.len(), limited), (&near.id, 3, false));
    assert!(found.contains(&public.id) && found.contains(&published.id));
    let (found, limited) = search(&alice, "zoë", 2).await;
    assert_eq!((found.len(), limited), (2, true));
    assert_eq!(
        search(&alice, "public zoë", 10).await.0,
        std::slice::from_ref(&public.id)
    );
    assert_eq!(
        search(&alice, &near.id, 10).await.0,
        std::slice::from_ref(&near.id)
    );
    for nothing in ["", "  ", "%", "_", "alice", "100%"] {
        assert_eq!(search(&alice, nothing, 10).await.0, [""; 0], "{nothing}");
    }
    let body = json!({ "search_term": "zoë n" });
    let answer = alice.post("/user_directory/search", body).await.ok();
    assert_eq!(
        answer["results"],
        json!([{ "user_id": near.id, "display_name": "Zoë Nah" }])
    );
    for (term, code) in [(json!("a\0"), "M_INVALID_PARAM"), (json!(1), "M_BAD_JSON")] {
        let body = json!({ "search_term": term });
        let answer = alice.post("/user_directory/search", body).await;
        answer.fails(400, code);
    }
}

#[tokio::test]
async fn mutual_rooms_come_in_pages() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let path = format!("/_matrix/client/v1/mutual_rooms?user_id={}", bob.id);
    assert_eq!(
        alice.get(&path).await.ok(),
        json!({ "joined": [], "count": 0 })
    );
    let mut rooms = Vec::new();
    for _ in 0..101 {
        let room = alice.create_room(json!({ "invite": [bob.id] })).await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        rooms.push(room);
    }
    alice.create_room(json!({ "invite": [bob.id] })).await;
    let page = alice.get(&path).await.ok();
    assert_eq!(page["count"], 101);
    let next = page["next_batch"].as_str().unwrap();
    let last = alice.get(&format!("{path}&from={next}")).await.ok();
    assert_eq!(last.get("next_batch"), None);
    let joined = |page: &Value| page["joined"].as_array().unwrap().clone();
    let mut found = [joined(&page), joined(&last)].concat();
    found.sort_by_key(|room| room.as_str().unwrap().to_owned());
    rooms.sort();
    assert_eq!(json!(found), json!(rooms));

    let path = "/_matrix/client/v1/mutual_rooms";
    for (query, code) in [
        (format!("?user_id={}", alice.id), "M_INVALID_PARAM"),
        (format!("?user_id={}&from=x", bob.id), "M_INVALID_PARAM"),
        ("?user_id=bob".to_owned(), "M_INVALID_PARAM"),
        (String::new(), "M_MISSING_PARAM"),
    ] {
        alice.get(&format!("{path}{query}")).await.fails(400, code);
    }
    alice
        .get(&format!("{path}?user_id=@nobody:nowhere.example"))
        .await
        .ok();
}

#[tokio::test]
async fn reports_reach_the_table() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({})).await;
    let event = alice.say(&room, "something bad").await;
    let (of_event, of_room) = (
        format!("/rooms/{room}/report/{event}"),
        format!("/rooms/{room}/report"),
    );
    alice.post(&of_event, json!({ "reason": "bad" })).await.ok();
    alice.post(&of_event, json!({ "score": -100 })).await.ok();
    bob.post(&of_event, json!({}))
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .post(&format!("/rooms/{room}/report/$nothing"), json!({}))
        .await
        .fails(404, "M_NOT_FOUND");
    bob.post(&of_room, json!({ "reason": "spam" })).await.ok();
    bob.post(&of_room, json!({}))
        .await
        .fails(400, "M_MISSING_PARAM");
    bob.post("/rooms/!nowhere/report", json!({ "reason": "" }))
        .await
        .fails(404, "M_NOT_FOUND");
    let of_user = format!("/users/{}/report", alice.id);
    bob.post(&of_user, json!({ "reason": "rude" })).await.ok();
    bob.post("/users/@nobody:localhost/report", json!({ "reason": "" }))
        .await
        .fails(404, "M_NOT_FOUND");
    for reason in ["x".repeat(5000), "\0".to_owned()] {
        let answer = bob.post(&of_user, json!({ "reason": reason })).await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    let found = reports::newest(&server.app.db, 10).await.unwrap();
    let reasons: Vec<_> = found.iter().map(|report| report.reason.as_str()).collect();
    assert_eq!(reasons, ["rude", "spam", "", "bad"]);
    let about = |report: &reports::Report| {
        [
            report.room.is_some(),
            report.event.is_some(),
            report.user.is_some(),
        ]
    };
    assert_eq!(about(&found[0]), [false, false, true]);
    assert_eq!(about(&found[1]), [true, false, false]);
    assert_eq!(about(&found[3]), [true, true, false]);
}

async fn ids(server: &TestServer, room: &str, user: &str) -> (RoomNid, UserNid) {
    let room = server.app.room(room.try_into().unwrap()).await.unwrap().nid;
    let user = server.app.user(user.try_into().unwrap()).await.unwrap();
    (room, user)
}

#[tokio::test]
async fn typing_ends_by_itself() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({})).await;
    let (room_nid, user) = ids(&server, &room, &alice.id).await;
    let path = format!("/rooms/{room}/typing/{}", alice.id);
    let typists = || server.app.typing.users(room_nid, server.app.clock.now());
    let before = server.app.bus.ephemeral();
    let long = json!({ "typing": true, "timeout": 30_000 });
    alice.put(&path, long.clone()).await.ok();
    alice.put(&path, long.clone()).await.ok();
    assert_eq!(typists(), [user]);
    assert_eq!(server.app.bus.ephemeral(), before + 1, "told once");
    alice.put(&path, json!({ "typing": false })).await.ok();
    assert_eq!(typists(), []);
    assert_eq!(server.app.bus.ephemeral(), before + 2);
    alice
        .put(&path, json!({ "typing": true, "timeout": 20 }))
        .await
        .ok();
    tokio::time::timeout(Duration::from_secs(10), async {
        while server.app.bus.ephemeral() < before + 4 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("its end is told");
    assert_eq!(typists(), []);

    alice.put(&path, long.clone()).await.ok();
    alice.say(&room, "typed").await;
    assert_eq!(typists(), [user], "it may be another device that sent it");

    bob.put(&path, long.clone()).await.fails(403, "M_FORBIDDEN");
    let path = format!("/rooms/{room}/typing/{}", bob.id);
    bob.put(&path, long.clone()).await.fails(403, "M_FORBIDDEN");
    bob.put(&format!("/rooms/!nowhere/typing/{}", bob.id), long)
        .await
        .fails(403, "M_FORBIDDEN");
    alice
        .put(
            &format!("/rooms/{room}/typing/{}", alice.id),
            json!({ "timeout": 1 }),
        )
        .await
        .fails(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn there_are_no_bridges_and_no_turn_server() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    assert_eq!(alice.get("/thirdparty/protocols").await.ok(), json!({}));
    for path in [
        "/thirdparty/protocol/irc",
        "/thirdparty/location/irc",
        "/thirdparty/user/irc",
        "/thirdparty/location?alias=%23a:localhost",
        "/thirdparty/user?userid=@a:localhost",
    ] {
        alice.get(path).await.fails(404, "M_NOT_FOUND");
    }
    assert_eq!(alice.get("/voip/turnServer").await.ok(), json!({}));
    let path = "/_matrix/client/v3/voip/turnServer";
    let answer = server.request(Method::GET, path, None, None).await;
    answer.fails(401, "M_MISSING_TOKEN");
}
