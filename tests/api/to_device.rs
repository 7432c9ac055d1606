//! Messages from device to device: each arrives once, in order, whatever happens.

use std::time::Duration;

use axum::{Json, response::IntoResponse as _};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::FakeRoom,
    fake_server::{FakeServer, Recorded, error},
    server::{PASSWORD, TestServer, User},
};

const SEND: &str = "/_matrix/federation/v1/send/";

/// Signs somebody in on a device.
async fn device<'s>(server: &'s TestServer, name: &str, id: &str) -> User<'s> {
    let more = json!({ "device_id": id });
    User::new(server, &server.login(name, PASSWORD, more).await.ok())
}

/// Sends one message.
async fn send(from: &User<'_>, to: &str, device: &str, txn: &str, content: Value) {
    let path = format!("/sendToDevice/m.test/{txn}");
    let body = json!({ "messages": { to: { device: content } } });
    from.put(&path, body).await.ok();
}

/// The contents of the messages that a sync brings.
fn contents(sync: &Value) -> Vec<Value> {
    let events = sync["to_device"]["events"].as_array();
    let events = events.into_iter().flatten();
    events.map(|event| event["content"].clone()).collect()
}

fn next(sync: &Value) -> String {
    format!("since={}", sync["next_batch"].as_str().unwrap())
}

/// All messages that wait for a device.
async fn waiting(user: &User<'_>, since: &str) -> Vec<Value> {
    let (mut all, mut since) = (Vec::new(), since.to_owned());
    loop {
        let sync = user.sync(&since).await;
        let contents = contents(&sync);
        if contents.is_empty() {
            return all;
        }
        all.extend(contents);
        since = next(&sync);
    }
}

#[tokio::test]
async fn a_message_stays_until_its_device_has_come_back() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let since = next(&bob.sync("").await);
    send(&alice, &bob.id, &bob.device_id, "1", json!({ "n": 1 })).await;
    let mut later = String::new();
    for _ in 0..2 {
        let sync = bob.sync(&since).await;
        let expected = json!([{ "sender": alice.id, "type": "m.test", "content": { "n": 1 } }]);
        assert_eq!(sync["to_device"]["events"], expected);
        later = next(&sync);
    }
    assert_eq!(contents(&bob.sync("").await).len(), 1, "to who begins anew");
    assert!(contents(&bob.sync(&later).await).is_empty());
    for since in [since.as_str(), ""] {
        assert!(contents(&bob.sync(since).await).is_empty(), "it is gone");
    }
}

#[tokio::test]
async fn a_message_stays_for_a_token_that_is_ahead() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    send(&alice, &bob.id, &bob.device_id, "1", json!({ "n": 1 })).await;
    // The database was set back: the device was never given what waits now.
    let sync = bob.sync("since=s999999_0_0").await;
    assert_eq!(contents(&sync), [json!({ "n": 1 })]);
    let later = next(&sync);
    assert!(contents(&bob.sync(&later).await).is_empty());
}

#[tokio::test]
async fn a_sync_that_waits_is_woken_by_a_message() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let query = format!("{}&timeout=30000", next(&bob.sync("").await));
    let (sync, ()) = tokio::join!(bob.sync(&query), async {
        send(&alice, &bob.id, &bob.device_id, "1", json!({ "n": 1 })).await;
    });
    assert_eq!(contents(&sync), [json!({ "n": 1 })]);
}

#[tokio::test]
async fn a_wildcard_means_all_devices_and_a_name_means_one() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let phone = device(&server, "bob", "PHONE").await;
    let body = json!({ "messages": {
        bob.id.as_str(): { "*": { "to": "all" }, "PHONE": { "to": "phone" }, "NONE": { "to": "none" } },
        "@nobody:localhost": { "*": {} },
    } });
    alice.put("/sendToDevice/m.test/1", body).await.ok();
    send(&alice, &bob.id, "*", "2", json!({ "to": "each" })).await;
    let (all, phones, each) = (
        json!({ "to": "all" }),
        json!({ "to": "phone" }),
        json!({ "to": "each" }),
    );
    assert_eq!(waiting(&bob, "").await, [all, each.clone()]);
    assert_eq!(waiting(&phone, "").await, [phones, each]);
    assert!(waiting(&alice, "").await.is_empty());
}

#[tokio::test]
async fn a_transaction_id_counts_once_for_each_type_and_device() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let tablet = device(&server, "alice", "TABLET").await;
    for (from, n) in [(&alice, 1), (&alice, 2), (&tablet, 3)] {
        send(from, &bob.id, "*", "1", json!({ "n": n })).await;
    }
    let body = json!({ "messages": { bob.id.as_str(): { "*": { "n": 4 } } } });
    alice.put("/sendToDevice/m.other/1", body).await.ok();
    let expected = [1, 3, 4].map(|n| json!({ "n": n }));
    assert_eq!(waiting(&bob, "").await, expected);
}

#[tokio::test]
async fn many_messages_come_in_parts_and_in_order() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for n in 0..250 {
        send(
            &alice,
            &bob.id,
            &bob.device_id,
            &n.to_string(),
            json!({ "n": n }),
        )
        .await;
    }
    let (mut since, mut all) = (String::new(), Vec::new());
    for expected in [100, 100, 50] {
        // Who has more to get need not wait for it.
        let query = format!("{since}&timeout=60000");
        let sync = tokio::time::timeout(Duration::from_secs(20), bob.sync(&query)).await;
        let sync = sync.expect("there is more");
        assert_eq!(contents(&sync).len(), expected);
        all.extend(contents(&sync));
        since = next(&sync);
    }
    let expected: Vec<Value> = (0..250).map(|n| json!({ "n": n })).collect();
    assert_eq!(all, expected);
    assert!(contents(&bob.sync(&since).await).is_empty());

    // Large ones come in smaller parts.
    for n in 0..40 {
        let content = json!({ "n": n, "text": "x".repeat(60 << 10) });
        send(&alice, &bob.id, &bob.device_id, &format!("l{n}"), content).await;
    }
    let sync = bob.sync(&since).await;
    assert!((1..40).contains(&contents(&sync).len()));
    let got = waiting(&bob, &since).await;
    let numbers: Vec<_> = got.iter().map(|content| content["n"].clone()).collect();
    assert_eq!(json!(numbers), json!((0..40).collect::<Vec<_>>()));
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let to = |content: Value| json!({ "messages": { bob.id.as_str(): { "*": content } } });
    let long = "x".repeat(256);
    for (path, body, status, errcode) in [
        (
            "1",
            to(json!({ "a": "x".repeat(64 << 10) })),
            413,
            "M_TOO_LARGE",
        ),
        ("2", json!({ "messages": [] }), 400, "M_BAD_JSON"),
        ("3", json!({}), 400, "M_MISSING_PARAM"),
        (&long, to(json!({})), 400, "M_INVALID_PARAM"),
        (
            "6",
            json!({ "messages": { "@zoe:else.example": { &long: {} } } }),
            400,
            "M_INVALID_PARAM",
        ),
    ] {
        let path = format!("/sendToDevice/m.test/{path}");
        alice.put(&path, body).await.fails(status, errcode);
    }
    let path = format!("/sendToDevice/{}/5", "m.".repeat(2000));
    alice
        .put(&path, to(json!({})))
        .await
        .fails(413, "M_TOO_LARGE");
    let many: serde_json::Map<_, _> = (0..10_001).map(|n| (format!("D{n}"), json!({}))).collect();
    let body = json!({ "messages": { bob.id.as_str(): many } });
    let answer = alice.put("/sendToDevice/m.test/4", body).await;
    answer.fails(413, "M_TOO_LARGE");
    assert!(waiting(&bob, "").await.is_empty());
}

/// The messages for devices that a server was sent, in their order, each once.
fn came(other: &FakeServer) -> Vec<Value> {
    messages(&other.recorded())
}

/// The messages of some requests, each once.
fn messages(requests: &[Recorded]) -> Vec<Value> {
    let mut ids = Vec::new();
    let mut contents = Vec::new();
    for request in requests {
        for edu in request.body["edus"].as_array().into_iter().flatten() {
            let id = &edu["content"]["message_id"];
            if edu["edu_type"] == "m.direct_to_device" && !ids.contains(id) {
                ids.push(id.clone());
                contents.push(edu["content"].clone());
            }
        }
    }
    contents
}

fn has_message(request: &Recorded) -> bool {
    request.body.to_string().contains("m.direct_to_device")
}

#[tokio::test]
async fn messages_reach_other_servers_also_after_an_outage_and_a_restart() {
    let server = TestServer::federated().await;
    let other = FakeServer::start().await;
    other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    let alice = server.register("alice").await;
    let zoe = format!("@zoe:{}", other.name);
    send(&alice, &zoe, "*", "1", json!({ "n": 1 })).await;
    other.wait_for(has_message).await;
    let expected =
        json!({ "sender": alice.id, "type": "m.test", "messages": { &zoe: { "*": { "n": 1 } } } });
    let mut first = came(&other).remove(0);
    assert!(
        first
            .as_object_mut()
            .unwrap()
            .remove("message_id")
            .is_some()
    );
    assert_eq!(first, expected);

    other.refuses(Method::PUT, SEND, 500, "M_UNKNOWN");
    let before = other.recorded().len();
    for n in 2..=120 {
        send(&alice, &zoe, "PHONE", &n.to_string(), json!({ "n": n })).await;
    }
    let is_refused = |_: &Recorded| other.recorded().len() > before;
    other.wait_for(is_refused).await;
    let server = server.restart().await;
    other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    server.app.clock.advance(Duration::from_mins(2));
    let is_last = |request: &Recorded| request.body.to_string().contains("{\"n\":120}");
    other.wait_for(is_last).await;
    let messages = came(&other);
    let numbers: Vec<_> = messages
        .iter()
        .skip(1)
        .map(|message| message["messages"][&zoe]["PHONE"]["n"].clone())
        .collect();
    assert_eq!(json!(numbers), json!((2..=120).collect::<Vec<_>>()));
}

/// Many servers take no requests of more than a mebibyte.
#[tokio::test]
async fn what_waits_is_sent_in_parts_that_servers_take() {
    let server = TestServer::federated().await;
    let other = FakeServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let room = FakeRoom::join(&other, &server, &room).await;
    other.refuses(Method::PUT, SEND, 500, "M_UNKNOWN");
    let large = "x".repeat(60_000);
    for n in 1..=14 {
        let text = json!({ "msgtype": "m.text", "body": format!("{n} {large}") });
        let path = format!("/rooms/{}/send/m.room.message/{n}", room.id);
        alice.put(&path, text).await.ok();
        let text = json!({ "n": n, "text": &large });
        send(&alice, room.user.as_str(), "*", &n.to_string(), text).await;
    }
    let before = other.recorded().len();
    other.on(Method::PUT, SEND, |request| {
        if request.body.to_string().len() > 1 << 20 {
            return error(413, "M_TOO_LARGE");
        }
        Json(json!({ "pdus": {} })).into_response()
    });
    server.app.clock.advance(Duration::from_mins(2));
    let came = || messages(&other.recorded()[before..]).len();
    let has_all = |request: &Recorded| request.body.to_string().contains("14 xxx") && came() == 14;
    other.wait_for(has_all).await;
}

#[tokio::test]
async fn for_a_server_that_is_away_only_the_newest_messages_are_kept() {
    let server = TestServer::federated().await;
    let (other, third) = (FakeServer::start().await, FakeServer::start().await);
    for other in [&other, &third] {
        other.refuses(Method::PUT, SEND, 500, "M_UNKNOWN");
    }
    let alice = server.register("alice").await;
    let zoe = format!("@zoe:{}", other.name);
    let yan = format!("@yan:{}", third.name);
    for n in 1..=7 {
        send(&alice, &zoe, "PHONE", &n.to_string(), json!({ "n": n })).await;
    }
    send(&alice, &yan, "PHONE", "8", json!({ "n": 8 })).await;
    homing::to_device::drop_oldest(&server.app, 3)
        .await
        .unwrap();
    let server = server.restart().await;
    for other in [&other, &third] {
        other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    }
    let before = other.recorded().len();
    server.app.clock.advance(Duration::from_mins(2));
    let is_last = |n| move |request: &Recorded| request.body.to_string().contains(n);
    other.wait_for(is_last("{\"n\":7}")).await;
    let numbers: Vec<_> = messages(&other.recorded()[before..])
        .iter()
        .map(|message| message["messages"][&zoe]["PHONE"]["n"].clone())
        .collect();
    assert_eq!(json!(numbers), json!([5, 6, 7]));
    third.wait_for(is_last("{\"n\":8}")).await;
}

#[tokio::test]
async fn what_other_servers_do_not_understand_is_refused() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let body = json!({ "messages": { "@zoe:other.example": { "*": { "n": 1.5 } } } });
    let answer = alice.put("/sendToDevice/m.test/1", body).await;
    answer.fails(400, "M_BAD_JSON");
}

/// Contents that keep clients from reading anything that comes with them.
fn unreadable() -> [String; 6] {
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    let rest = ["5", "null", "[]", r#"{"a":1e999}"#, r#"{"a":"\ud800"}"#];
    let [five, null, list, huge, half] = rest.map(str::to_owned);
    [nested, five, null, list, huge, half]
}

#[tokio::test]
async fn what_clients_cannot_read_is_not_for_them() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let zoe = format!("@zoe:{}", other.name);
    for (number, content) in unreadable().into_iter().enumerate() {
        let messages = format!(r#"{{"{}":{{"*":{content}}}}}"#, alice.id);
        let path = format!("/_matrix/client/v3/sendToDevice/m.test/{number}");
        let request = server.http.put(format!("http://{}{path}", server.address));
        let request = request
            .bearer_auth(&alice.token)
            .body(format!(r#"{{"messages":{messages}}}"#));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 400, "{content}");

        let edu = format!(
            r#"{{"edu_type":"m.direct_to_device","content":{{
                "message_id":"{number}","sender":"{zoe}","type":"m.test","messages":{messages}}}}}"#
        );
        let good = json!({ "edu_type": "m.direct_to_device", "content": {
            "message_id": format!("good {number}"), "sender": zoe, "type": "m.test",
            "messages": { &alice.id: { "*": { "n": number } } },
        } });
        let body = format!(
            r#"{{"origin":"{}","origin_server_ts":1,"pdus":[],"edus":[{edu},{good}]}}"#,
            other.name
        );
        let path = format!("{SEND}{number}");
        let answer = other.put_text(&server, &path, body).await;
        assert_eq!(answer.ok(), json!({ "pdus": {} }));
    }
    let expected: Vec<_> = (0..6).map(|n| json!({ "n": n })).collect();
    assert_eq!(waiting(&alice, "").await, expected);
}

#[tokio::test]
async fn messages_of_other_servers_arrive_once() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let zoe = format!("@zoe:{}", other.name);
    let edu = |id: &str, sender: &str, n: i64| {
        let messages = json!({ alice.id.as_str(): { "*": { "n": n } } });
        json!({ "edu_type": "m.direct_to_device", "content": {
            "message_id": id, "sender": sender, "type": "m.test", "messages": messages,
        } })
    };
    let large = "x".repeat(256);
    for (txn, edus) in [
        json!([edu("a", &zoe, 1), edu("b", &zoe, 2)]),
        json!([edu("b", &zoe, 3), edu("c", &zoe, 4)]),
        json!([
            edu("d", "@zoe:else.example", 5),
            edu(&large, &zoe, 6),
            edu("e", &alice.id, 7)
        ]),
        json!([edu("f", &zoe, 8)]),
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({ "origin": other.name, "origin_server_ts": 1, "pdus": [], "edus": edus });
        let answer = other.put(&server, &format!("{SEND}{txn}"), body).await;
        assert_eq!(answer.ok(), json!({ "pdus": {} }));
    }
    let expected = [1, 2, 4, 8].map(|n| json!({ "n": n }));
    assert_eq!(waiting(&alice, "").await, expected);
}

#[tokio::test]
async fn of_a_message_that_is_for_nobody_nothing_is_kept() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    let zoe = format!("@zoe:{}", other.name);
    let alice = format!("@alice:{}", server.name());
    let say = async |txn: &str, id: &str, device: &str| {
        let messages = json!({ &alice: { device: { "n": 1 } } });
        let edu = json!({ "edu_type": "m.direct_to_device", "content": {
            "message_id": id, "sender": zoe, "type": "m.test", "messages": messages,
        } });
        let body =
            json!({ "origin": other.name, "origin_server_ts": 1, "pdus": [], "edus": [edu] });
        let answer = other.put(&server, &format!("{SEND}{txn}"), body).await;
        assert_eq!(answer.ok(), json!({ "pdus": {} }));
    };
    // She is not here, and then has no such device: there is nothing that could come twice.
    say("1", "a", "*").await;
    let user = server.register("alice").await;
    say("2", "b", "PHONE").await;
    let phone = device(&server, "alice", "PHONE").await;
    assert!(waiting(&phone, "").await.is_empty());
    say("3", "a", "PHONE").await;
    say("4", "b", "PHONE").await;
    for txn in ["5", "6"] {
        say(txn, "a", "*").await;
    }
    assert_eq!(waiting(&phone, "").await.len(), 2);
    assert!(waiting(&user, "").await.is_empty());
}

#[tokio::test]
async fn what_waits_for_a_device_goes_with_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let phone = device(&server, "bob", "PHONE").await;
    send(&alice, &bob.id, "*", "1", json!({ "n": 1 })).await;
    phone.post("/logout", json!({})).await.ok();
    let phone = device(&server, "bob", "PHONE").await;
    assert!(waiting(&phone, "").await.is_empty());
    assert_eq!(waiting(&bob, "").await.len(), 1);
}
