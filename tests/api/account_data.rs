use reqwest::Method;
use serde_json::json;

use crate::server::TestServer;

#[tokio::test]
async fn account_data_is_kept_for_its_owner_also_after_a_restart() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({})).await;
    let global = format!("/user/{}/account_data/org.example.colour", alice.id);
    let of_room = format!(
        "/user/{}/rooms/{room}/account_data/org.example.colour",
        alice.id
    );
    alice.get(&global).await.fails(404, "M_NOT_FOUND");
    alice.put(&global, json!({ "colour": "red" })).await.ok();
    alice.put(&global, json!({ "colour": 1.5 })).await.ok();
    alice.get(&of_room).await.fails(404, "M_NOT_FOUND");
    alice.put(&of_room, json!({ "colour": "blue" })).await.ok();
    for path in [&global, &of_room] {
        bob.get(path).await.fails(403, "M_FORBIDDEN");
        bob.put(path, json!({})).await.fails(403, "M_FORBIDDEN");
    }
    let token = alice.token.clone();
    drop((alice, bob));
    let server = server.restart().await;
    for (path, colour) in [(global, json!(1.5)), (of_room, json!("blue"))] {
        let path = format!("/_matrix/client/v3{path}");
        let answer = server.request(Method::GET, &path, Some(&token), None).await;
        assert_eq!(answer.ok(), json!({ "colour": colour }));
    }
}

#[tokio::test]
async fn what_the_server_manages_cannot_be_set_as_account_data() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    for event_type in ["m.push_rules", "m.fully_read"] {
        for path in [
            format!("/user/{}/account_data/{event_type}", alice.id),
            format!("/user/{}/rooms/{room}/account_data/{event_type}", alice.id),
        ] {
            alice.put(&path, json!({})).await.fails(405, "M_BAD_JSON");
        }
    }
    let path = format!("/user/{}/account_data/m.push_rules", alice.id);
    let rules = alice.get(&path).await.ok();
    assert_eq!(rules["global"]["override"][0]["rule_id"], ".m.rule.master");
}

#[tokio::test]
async fn impossible_account_data_is_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let at = |event_type: &str| format!("/user/{}/account_data/{event_type}", alice.id);
    for body in [json!([]), json!("text"), json!(1), json!(null)] {
        alice.put(&at("a"), body).await.fails(400, "M_BAD_JSON");
    }
    let large = json!({ "a": "x".repeat(300_000) });
    alice.put(&at("a"), large).await.fails(413, "M_TOO_LARGE");
    for event_type in ["%00", &"x".repeat(256)] {
        let answer = alice.put(&at(event_type), json!({})).await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    let path = format!("/user/{}/rooms/!nowhere/account_data/a", alice.id);
    alice.put(&path, json!({})).await.fails(404, "M_NOT_FOUND");
    let path = format!("/user/{}/rooms/nowhere/account_data/a", alice.id);
    alice
        .put(&path, json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
    let itself = json!({ "ignored_users": { alice.id.clone(): {} } });
    alice
        .put(&at("m.ignored_user_list"), itself)
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn rooms_are_tagged() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({})).await;
    let tags = format!("/user/{}/rooms/{room}/tags", alice.id);
    assert_eq!(alice.get(&tags).await.ok(), json!({ "tags": {} }));
    let at = |tag: &str| format!("{tags}/{tag}");
    let favourite = json!({ "order": 0.25 });
    alice.put(&at("m.favourite"), favourite.clone()).await.ok();
    alice.put(&at("u.work"), json!({})).await.ok();
    alice.delete(&at("u.work")).await.ok();
    alice.delete(&at("u.nothing")).await.ok();
    let expected = json!({ "tags": { "m.favourite": favourite } });
    assert_eq!(alice.get(&tags).await.ok(), expected);
    let path = format!("/user/{}/rooms/{room}/account_data/m.tag", alice.id);
    assert_eq!(alice.get(&path).await.ok(), expected);

    bob.get(&tags).await.fails(403, "M_FORBIDDEN");
    for body in [json!({ "order": 2 }), json!({ "order": -0.1 })] {
        alice
            .put(&at("a"), body)
            .await
            .fails(400, "M_INVALID_PARAM");
    }
    alice
        .put(&at("a"), json!({ "order": "first" }))
        .await
        .fails(400, "M_BAD_JSON");
    alice
        .put(&at(&"x".repeat(256)), json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
    for number in 0..99 {
        alice.put(&at(&number.to_string()), json!({})).await.ok();
    }
    alice
        .put(&at("100"), json!({}))
        .await
        .fails(413, "M_TOO_LARGE");
}

#[tokio::test]
async fn tags_set_at_the_same_time_are_all_kept() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let tags = format!("/user/{}/rooms/{room}/tags", alice.id);
    let paths: Vec<String> = (0..20).map(|number| format!("{tags}/{number}")).collect();
    let sets = paths.iter().map(|path| alice.put(path, json!({})));
    for answer in futures_util::future::join_all(sets).await {
        answer.ok();
    }
    let kept = alice.get(&tags).await.ok();
    assert_eq!(kept["tags"].as_object().unwrap().len(), 20);
}

#[tokio::test]
async fn filters_are_stored_once_and_only_if_valid() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let path = format!("/user/{}/filter", alice.id);
    let filter = json!({
        "event_fields": ["content.body"],
        "room": { "timeline": { "limit": 10, "types": ["m.room.message"] }, "include_leave": true }
    });
    let first = alice.post(&path, filter.clone()).await.ok();
    let again = alice.post(&path, filter.clone()).await.ok();
    assert_eq!(first, again);
    let other = alice.post(&path, json!({})).await.ok();
    assert_ne!(first, other);
    let stored = format!("{path}/{}", first["filter_id"].as_str().unwrap());
    assert_eq!(alice.get(&stored).await.ok(), filter);

    bob.get(&stored).await.fails(403, "M_FORBIDDEN");
    bob.post(&path, json!({})).await.fails(403, "M_FORBIDDEN");
    for id in ["nothing", "ä", &"x".repeat(300)] {
        let answer = alice.get(&format!("{path}/{id}")).await;
        answer.fails(404, "M_NOT_FOUND");
    }
    for bad in [
        json!([]),
        json!({ "event_format": "other" }),
        json!({ "room": { "timeline": { "limit": "ten" } } }),
        json!({ "room": { "timeline": { "senders": ["alice"] } } }),
        json!({ "room": { "rooms": vec!["!a"; 1001] } }),
    ] {
        alice.post(&path, bad).await.fails(400, "M_BAD_JSON");
    }
}
