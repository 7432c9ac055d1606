//! "Server-side search".

use serde_json::{Value, json};

use crate::server::{TestServer, User};

async fn search(user: &User<'_>, criteria: Value) -> Value {
    let body = json!({ "search_categories": { "room_events": criteria } });
    let answer = user.post("/search", body).await.ok();
    answer["search_categories"]["room_events"].clone()
}

fn found(results: &Value) -> Vec<&str> {
    let results = results["results"].as_array().map_or(&[][..], Vec::as_slice);
    results
        .iter()
        .map(|result| {
            let content = &result["result"]["content"];
            let text = ["body", "name", "topic"].map(|key| content[key].as_str());
            text.into_iter().flatten().next().expect("a text")
        })
        .collect()
}

#[tokio::test]
async fn words_are_found_where_the_reader_may_look() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice
        .create_room(json!({ "preset": "public_chat", "name": "Chess club" }))
        .await;
    let other = alice
        .create_room(json!({ "preset": "private_chat", "topic": "the chess of others" }))
        .await;
    let regret = alice.say(&room, "chess is boring").await;
    alice.say(&room, "I like CHESS, and tea").await;
    alice.say(&other, "secret chess").await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    bob.say(&room, "tea only").await;
    let term = |term: &str| json!({ "search_term": term, "order_by": "recent" });
    let all = search(&alice, term("chess")).await;
    let everything = [
        "secret chess",
        "I like CHESS, and tea",
        "chess is boring",
        "the chess of others",
        "Chess club",
    ];
    assert_eq!(found(&all), everything);
    assert_eq!(all["highlights"], json!(["chess"]));
    assert_eq!(all["count"], 5);
    assert!(all["results"][0]["rank"].is_number());
    assert!(all["results"][0].get("context").is_none());
    let own = search(&bob, term("chess")).await;
    assert_eq!(
        found(&own),
        ["I like CHESS, and tea", "chess is boring", "Chess club"]
    );
    for (criteria, expected) in [
        (term("tea chess"), &["I like CHESS, and tea"][..]),
        (term("nothing"), &[]),
        (term("!?"), &[]),
        (term("\" OR words"), &[]),
        (
            json!({ "search_term": "chess", "keys": ["content.name"] }),
            &["Chess club"],
        ),
        (
            json!({ "search_term": "chess", "keys": ["content.topic"] }),
            &["the chess of others"],
        ),
        (
            json!({ "search_term": "tea", "filter": { "senders": [bob.id] } }),
            &["tea only"],
        ),
        (
            json!({ "search_term": "chess", "filter": { "rooms": [other], "types": ["m.room.message"] } }),
            &["secret chess"],
        ),
        (
            json!({ "search_term": "boring", "filter": { "not_rooms": [room] } }),
            &[],
        ),
    ] {
        let results = search(&alice, criteria.clone()).await;
        assert_eq!(found(&results), expected, "{criteria}");
    }
    alice
        .put(&format!("/rooms/{room}/redact/{regret}/r"), json!({}))
        .await
        .ok();
    let results = search(&alice, term("boring")).await;
    assert_eq!(found(&results), [""; 0]);
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    alice.say(&room, "tea without bob").await;
    let results = search(&bob, term("tea")).await;
    assert_eq!(found(&results), ["tea only", "I like CHESS, and tea"]);
}

#[tokio::test]
async fn results_come_in_pages_with_context_groups_and_state() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let own = format!("/rooms/{room}/state/m.room.member/{}", alice.id);
    let named = json!({ "membership": "join", "displayname": "Alice" });
    alice.put(&own, named).await.ok();
    for number in 0..5 {
        alice.say(&room, &format!("needle {number}")).await;
        alice.say(&room, &format!("hay {number}")).await;
    }
    for order in ["recent", "rank"] {
        let criteria =
            json!({ "search_term": "needle", "order_by": order, "filter": { "limit": 2 } });
        let body = json!({ "search_categories": { "room_events": criteria } });
        let mut all = Vec::new();
        let mut path = "/search".to_owned();
        loop {
            let answer = alice.post(&path, body.clone()).await.ok();
            let results = &answer["search_categories"]["room_events"];
            all.extend(found(results).into_iter().map(str::to_owned));
            match results["next_batch"].as_str() {
                Some(token) => path = format!("/search?next_batch={token}"),
                None => break,
            }
        }
        all.sort();
        let expected: Vec<_> = (0..5).map(|number| format!("needle {number}")).collect();
        assert_eq!(all, expected, "{order}");
    }
    let results = search(
        &alice,
        json!({
            "search_term": "needle 2", "include_state": true,
            "event_context": { "before_limit": 1, "after_limit": 2, "include_profile": true },
            "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
        }),
    )
    .await;
    let context = &results["results"][0]["context"];
    assert_eq!(
        crate::messages::bodies(&context["events_before"]),
        ["hay 1"]
    );
    assert_eq!(
        crate::messages::bodies(&context["events_after"]),
        ["hay 2", "needle 3"]
    );
    assert_eq!(context["profile_info"][&alice.id]["displayname"], "Alice");
    let id = &results["results"][0]["result"]["event_id"];
    assert_eq!(results["groups"]["room_id"][&room]["results"], json!([id]));
    assert_eq!(
        results["groups"]["sender"][&alice.id]["results"],
        json!([id])
    );
    assert!(!results["state"][&room].as_array().unwrap().is_empty());
    for (path, criteria, code) in [
        (
            "/search?next_batch=x",
            json!({ "search_term": "a" }),
            "M_INVALID_PARAM",
        ),
        (
            "/search",
            json!({ "search_term": "a", "order_by": "luck" }),
            "M_INVALID_PARAM",
        ),
        ("/search", json!({}), "M_MISSING_PARAM"),
        ("/search", json!({ "search_term": 1 }), "M_BAD_JSON"),
    ] {
        let body = json!({ "search_categories": { "room_events": criteria } });
        alice.post(path, body).await.fails(400, code);
    }
}
