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

async fn page(user: &User<'_>, next: Option<&str>, criteria: Value) -> Value {
    let path = next.map_or_else(
        || "/search".to_owned(),
        |next| format!("/search?next_batch={next}"),
    );
    let body = json!({ "search_categories": { "room_events": criteria } });
    let answer = user.post(&path, body).await.ok();
    answer["search_categories"]["room_events"].clone()
}

/// All results, and the counts that the pages told. Each page but the last is full.
async fn pages(
    user: &User<'_>,
    mut next: Option<String>,
    criteria: Value,
) -> (Vec<String>, Vec<i64>) {
    let limit = criteria["filter"]["limit"].as_u64().unwrap();
    let (mut all, mut counts) = (Vec::new(), Vec::new());
    loop {
        let results = page(user, next.as_deref(), criteria.clone()).await;
        let found = found(&results);
        counts.push(results["count"].as_i64().unwrap());
        next = results["next_batch"].as_str().map(str::to_owned);
        if next.is_some() {
            assert_eq!(found.len() as u64, limit, "{results}");
        }
        all.extend(found.into_iter().map(str::to_owned));
        if next.is_none() {
            return (all, counts);
        }
    }
}

#[tokio::test]
async fn every_page_tells_how_many_results_there_are() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let mut sent = Vec::new();
    for number in 0..6 {
        for user in [&alice, &bob] {
            let text = format!("needle {number} of {}", user.id);
            user.say(&room, &text).await;
            sent.push(text);
        }
    }
    sent.reverse();
    let of_bob: Vec<String> = sent
        .iter()
        .filter(|text| text.contains("bob"))
        .cloned()
        .collect();
    for order in ["recent", "rank"] {
        let criteria =
            |filter: Value| json!({ "search_term": "needle", "order_by": order, "filter": filter });
        let (found, counts) = pages(&alice, None, criteria(json!({ "limit": 4 }))).await;
        assert_eq!(found, sent, "alike ones are in the order of time");
        assert_eq!(counts, [12; 4], "the last page is empty");
        let filter = json!({ "limit": 4, "senders": [bob.id] });
        let (found, counts) = pages(&alice, None, criteria(filter)).await;
        assert_eq!((found, counts), (of_bob.clone(), vec![6; 2]));
        let filter = json!({ "limit": 6, "not_senders": [alice.id] });
        let (found, counts) = pages(&alice, None, criteria(filter)).await;
        assert_eq!((found, counts), (of_bob.clone(), vec![6; 2]));
    }
    let best = json!({ "search_term": "needle 3", "filter": { "limit": 4 } });
    assert_eq!(pages(&alice, None, best).await.1, [2]);
    let nothing = page(&alice, None, json!({ "search_term": "haystack" })).await;
    assert_eq!(
        (&nothing["results"], &nothing["count"]),
        (&json!([]), &json!(0))
    );
    for path in [
        "/search?next_batch=k1_2",
        "/search?next_batch=r1_2_3~x4",
        "/search?next_batch=r1_2_3",
    ] {
        let body = json!({ "search_categories": { "room_events": { "search_term": "needle" } } });
        alice.post(path, body).await.fails(400, "M_INVALID_PARAM");
    }
}

#[tokio::test]
async fn groups_go_on_by_themselves() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (mut rooms, mut sent) = (Vec::new(), Vec::new());
    for name in ["one", "two"] {
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        for number in 0..3 {
            for user in [&alice, &bob] {
                let text = format!("needle {number} in {name} of {}", user.id);
                user.say(&room, &text).await;
                sent.push((room.clone(), user.id.clone(), text));
            }
        }
        rooms.push(room);
    }
    sent.reverse();
    for order in ["recent", "rank"] {
        let criteria = json!({
            "search_term": "needle", "order_by": order, "filter": { "limit": 8 },
            "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
        });
        let first = page(&alice, None, criteria.clone()).await;
        let rest = &sent[8..];
        for room in &rooms {
            let next = first["groups"]["room_id"][room]["next_batch"].as_str();
            let (found, _) = pages(&alice, next.map(str::to_owned), criteria.clone()).await;
            let wanted = rest.iter().filter(|(of, ..)| of == room);
            let wanted: Vec<_> = wanted.map(|(.., text)| text.clone()).collect();
            assert_eq!(found, wanted, "{order}");
        }
        for user in [&alice, &bob] {
            let next = first["groups"]["sender"][&user.id]["next_batch"].as_str();
            let (found, _) = pages(&alice, next.map(str::to_owned), criteria.clone()).await;
            let wanted = rest.iter().filter(|(_, of, _)| *of == user.id);
            let wanted: Vec<_> = wanted.map(|(.., text)| text.clone()).collect();
            assert_eq!(found, wanted, "{order}");
        }
        let orders = |key: &str, value: &str| first["groups"][key][value]["order"].clone();
        assert_eq!(orders("room_id", &rooms[1]), 0);
        assert_eq!(orders("room_id", &rooms[0]), 1);
        assert_eq!(orders("sender", &bob.id), 0);
    }
}

#[tokio::test]
async fn pages_are_full_although_much_may_not_be_seen() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    for number in 0..4 {
        alice.say(&room, &format!("needle {number}")).await;
    }
    let path = format!("/rooms/{room}/state/m.room.history_visibility");
    let joined = json!({ "history_visibility": "joined" });
    alice.put(&path, joined).await.ok();
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    for _ in 0..80 {
        alice.say(&room, "a needle that bob may not see").await;
    }
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    alice.say(&room, "needle 4").await;
    for order in ["recent", "rank"] {
        let criteria =
            json!({ "search_term": "needle", "order_by": order, "filter": { "limit": 2 } });
        let (mut found, counts) = pages(&bob, None, criteria.clone()).await;
        found.sort();
        let wanted: Vec<_> = (0..5).map(|number| format!("needle {number}")).collect();
        assert_eq!(found, wanted, "{order}");
        assert!(counts[0] >= 5);
        let all = json!({ "search_term": "needle", "order_by": order, "filter": { "limit": 50 } });
        assert_eq!(search(&bob, all).await["count"], 5, "exact if it is all");
    }
}
