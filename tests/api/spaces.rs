use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{TestServer, User};

async fn space(user: &User<'_>, name: &str, preset: &str) -> String {
    let body = json!({ "name": name, "preset": preset, "creation_content": { "type": "m.space" } });
    user.create_room(body).await
}

async fn room(user: &User<'_>, name: &str, preset: &str) -> String {
    user.create_room(json!({ "name": name, "preset": preset }))
        .await
}

async fn add(user: &User<'_>, space: &str, child: &str, content: Value) {
    let path = format!("/rooms/{space}/state/m.space.child/{child}");
    user.put(&path, content).await.ok();
}

fn via() -> Value {
    json!({ "via": ["localhost"] })
}

async fn tree(user: &User<'_>, space: &str, query: &str) -> Value {
    user.get(&format!(
        "/_matrix/client/v1/rooms/{space}/hierarchy?{query}"
    ))
    .await
    .ok()
}

fn names(page: &Value) -> Vec<&str> {
    let rooms = page["rooms"].as_array().expect("rooms");
    rooms
        .iter()
        .map(|room| room["name"].as_str().unwrap_or(""))
        .collect()
}

#[tokio::test]
async fn a_tree_is_walked_depth_first_in_the_order_of_the_children() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let root = space(&alice, "root", "public_chat").await;
    let sub = space(&alice, "sub", "public_chat").await;
    let [late, early, leaf, gone] = [
        room(&alice, "late", "public_chat").await,
        room(&alice, "early", "public_chat").await,
        room(&alice, "leaf", "public_chat").await,
        room(&alice, "gone", "public_chat").await,
    ];
    add(&alice, &root, &late, via()).await;
    add(
        &alice,
        &root,
        &early,
        json!({ "via": ["localhost"], "order": "b" }),
    )
    .await;
    add(
        &alice,
        &root,
        &sub,
        json!({ "via": ["localhost"], "order": "a", "suggested": true }),
    )
    .await;
    add(&alice, &root, &gone, json!({})).await;
    add(&alice, &sub, &leaf, via()).await;
    // A circle, a room met twice, and one that is not here.
    add(&alice, &sub, &root, via()).await;
    add(&alice, &sub, &late, via()).await;
    add(&alice, &root, "!unknown:elsewhere.org", via()).await;

    let all = tree(&alice, &root, "").await;
    assert_eq!(names(&all), ["root", "sub", "leaf", "late", "early"]);
    assert!(all.get("next_batch").is_none());
    let children = all["rooms"][0]["children_state"].as_array().unwrap();
    let keys: Vec<_> = children
        .iter()
        .map(|child| child["state_key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, [&sub, &early, &late, "!unknown:elsewhere.org"]);
    let child = &children[0];
    assert_eq!(child["type"], "m.space.child");
    assert_eq!(child["sender"], alice.id);
    assert_eq!(child["content"]["suggested"], true);
    assert!(child["origin_server_ts"].is_u64() && child.get("event_id").is_none());
    assert_eq!(all["rooms"][0]["room_type"], "m.space");
    assert_eq!(all["rooms"][2]["children_state"], json!([]));

    assert_eq!(names(&tree(&alice, &root, "max_depth=0").await), ["root"]);
    assert_eq!(
        names(&tree(&alice, &root, "max_depth=1").await),
        ["root", "sub", "early", "late"]
    );
    let suggested = tree(&alice, &root, "suggested_only=true").await;
    assert_eq!(names(&suggested), ["root", "sub"]);
    let links = suggested["rooms"][0]["children_state"].as_array();
    assert_eq!(links.unwrap().len(), 1);
}

#[tokio::test]
async fn a_tree_is_told_in_pages() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let root = space(&alice, "root", "public_chat").await;
    for name in ["a", "b", "c", "d"] {
        let child = room(&alice, name, "public_chat").await;
        add(
            &alice,
            &root,
            &child,
            json!({ "via": ["localhost"], "order": name }),
        )
        .await;
    }
    let (mut query, mut found) = ("limit=2&max_depth=3".to_owned(), Vec::new());
    loop {
        let page = tree(&alice, &root, &query).await;
        found.extend(names(&page).into_iter().map(ToOwned::to_owned));
        match page["next_batch"].as_str() {
            Some(next) => query = format!("limit=2&max_depth=3&from={next}"),
            None => break,
        }
    }
    assert_eq!(found, ["root", "a", "b", "c", "d"]);
    let next = tree(&alice, &root, "limit=2").await["next_batch"].clone();
    let next = next.as_str().unwrap();
    let path = format!("/_matrix/client/v1/rooms/{root}/hierarchy");
    for query in [
        format!("from={next}&max_depth=1"),
        format!("from={next}&suggested_only=true"),
        "from=nonsense".to_owned(),
        "limit=0".to_owned(),
        "limit=-1".to_owned(),
        "max_depth=-1".to_owned(),
        "max_depth=x".to_owned(),
        "suggested_only=2".to_owned(),
    ] {
        alice
            .get(&format!("{path}?{query}"))
            .await
            .fails(400, "M_INVALID_PARAM");
    }
}

#[tokio::test]
async fn people_see_the_rooms_that_they_may_know_of() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let root = space(&alice, "root", "public_chat").await;
    let secret = space(&alice, "secret", "private_chat").await;
    let inside = room(&alice, "inside", "public_chat").await;
    let open = room(&alice, "open", "private_chat").await;
    let knockable = room(&alice, "knockable", "private_chat").await;
    let members = room(&alice, "members", "private_chat").await;
    let invited = room(&alice, "invited", "private_chat").await;
    add(&alice, &secret, &inside, via()).await;
    for (order, child) in [&secret, &open, &knockable, &members, &invited]
        .into_iter()
        .enumerate()
    {
        add(
            &alice,
            &root,
            child,
            json!({ "via": ["localhost"], "order": order.to_string() }),
        )
        .await;
    }
    let set = |room: String, kind: &'static str, content: Value| {
        let alice = &alice;
        async move {
            alice
                .put(&format!("/rooms/{room}/state/{kind}/"), content)
                .await
                .ok();
        }
    };
    set(
        open,
        "m.room.history_visibility",
        json!({ "history_visibility": "world_readable" }),
    )
    .await;
    set(
        knockable,
        "m.room.join_rules",
        json!({ "join_rule": "knock" }),
    )
    .await;
    let allow = json!([{ "type": "m.room_membership", "room_id": root }]);
    set(
        members.clone(),
        "m.room.join_rules",
        json!({ "join_rule": "restricted", "allow": allow }),
    )
    .await;
    alice
        .post(
            &format!("/rooms/{invited}/invite"),
            json!({ "user_id": bob.id }),
        )
        .await
        .ok();

    assert_eq!(
        names(&tree(&bob, &root, "").await),
        ["root", "open", "knockable", "invited"]
    );
    bob.post(&format!("/join/{root}"), json!({})).await.ok();
    let page = tree(&bob, &root, "").await;
    assert_eq!(
        names(&page),
        ["root", "open", "knockable", "members", "invited"]
    );
    assert_eq!(page["rooms"][3]["join_rule"], "restricted");
    assert_eq!(page["rooms"][3]["allowed_room_ids"], json!([root]));
    assert_eq!(page["rooms"][1]["world_readable"], true);
    for hidden in [&secret, "!unknown:localhost"] {
        let path = format!("/_matrix/client/v1/rooms/{hidden}/hierarchy");
        bob.get(&path).await.fails(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn a_summary_tells_of_a_room() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let encryption =
        json!({ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } });
    let body = json!({ "preset": "public_chat", "name": "The Pub", "topic": "Ale", "room_alias_name": "pub", "initial_state": [encryption] });
    let open = alice.create_room(body).await;
    let expected = json!({
        "room_id": open, "name": "The Pub", "topic": "Ale", "canonical_alias": "#pub:localhost",
        "num_joined_members": 1, "world_readable": false, "guest_can_join": false,
        "encryption": "m.megolm.v1.aes-sha2", "room_version": "12", "join_rule": "public",
    });
    let closed = room(&alice, "closed", "private_chat").await;
    for path in [
        format!("/_matrix/client/v1/room_summary/{open}"),
        "/_matrix/client/v1/room_summary/%23pub:localhost".to_owned(),
        format!("/_matrix/client/unstable/im.nheko.summary/rooms/{open}/summary"),
        format!("/_matrix/client/unstable/im.nheko.summary/summary/{open}"),
    ] {
        let summary = server.request(Method::GET, &path, None, None).await.ok();
        assert_eq!(summary, expected);
        assert_eq!(alice.get(&path).await.ok()["membership"], "join");
        assert!(bob.get(&path).await.ok().get("membership").is_none());
    }
    let path = format!("/_matrix/client/v1/room_summary/{closed}");
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
    server
        .request(Method::GET, &path, None, None)
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .post(
            &format!("/rooms/{closed}/invite"),
            json!({ "user_id": bob.id }),
        )
        .await
        .ok();
    assert_eq!(bob.get(&path).await.ok()["membership"], "invite");
    for unknown in ["!unknown:localhost", "%23unknown:localhost"] {
        let path = format!("/_matrix/client/v1/room_summary/{unknown}");
        alice.get(&path).await.fails(404, "M_NOT_FOUND");
    }
    alice
        .get("/_matrix/client/v1/room_summary/nonsense")
        .await
        .fails(400, "M_INVALID_PARAM");
}
