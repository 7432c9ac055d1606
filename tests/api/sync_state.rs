//! "Syncing": state, members, and what a client learns after an absence.

use serde_json::{Value, json};

use crate::{
    server::TestServer,
    sync::{direct, events, filter, keys, next, said, sync_from},
};

#[tokio::test]
async fn a_long_absence_limits_the_timeline_and_tells_the_state_in_the_gap() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let start = bob.sync("").await;
    for (count, name) in ["First", "Second"].into_iter().enumerate() {
        let path = format!("/rooms/{room}/state/m.room.name/");
        alice.put(&path, json!({ "name": name })).await.ok();
        for text in 0..20 {
            alice.say(&room, &format!("{count} {text}")).await;
        }
    }
    let path = format!("/rooms/{room}/state/m.room.topic/");
    alice
        .put(&path, json!({ "topic": "In the timeline" }))
        .await
        .ok();
    let sync = sync_from(&bob, next(&start), "").await;
    let joined = &sync["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(events(&joined["timeline"]).len(), 10);
    assert!(
        joined["timeline"]["prev_batch"]
            .as_str()
            .unwrap()
            .starts_with('b')
    );
    let state = events(&joined["state"]);
    assert_eq!(state.len(), 1, "{state:?}");
    assert_eq!(state[0]["content"]["name"], "Second");

    for (query, section) in [
        ("use_state_after=true", "state_after"),
        (
            "org.matrix.msc4222.use_state_after=true",
            "org.matrix.msc4222.state_after",
        ),
    ] {
        let sync = sync_from(&bob, next(&start), query).await;
        let joined = &sync["rooms"]["join"][&room];
        assert!(joined.get("state").is_none());
        let state = events(&joined[section]);
        assert_eq!(keys(state, "m.room.name"), [""]);
        assert_eq!(keys(state, "m.room.topic"), [""]);
        assert_eq!(state.len(), 2, "{state:?}");
    }
    // All of the state, on request, as it was before the timeline or as it is after it.
    let full = sync_from(&bob, next(&sync), "full_state=true").await;
    let state = events(&full["rooms"]["join"][&room]["state"]);
    assert_eq!(keys(state, "m.room.create"), [""]);
    assert_eq!(keys(state, "m.room.topic"), [""]);
    assert_eq!(keys(state, "m.room.member").len(), 2);
}

#[tokio::test]
async fn the_state_of_an_initial_sync_is_that_before_the_timeline() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let path = format!("/rooms/{room}/state/m.room.name/");
    alice.put(&path, json!({ "name": "Old" })).await.ok();
    alice.say(&room, "one").await;
    alice.put(&path, json!({ "name": "New" })).await.ok();
    let query = filter(&json!({ "room": { "timeline": { "limit": 2 } } }));
    let before = bob.sync(&query).await;
    let names = |section: &Value| -> Vec<String> {
        let names = events(section)
            .iter()
            .filter(|event| event["type"] == "m.room.name");
        names
            .map(|event| event["content"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let joined = &before["rooms"]["join"][&room];
    assert_eq!(names(&joined["state"]), ["Old"]);
    assert_eq!(names(&joined["timeline"]), ["New"]);
    let event = events(&joined["timeline"]).last().unwrap();
    assert_eq!(event["unsigned"]["prev_content"]["name"], "Old");
    let after = bob.sync(&format!("{query}&use_state_after=true")).await;
    assert_eq!(
        names(&after["rooms"]["join"][&room]["state_after"]),
        ["New"]
    );
}

#[tokio::test]
async fn members_are_loaded_as_they_are_needed() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice
        .create_room(json!({ "preset": "public_chat", "name": "Big" }))
        .await;
    let mut people = Vec::new();
    for name in ["bob", "carol", "dave", "erin", "frank"] {
        let user = server.register(name).await;
        user.post(&format!("/join/{room}"), json!({})).await.ok();
        people.push(user);
    }
    let [bob, carol, dave, ..] = people.as_slice() else {
        unreachable!()
    };
    carol.say(&room, "hello").await;
    let state = json!({ "lazy_load_members": true });
    let lazy = filter(&json!({ "room": { "state": state, "timeline": { "limit": 1 } } }));
    let members = |sync: &Value| -> Vec<String> {
        let state = events(&sync["rooms"]["join"][&room]["state"]);
        keys(state, "m.room.member")
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    let first = bob.sync(&lazy).await;
    assert_eq!(members(&first), [&*bob.id, &*carol.id]);
    carol.say(&room, "again").await;
    let second = sync_from(bob, next(&first), &lazy).await;
    assert_eq!(members(&second), [""; 0]);
    dave.say(&room, "me too").await;
    let third = sync_from(bob, next(&second), &lazy).await;
    assert_eq!(members(&third), [&*dave.id]);
    // The answer may have been lost.
    let again = sync_from(bob, next(&second), &lazy).await;
    assert_eq!(members(&again), [&*dave.id]);
    let state = json!({ "lazy_load_members": true, "include_redundant_members": true });
    let redundant = filter(&json!({ "room": { "state": state, "timeline": { "limit": 1 } } }));
    carol.say(&room, "once more").await;
    let fourth = sync_from(bob, next(&third), &redundant).await;
    assert_eq!(members(&fourth), [&*carol.id]);
}

#[tokio::test]
async fn a_room_without_a_name_is_called_after_its_heroes() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let lazy = filter(&json!({ "room": { "state": { "lazy_load_members": true } } }));
    let first = alice.sync(&lazy).await;
    let summary = &first["rooms"]["join"][&room]["summary"];
    assert_eq!(summary["m.heroes"], json!([bob.id]));
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    let second = sync_from(&alice, next(&first), &lazy).await;
    let summary = &second["rooms"]["join"][&room]["summary"];
    assert_eq!(summary["m.joined_member_count"], 1);
    assert_eq!(summary["m.heroes"], json!([bob.id]), "he was there");
    let path = format!("/rooms/{room}/state/m.room.name/");
    alice.put(&path, json!({ "name": "Named" })).await.ok();
    let initial = alice.sync(&lazy).await;
    assert!(
        initial["rooms"]["join"][&room]["summary"]
            .get("m.heroes")
            .is_none()
    );
}

#[tokio::test]
async fn who_comes_back_learns_the_room_anew() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let start = bob.sync("").await;
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    for text in 0..12 {
        alice.say(&room, &format!("{text}")).await;
    }
    let body = json!({ "user_id": bob.id });
    alice
        .post(&format!("/rooms/{room}/invite"), body)
        .await
        .ok();
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let sync = sync_from(&bob, next(&start), "").await;
    let joined = &sync["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(keys(events(&joined["state"]), "m.room.create"), [""]);
    // A new display name is no new joining.
    let path = format!("/profile/{}/displayname", bob.id);
    let answer = bob.put(&path, json!({ "displayname": "Bobby" })).await;
    if answer.status == 200 {
        let sync = sync_from(&bob, next(&sync), "").await;
        let joined = &sync["rooms"]["join"][&room];
        assert_eq!(events(&joined["timeline"]).len(), 1);
        assert!(keys(events(&joined["state"]), "m.room.create").is_empty());
    }
}

#[tokio::test]
async fn history_that_one_may_not_see_is_not_in_the_timeline() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let visibility = json!({
        "type": "m.room.history_visibility", "content": { "history_visibility": "joined" }
    });
    let room = alice
        .create_room(json!({ "preset": "public_chat", "initial_state": [visibility] }))
        .await;
    alice.say(&room, "secret").await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    alice.say(&room, "open").await;
    let sync = bob.sync("").await;
    assert_eq!(said(&sync, &room), ["open"]);
    assert!(!sync.to_string().contains("secret"));
}

#[tokio::test]
async fn a_redaction_is_told_and_its_target_is_empty() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let start = bob.sync("").await;
    let event = alice.say(&room, "regret").await;
    let told = sync_from(&bob, next(&start), "").await;
    let path = format!("/rooms/{room}/redact/{event}/1");
    alice.put(&path, json!({ "reason": "oops" })).await.ok();
    let redaction = sync_from(&bob, next(&told), "").await;
    let timeline = events(&redaction["rooms"]["join"][&room]["timeline"]);
    assert_eq!(timeline[0]["type"], "m.room.redaction");
    assert_eq!(timeline[0]["redacts"], json!(event));
    let both = sync_from(&bob, next(&start), "").await;
    let timeline = events(&both["rooms"]["join"][&room]["timeline"]);
    assert_eq!(timeline[0]["content"], json!({}));
    let because = &timeline[0]["unsigned"]["redacted_because"];
    assert_eq!(because["content"]["reason"], "oops");
}

#[tokio::test]
async fn the_state_after_the_timeline_has_members_that_are_in_the_timeline_too() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    let state = json!({ "lazy_load_members": true });
    let lazy = filter(&json!({ "room": { "state": state, "timeline": { "limit": 20 } } }));
    let start = bob.sync(&lazy).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    for (query, section) in [
        ("use_state_after=true", "state_after"),
        (
            "org.matrix.msc4222.use_state_after=true",
            "org.matrix.msc4222.state_after",
        ),
    ] {
        let query = format!("{lazy}&{query}");
        let joined = sync_from(&bob, next(&start), &query).await;
        for sync in [&joined, &bob.sync(&query).await] {
            let joined = &sync["rooms"]["join"][&room];
            assert!(!events(&joined["timeline"]).is_empty());
            let state = events(&joined[section]);
            let mut members = keys(state, "m.room.member");
            members.sort_unstable();
            assert_eq!(members, [&*alice.id, &*bob.id]);
            let own = state.iter().find(|event| event["state_key"] == bob.id);
            assert_eq!(own.unwrap()["content"]["membership"], "join");
        }
        // Who has been told of already is not told again.
        alice.say(&room, "hello").await;
        let more = sync_from(&bob, next(&joined), &query).await;
        let state = events(&more["rooms"]["join"][&room][section]);
        assert!(state.is_empty(), "{state:?}");
    }
}

#[tokio::test]
async fn who_was_never_in_a_room_learns_nothing_of_its_state() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let start = next(&bob.sync("").await).to_owned();
    let left = filter(&json!({ "room": { "include_leave": true } }));
    for way in ["reject", "withdraw", "knock", "ban"] {
        let secret = [
            json!({ "type": "x.secret", "content": { "secret": way } }),
            json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }),
        ];
        let room = alice
            .create_room(json!({ "topic": "secret", "initial_state": secret }))
            .await;
        let about_bob = json!({ "user_id": bob.id });
        let leave = format!("/rooms/{room}/leave");
        match way {
            "knock" => drop(bob.post(&format!("/knock/{room}"), json!({})).await.ok()),
            "ban" => {
                let path = format!("/rooms/{room}/ban");
                alice.post(&path, about_bob.clone()).await.ok();
            }
            _ => {
                let path = format!("/rooms/{room}/invite");
                alice.post(&path, about_bob.clone()).await.ok();
            }
        }
        match way {
            "ban" => {}
            "withdraw" => {
                let path = format!("/rooms/{room}/kick");
                alice.post(&path, about_bob).await.ok();
            }
            _ => drop(bob.post(&leave, json!({})).await.ok()),
        }
        for query in [String::new(), "use_state_after=true".to_owned()] {
            for sync in [
                sync_from(&bob, &start, &query).await,
                bob.sync(&format!("{left}&{query}")).await,
            ] {
                let found = &sync["rooms"]["leave"][&room];
                let text = found.to_string();
                assert!(!text.contains("secret"), "{way} {query} {found}");
                assert!(!text.contains("m.room.create"), "{way} {query} {found}");
                let [own] = events(&found["timeline"]) else {
                    panic!("{way} {query} {found}")
                };
                assert_eq!(own["state_key"], bob.id, "{way}");
                let expected = if way == "ban" { "ban" } else { "leave" };
                assert_eq!(own["content"]["membership"], expected, "{way}");
                assert_eq!(own["unsigned"]["membership"], expected, "{way}");
            }
        }
    }
}

#[tokio::test]
async fn a_room_that_was_left_and_forgotten_is_told_as_left() {
    let server = TestServer::start().await;
    let (token, room, start) = {
        let (alice, bob, room) = direct(&server).await;
        let start = next(&bob.sync("").await).to_owned();
        alice.say(&room, "not for who has forgotten").await;
        bob.post(&format!("/rooms/{room}/leave"), json!({}))
            .await
            .ok();
        bob.post(&format!("/rooms/{room}/forget"), json!({}))
            .await
            .ok();
        let sync = sync_from(&bob, &start, "").await;
        let left = sync["rooms"]["leave"][&room].to_string();
        assert!(left.contains("\"leave\""), "{sync}");
        assert!(!left.contains("not for who"), "{left}");
        let sync = sync_from(&bob, next(&sync), "").await;
        assert!(sync["rooms"].is_null(), "only once: {sync}");
        let all = filter(&json!({ "room": { "include_leave": true } }));
        assert!(bob.sync(&all).await["rooms"].is_null());
        (bob.token.clone(), room, start)
    };
    let server = server.restart().await;
    let path = format!("/_matrix/client/v3/sync?since={start}");
    let request = server.request(reqwest::Method::GET, &path, Some(&token), None);
    let sync = request.await.ok();
    assert!(sync["rooms"]["leave"][&room].is_object(), "{sync}");
}
