//! What servers ask each other for their users: profiles, aliases, directories, tokens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use homing_federation::client::Error;
use reqwest::Method;
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    fake_server::{FakeServer, endless},
    server::{TestServer, User},
};

const QUERY: &str = "/_matrix/federation/v1/query";

async fn name_oneself(user: &User<'_>, name: &str) {
    let path = format!("/profile/{}/displayname", user.id);
    user.put(&path, json!({ "displayname": name })).await.ok();
}

#[tokio::test]
async fn profiles_are_known_on_other_servers() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let path = format!("/profile/{}", bob.id);
    assert_eq!(alice.get(&path).await.ok()["displayname"], "bob");
    let carol = there.register("carol").await;
    name_oneself(&carol, "Carol C.").await;
    let field = format!("/profile/{}/org.example.mood", carol.id);
    carol
        .put(&field, json!({ "org.example.mood": ["fine"] }))
        .await
        .ok();
    let path = format!("/profile/{}", carol.id);
    let expected = json!({ "displayname": "Carol C.", "org.example.mood": ["fine"] });
    assert_eq!(alice.get(&path).await.ok(), expected);
    let name = alice.get(&format!("{path}/displayname")).await.ok();
    assert_eq!(name, json!({ "displayname": "Carol C." }));
    let none = alice.get(&format!("{path}/avatar_url")).await;
    none.fails(404, "M_NOT_FOUND");
    let nobody = format!("/profile/@nobody:{}", there.name());
    alice.get(&nobody).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn profiles_are_told_to_other_servers() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    name_oneself(&alice, "Alice").await;
    let path = format!("{QUERY}/profile?user_id={}", alice.id);
    let profile = json!({ "displayname": "Alice" });
    assert_eq!(fake.get(&server, &path).await.ok(), profile);
    let name = fake
        .get(&server, &format!("{path}&field=displayname"))
        .await;
    assert_eq!(name.ok(), profile);
    let none = fake.get(&server, &format!("{path}&field=avatar_url")).await;
    assert_eq!(none.ok(), json!({}));
    for (user, errcode) in [
        (format!("@nobody:{}", server.name()), "M_NOT_FOUND"),
        (format!("@somebody:{}", fake.name), "M_NOT_FOUND"),
    ] {
        let path = format!("{QUERY}/profile?user_id={user}");
        fake.get(&server, &path).await.fails(404, errcode);
    }
    let bad = fake
        .get(&server, &format!("{QUERY}/profile?user_id=alice"))
        .await;
    bad.fails(400, "M_INVALID_PARAM");
    let missing = fake.get(&server, &format!("{QUERY}/profile")).await;
    missing.fails(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn bad_answers_about_profiles_are_no_profiles() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let path = format!("{QUERY}/profile");
    let ask = async |name: &str| alice.get(&format!("/profile/@{name}:{}", fake.name)).await;
    for (status, errcode, expected) in [
        (404, "M_NOT_FOUND", (404, "M_NOT_FOUND")),
        (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
        (400, "M_BAD_JSON", (502, "M_UNKNOWN")),
        (500, "M_UNKNOWN", (502, "M_UNKNOWN")),
        (401, "M_UNAUTHORIZED", (502, "M_UNKNOWN")),
    ] {
        fake.refuses(Method::GET, &path, status, errcode);
        ask("x").await.fails(expected.0, expected.1);
    }
    fake.answers(Method::GET, &path, json!(["no profile"]));
    ask("x").await.fails(502, "M_UNKNOWN");
    fake.answers(
        Method::GET,
        &path,
        json!({ "displayname": "x".repeat(300_000) }),
    );
    ask("x").await.fails(502, "M_UNKNOWN");
    fake.on(Method::GET, &path, |_| {
        endless(&[b' '; 10_000], std::time::Duration::ZERO)
    });
    ask("x").await.fails(502, "M_UNKNOWN");
    fake.answers(Method::GET, &path, json!({ "displayname": 5, "a.b": 1 }));
    let name = alice
        .get(&format!("/profile/@y:{}/displayname", fake.name))
        .await;
    name.fails(502, "M_UNKNOWN");
    // Nobody is there.
    let gone = format!("/profile/@x:localhost:{}", crate::tls::free_port());
    alice.get(&gone).await.fails(502, "M_UNKNOWN");
}

#[tokio::test]
async fn a_profile_is_asked_for_once() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let path = format!("{QUERY}/profile");
    fake.answers(Method::GET, &path, json!({ "displayname": "X" }));
    for _ in 0..3 {
        let profile = alice.get(&format!("/profile/@x:{}", fake.name)).await.ok();
        assert_eq!(profile["displayname"], "X");
    }
    assert_eq!(fake.count(&Method::GET, &path), 1);
}

/// A server that takes connections and closes them; counts them.
async fn closing() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("localhost:{}", listener.local_addr().unwrap().port());
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            counting.fetch_add(1, Ordering::Relaxed);
            drop(connection);
        }
    });
    (name, count)
}

#[tokio::test]
async fn a_server_that_is_not_there_is_not_asked_each_time() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let (gone, count) = closing().await;
    let media = "/_matrix/client/v1/media/download";
    let ask = async || {
        for path in [
            format!("/profile/@x:{gone}"),
            format!("/profile/@y:{gone}/displayname"),
            format!("/directory/room/%23x:{gone}"),
            format!("/publicRooms?server={gone}"),
            format!("{media}/{gone}/x"),
        ] {
            alice.get(&path).await.fails(502, "M_UNKNOWN");
        }
        count.load(Ordering::Relaxed)
    };
    let first = ask().await;
    assert_eq!((first, ask().await), (1, 1));
    server.app.clock.advance(Duration::from_secs(20));
    assert_eq!(ask().await, 2);
    // Media alone are no different.
    let (gone, count) = closing().await;
    for _ in 0..2 {
        let answer = alice.get(&format!("{media}/{gone}/x")).await;
        answer.fails(502, "M_UNKNOWN");
    }
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_makes_a_request_is_there() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let profile = format!("{QUERY}/profile");
    let path = format!("/profile/@x:{}", fake.name);
    let lost = Error::Unreachable("gone".to_owned());
    homing::remote::note(&server.app, &fake.name, &lost);
    fake.answers(Method::GET, &profile, json!({ "displayname": "X" }));
    alice.get(&path).await.fails(502, "M_UNKNOWN");
    assert_eq!(fake.count(&Method::GET, &profile), 0);
    fake.get(&server, &format!("{profile}?user_id={}", alice.id))
        .await
        .ok();
    alice.get(&path).await.ok();
}

#[tokio::test]
async fn aliases_are_known_on_other_servers() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let body = json!({ "preset": "public_chat", "room_alias_name": "pub" });
    let room = bob.create_room(body).await;
    let alias = format!("%23pub:{}", there.name());
    let path = format!("/directory/room/{alias}");
    let expected = json!({ "room_id": room, "servers": [there.name()] });
    assert_eq!(alice.get(&path).await.ok(), expected);
    let unknown = format!("/directory/room/%23none:{}", there.name());
    alice.get(&unknown).await.fails(404, "M_NOT_FOUND");
    let gone = format!(
        "/directory/room/%23none:localhost:{}",
        crate::tls::free_port()
    );
    alice.get(&gone).await.fails(502, "M_UNKNOWN");
}

#[tokio::test]
async fn aliases_are_told_to_other_servers() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "room_alias_name": "pub" })).await;
    let path = format!("{QUERY}/directory?room_alias=%23pub:{}", server.name());
    let told = fake.get(&server, &path).await.ok();
    let expected = json!({ "room_id": room, "servers": [server.name()] });
    assert_eq!(told, expected);
    for alias in [
        format!("%23none:{}", server.name()),
        format!("%23pub:{}", fake.name),
    ] {
        let path = format!("{QUERY}/directory?room_alias={alias}");
        fake.get(&server, &path).await.fails(404, "M_NOT_FOUND");
    }
    let other = fake
        .get(&server, &format!("{QUERY}/weather?where=here"))
        .await;
    other.fails(404, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn directories_of_other_servers_are_read() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    for name in ["Cats", "Dogs", "Catfish"] {
        let body = json!({ "preset": "public_chat", "visibility": "public", "name": name });
        bob.create_room(body).await;
    }
    let own = json!({ "preset": "public_chat", "visibility": "public", "name": "Own" });
    alice.create_room(own).await;
    let server = there.name();
    let whole = alice.get(&format!("/publicRooms?server={server}")).await;
    let whole = whole.ok();
    assert_eq!(whole["total_room_count_estimate"], 3);
    assert_eq!(whole["chunk"].as_array().unwrap().len(), 3);
    let first = alice
        .get(&format!("/publicRooms?server={server}&limit=2"))
        .await;
    let first = first.ok();
    assert_eq!(first["chunk"].as_array().unwrap().len(), 2);
    let since = first["next_batch"].as_str().unwrap();
    let next = format!("/publicRooms?server={server}&limit=2&since={since}");
    let next = alice.get(&next).await.ok();
    assert_eq!(next["chunk"].as_array().unwrap().len(), 1);
    assert!(next["prev_batch"].is_string());
    let filter = json!({ "filter": { "generic_search_term": "cat" } });
    let path = format!("/publicRooms?server={server}");
    let found = alice.post(&path, filter).await.ok();
    let mut names: Vec<_> = found["chunk"].as_array().unwrap().iter().collect();
    names.sort_by_key(|room| room["name"].as_str());
    let names: Vec<_> = names.iter().map(|room| &room["name"]).collect();
    assert_eq!(names, ["Catfish", "Cats"]);
    // Rooms of other networks are none.
    for (network, rooms) in [
        (json!({ "third_party_instance_id": "irc" }), 0),
        (json!({ "include_all_networks": true }), 3),
    ] {
        let found = alice.post(&path, network.clone()).await.ok();
        assert_eq!(found["chunk"].as_array().unwrap().len(), rooms, "{network}");
        let found = bob.post("/publicRooms", network).await.ok();
        assert_eq!(found["chunk"].as_array().unwrap().len(), rooms);
    }
    let fake = FakeServer::start().await;
    let asked = "/_matrix/federation/v1/publicRooms?third_party_instance_id=irc";
    let found = fake.get(&there, asked).await.ok();
    assert_eq!(found["chunk"], json!([]));
    // What is neither true nor false is not taken for one of them.
    let asked = "/_matrix/federation/v1/publicRooms";
    for (all, status) in [("true", 200), ("false", 200), ("maybe", 400), ("", 400)] {
        let path = format!("{asked}?include_all_networks={all}");
        let answer = fake.get(&there, &path).await;
        assert_eq!(answer.status, status, "{all}");
        if status == 400 {
            answer.fails(400, "M_INVALID_PARAM");
        }
    }
    for body in [
        json!({ "include_all_networks": "maybe" }),
        json!({ "include_all_networks": 1 }),
        json!({ "third_party_instance_id": 1 }),
    ] {
        let refused = fake.post(&there, asked, body.clone()).await;
        refused.fails(400, "M_BAD_JSON");
        for path in ["/publicRooms", &path] {
            let refused = alice.post(path, body.clone()).await;
            refused.fails(400, "M_BAD_JSON");
        }
    }
    // One's own directory is not asked for elsewhere.
    let own = alice
        .get(&format!("/publicRooms?server={}", here.name()))
        .await;
    assert_eq!(own.ok()["chunk"][0]["name"], "Own");
    let gone = format!("/publicRooms?server=localhost:{}", crate::tls::free_port());
    alice.get(&gone).await.fails(502, "M_UNKNOWN");
}

#[tokio::test]
async fn tokens_for_others_name_their_user() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let path = format!("/user/{}/openid/request_token", alice.id);
    let token = alice.post(&path, json!({})).await.ok();
    let token = token["access_token"].as_str().unwrap();
    let path = "/_matrix/federation/v1/openid/userinfo?access_token=";
    let userinfo = server
        .request(Method::GET, &format!("{path}{token}"), None, None)
        .await;
    assert_eq!(userinfo.ok(), json!({ "sub": alice.id }));
    for wrong in [&alice.token, "x", ""] {
        let userinfo = server
            .request(Method::GET, &format!("{path}{wrong}"), None, None)
            .await;
        userinfo.fails(401, "M_UNKNOWN_TOKEN");
    }
}
