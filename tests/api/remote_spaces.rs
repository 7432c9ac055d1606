//! Rooms and spaces of other servers, before anybody here is in them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_server::FakeServer,
    server::{TestServer, User},
};

const HIERARCHY: &str = "/_matrix/federation/v1/hierarchy";

async fn room(user: &User<'_>, name: &str, more: Value) -> String {
    let mut body = json!({ "name": name, "preset": "public_chat" });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    user.create_room(body).await
}

async fn space(user: &User<'_>, name: &str) -> String {
    room(
        user,
        name,
        json!({ "creation_content": { "type": "m.space" } }),
    )
    .await
}

async fn add(user: &User<'_>, space: &str, child: &str, content: Value) {
    let path = format!("/rooms/{space}/state/m.space.child/{child}");
    user.put(&path, content).await.ok();
}

fn names(rooms: &Value) -> Vec<&str> {
    let rooms = rooms.as_array().expect("rooms").iter();
    rooms
        .map(|room| room["name"].as_str().unwrap_or(""))
        .collect()
}

async fn tree(user: &User<'_>, space: &str, query: &str) -> Value {
    let path = format!("/_matrix/client/v1/rooms/{space}/hierarchy?{query}");
    user.get(&path).await.ok()
}

#[tokio::test]
async fn spaces_are_told_to_other_servers() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let root = space(&alice, "root").await;
    let via = json!({ "via": [server.name()] });
    let suggested = json!({ "via": [server.name()], "suggested": true, "order": "a" });
    let open = room(&alice, "open", json!({})).await;
    add(&alice, &root, &open, via.clone()).await;
    let closed = room(&alice, "closed", json!({ "preset": "private_chat" })).await;
    add(&alice, &root, &closed, via.clone()).await;
    let sub = space(&alice, "sub").await;
    add(&alice, &root, &sub, suggested).await;
    add(&alice, &root, "!elsewhere:example.org", via.clone()).await;
    let inner = room(&alice, "inner", json!({})).await;
    add(&alice, &sub, &inner, via).await;

    let told = fake.get(&server, &format!("{HIERARCHY}/{root}")).await.ok();
    assert_eq!(told["room"]["room_id"], root);
    assert_eq!(told["room"]["name"], "root");
    assert_eq!(told["room"]["children_state"].as_array().unwrap().len(), 4);
    let mut children = names(&told["children"]);
    children.sort_unstable();
    assert_eq!(children, ["open", "sub"]);
    assert_eq!(told["inaccessible_children"], json!([closed]));
    let path = format!("{HIERARCHY}/{root}?suggested_only=true");
    let told = fake.get(&server, &path).await.ok();
    assert_eq!(names(&told["children"]), ["sub"]);
    assert_eq!(told["room"]["children_state"].as_array().unwrap().len(), 1);
    for unknown in [&*closed, "!elsewhere:example.org"] {
        let path = format!("{HIERARCHY}/{unknown}");
        fake.get(&server, &path).await.fails(404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn a_tree_goes_on_on_other_servers() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let via = json!({ "via": [there.name()] });
    let remote = space(&bob, "remote").await;
    let leaf = room(&bob, "leaf", json!({})).await;
    add(&bob, &remote, &leaf, via.clone()).await;
    let deep = space(&bob, "deep").await;
    add(&bob, &remote, &deep, via.clone()).await;
    let last = room(&bob, "last", json!({})).await;
    add(&bob, &deep, &last, via.clone()).await;
    let closed = room(&bob, "closed", json!({ "preset": "private_chat" })).await;
    add(&bob, &remote, &closed, via.clone()).await;
    let root = space(&alice, "root").await;
    add(&alice, &root, &remote, via).await;
    let own = room(&alice, "own", json!({})).await;
    add(
        &alice,
        &root,
        &own,
        json!({ "via": [here.name()], "order": "z" }),
    )
    .await;
    let gone = format!("localhost:{}", crate::tls::free_port());
    add(&alice, &root, "!gone:example.org", json!({ "via": [gone] })).await;

    let whole = tree(&alice, &root, "").await;
    let mut found = names(&whole["rooms"]);
    assert_eq!(found.remove(0), "root");
    found.sort_unstable();
    assert_eq!(found, ["deep", "last", "leaf", "own", "remote"]);
    let remote_room = whole["rooms"].as_array().unwrap();
    let remote_room = remote_room.iter().find(|room| room["name"] == "remote");
    let children = &remote_room.unwrap()["children_state"];
    assert_eq!(children.as_array().unwrap().len(), 3);
    // Page by page the same.
    let mut paged = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let page = tree(&alice, &root, &query).await;
        paged.extend(page["rooms"].as_array().unwrap().iter().cloned());
        match page["next_batch"].as_str() {
            Some(next) => query = format!("limit=2&from={next}"),
            None => break,
        }
    }
    assert_eq!(json!(paged), whole["rooms"]);
    // A root that is elsewhere, if the id tells where.
    let shallow = tree(&alice, &root, "max_depth=1").await;
    assert!(!names(&shallow["rooms"]).contains(&"leaf"));
}

#[tokio::test]
async fn who_is_invited_to_a_space_elsewhere_sees_what_is_in_it() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let root = room(
        &alice,
        "root",
        json!({
            "preset": "private_chat", "creation_content": { "type": "m.space" }, "invite": [bob.id],
        }),
    )
    .await;
    let child = room(&alice, "child", json!({ "preset": "public_chat" })).await;
    add(&alice, &root, &child, json!({ "via": [one.name()] })).await;
    let tree = tree(&bob, &root, "").await;
    assert_eq!(tree["rooms"][0]["name"], "root", "{tree}");
    assert_eq!(tree["rooms"][1]["name"], "child", "{tree}");
    let path = format!("/_matrix/client/v1/room_summary/{root}");
    assert_eq!(bob.get(&path).await.ok()["name"], "root");
}

#[tokio::test]
async fn rooms_of_other_servers_are_summarized() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let open = room(
        &bob,
        "open",
        json!({ "room_alias_name": "open", "topic": "T" }),
    )
    .await;
    let closed = room(&bob, "closed", json!({ "preset": "private_chat" })).await;
    let path = format!(
        "/_matrix/client/v1/room_summary/{open}?via={}",
        there.name()
    );
    let told = alice.get(&path).await.ok();
    assert_eq!(told["room_id"], open);
    assert_eq!(
        (&told["name"], &told["topic"]),
        (&json!("open"), &json!("T"))
    );
    assert_eq!(told["num_joined_members"], 1);
    assert!(told.get("membership").is_none());
    let by_alias = format!("/_matrix/client/v1/room_summary/%23open:{}", there.name());
    assert_eq!(alice.get(&by_alias).await.ok(), told);
    let anonymous = here.request(Method::GET, &path, None, None).await.ok();
    assert_eq!(anonymous, told);
    let path = format!(
        "/_matrix/client/v1/room_summary/{closed}?via={}",
        there.name()
    );
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
    let path = format!("/_matrix/client/v1/room_summary/{open}");
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn servers_that_tell_of_other_rooms_are_not_believed() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let summary = |id: &str, rule: &str| {
        json!({
            "room_id": id, "name": "told", "num_joined_members": 5, "world_readable": false,
            "guest_can_join": false, "join_rule": rule, "children_state": [],
        })
    };
    let path = "/_matrix/client/v1/room_summary";
    for (asked, told, is_known) in [
        (
            "!right:example.org",
            summary("!right:example.org", "public"),
            true,
        ),
        (
            "!other:example.org",
            summary("!wrong:example.org", "public"),
            false,
        ),
        (
            "!closed:example.org",
            summary("!closed:example.org", "invite"),
            false,
        ),
        (
            "!half:example.org",
            json!({ "room_id": "!half:example.org" }),
            false,
        ),
    ] {
        let answer = json!({ "room": told, "children": [], "inaccessible_children": [] });
        fake.answers(Method::GET, &format!("{HIERARCHY}/"), answer);
        let answer = alice
            .get(&format!("{path}/{asked}?via={}", fake.name))
            .await;
        if is_known {
            assert_eq!(answer.ok()["name"], "told");
        } else {
            answer.fails(404, "M_NOT_FOUND");
        }
    }
}
