use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    push_gateway::{Gateway, reachable, set},
    server::{PASSWORD, TestServer, User},
};

async fn pushers(user: &User<'_>) -> Vec<Value> {
    let answer = user.get("/pushers").await.ok();
    answer["pushers"].as_array().expect("a list").clone()
}

async fn keys(user: &User<'_>) -> Vec<String> {
    let pushers = pushers(user).await;
    let keys = pushers.iter().map(|one| one["pushkey"].as_str().unwrap());
    keys.map(ToOwned::to_owned).collect()
}

fn pusher(pushkey: &str) -> Value {
    json!({
        "kind": "http",
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "app_display_name": "An app",
        "device_display_name": "A phone",
        "profile_tag": "tag",
        "lang": "en",
        "data": {
            "url": "https://push.example/_matrix/push/v1/notify",
            "format": "event_id_only",
            "default_payload": { "aps": { "mutable-content": 1 } },
        },
    })
}

#[tokio::test]
async fn pushers_are_set_changed_and_removed() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    assert_eq!(pushers(&alice).await, [] as [Value; 0]);
    set(&alice, pusher("one")).await.ok();
    assert_eq!(pushers(&alice).await, [pusher("one")]);
    set(&alice, pusher("two")).await.ok();
    let mut changed = pusher("one");
    changed["lang"] = "de".into();
    changed["data"]["more"] = json!([1, 2]);
    set(&alice, changed.clone()).await.ok();
    assert_eq!(pushers(&alice).await, [changed.clone(), pusher("two")]);
    let mut other = pusher("one");
    other["app_id"] = "org.example.other".into();
    set(&alice, other.clone()).await.ok();
    let gone = json!({ "app_id": "org.example.app", "pushkey": "one", "kind": null });
    set(&alice, gone.clone()).await.ok();
    assert_eq!(pushers(&alice).await, [pusher("two"), other]);
    set(&alice, gone).await.ok();
    let server = TestServer::start().await;
    let answer = server.request(Method::GET, "/_matrix/client/v3/pushers", None, None);
    answer.await.fails(401, "M_MISSING_TOKEN");
}

#[tokio::test]
async fn a_key_is_one_persons_unless_others_are_to_stay() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    set(&alice, pusher("shared")).await.ok();
    set(&alice, pusher("own")).await.ok();
    let mut more = pusher("shared");
    more["append"] = true.into();
    set(&bob, more).await.ok();
    assert_eq!(keys(&alice).await, ["shared", "own"]);
    assert_eq!(keys(&bob).await, ["shared"]);
    let mut other = pusher("shared");
    other["app_id"] = "org.example.other".into();
    set(&bob, other).await.ok();
    assert_eq!(keys(&alice).await, ["shared", "own"], "of another app");
    set(&bob, pusher("shared")).await.ok();
    assert_eq!(keys(&alice).await, ["own"]);
    assert_eq!(keys(&bob).await, ["shared", "shared"]);
}

#[tokio::test]
async fn impossible_pushers_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let with = |path: &str, value: Value| {
        let mut changed = pusher("key");
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    let without = |field: &str| {
        let mut changed = pusher("key");
        changed.as_object_mut().unwrap().remove(field);
        changed
    };
    let url = |url: &str| with("/data/url", url.into());
    for (body, status, code) in [
        (
            with("/pushkey", "a".repeat(513).into()),
            400,
            "M_INVALID_PARAM",
        ),
        (with("/pushkey", "".into()), 400, "M_INVALID_PARAM"),
        (
            with("/app_id", "a".repeat(65).into()),
            400,
            "M_INVALID_PARAM",
        ),
        (with("/app_id", "".into()), 400, "M_INVALID_PARAM"),
        (
            with("/lang", "a".repeat(1025).into()),
            400,
            "M_INVALID_PARAM",
        ),
        (with("/kind", "email".into()), 400, "M_INVALID_PARAM"),
        (with("/kind", "pigeon".into()), 400, "M_INVALID_PARAM"),
        (with("/kind", 1.into()), 400, "M_BAD_JSON"),
        (without("kind"), 400, "M_MISSING_PARAM"),
        (without("app_id"), 400, "M_MISSING_PARAM"),
        (without("pushkey"), 400, "M_MISSING_PARAM"),
        (without("app_display_name"), 400, "M_MISSING_PARAM"),
        (without("device_display_name"), 400, "M_MISSING_PARAM"),
        (without("lang"), 400, "M_MISSING_PARAM"),
        (without("data"), 400, "M_MISSING_PARAM"),
        (with("/data", json!({})), 400, "M_MISSING_PARAM"),
        (
            url("http://push.example/_matrix/push/v1/notify"),
            400,
            "M_INVALID_PARAM",
        ),
        (url("https://push.example/notify"), 400, "M_INVALID_PARAM"),
        (url("nonsense"), 400, "M_INVALID_PARAM"),
        (
            with("/data/default_payload", "a".repeat(16 << 10).into()),
            413,
            "M_TOO_LARGE",
        ),
    ] {
        let text = body.to_string();
        let answer = set(&alice, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body["errcode"].as_str()),
            (status, Some(code)),
            "{} for {}",
            answer.body,
            &text[..text.len().min(400)]
        );
    }
    assert_eq!(pushers(&alice).await, [] as [Value; 0]);
    set(&alice, with("/app_id", "ä".repeat(64).into()))
        .await
        .ok();
    for number in 1..100 {
        set(&alice, pusher(&number.to_string())).await.ok();
    }
    set(&alice, pusher("one more"))
        .await
        .fails(413, "M_TOO_LARGE");
    set(&alice, pusher("7")).await.ok();
    set(
        &alice,
        json!({ "app_id": "org.example.app", "pushkey": "7", "kind": null }),
    )
    .await
    .ok();
    set(&alice, pusher("one more")).await.ok();
}

/// Signs alice in once more.
async fn login(server: &TestServer, more: Value) -> User<'_> {
    User::new(server, &server.login("alice", PASSWORD, more).await.ok())
}

#[tokio::test]
async fn pushers_go_with_the_devices_that_set_them() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    set(&alice, pusher("first")).await.ok();
    for (number, ends) in ["logout", "delete", "delete_devices", "login"]
        .into_iter()
        .enumerate()
    {
        let other = login(&server, json!({})).await;
        let key = format!("other {number}");
        set(&other, pusher(&key)).await.ok();
        assert_eq!(keys(&alice).await, ["first".to_owned(), key]);
        match ends {
            "logout" => drop(other.post("/logout", json!({})).await.ok()),
            "login" => drop(login(&server, json!({ "device_id": other.device_id })).await),
            "delete" => {
                let path = format!("/devices/{}", other.device_id);
                let deleted = alice.send_with_password(Method::DELETE, &path, json!({}));
                deleted.await.ok();
            }
            _ => {
                let body = json!({ "devices": [other.device_id] });
                let deleted = alice.send_with_password(Method::POST, "/delete_devices", body);
                deleted.await.ok();
            }
        }
        assert_eq!(keys(&alice).await, ["first"], "{ends}");
    }

    // What another device sets anew is its own from then on.
    let other = login(&server, json!({})).await;
    set(&other, pusher("first")).await.ok();
    set(&alice, pusher("own")).await.ok();
    other.post("/logout", json!({})).await.ok();
    assert_eq!(keys(&alice).await, ["own"]);

    // A new password ends all other devices, unless it is not to.
    let other = login(&server, json!({})).await;
    set(&other, pusher("other")).await.ok();
    let body = |logout| json!({ "new_password": PASSWORD, "logout_devices": logout });
    let changed =
        |logout| alice.send_with_password(Method::POST, "/account/password", body(logout));
    changed(false).await.ok();
    assert_eq!(keys(&alice).await, ["own", "other"]);
    changed(true).await.ok();
    assert_eq!(keys(&alice).await, ["own"]);
}

#[tokio::test]
async fn who_is_gone_is_told_nothing() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let other = User::new(
        &server,
        &server.login("bob", PASSWORD, json!({})).await.ok(),
    );
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    gateway.set(&bob, "stays").await;
    gateway.set(&other, "goes").await;
    let both = alice.say(&room, "both").await;
    gateway.wait_for("stays", &both).await;
    gateway.wait_for("goes", &both).await;
    other.post("/logout", json!({})).await.ok();
    let one = alice.say(&room, "one").await;
    gateway.wait_for("stays", &one).await;
    bob.post(
        "/pushers/set",
        json!({ "app_id": "org.example.app", "pushkey": "stays", "kind": null }),
    )
    .await
    .ok();
    alice.say(&room, "nobody").await;
    gateway.set(&bob, "stays").await;
    let last = alice.say(&room, "last").await;
    gateway.wait_for("stays", &last).await;
    assert_eq!(gateway.events("stays"), [both.clone(), one, last]);
    assert_eq!(gateway.events("goes"), [both]);
}
