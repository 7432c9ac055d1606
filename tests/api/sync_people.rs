//! "Syncing": what is the user's own, and what others do that is not kept.

use serde_json::{Value, json};

use crate::{
    server::{TestServer, User},
    sync::{direct, next},
};

/// Long polls until `wanted` finds something.
async fn until<T>(user: &User<'_>, since: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
    let mut since = since.to_owned();
    loop {
        let sync = user.sync(&format!("since={since}&timeout=20000")).await;
        if let Some(found) = wanted(&sync) {
            return found;
        }
        next(&sync).clone_into(&mut since);
    }
}

/// Who types in a room, if the sync tells.
fn typing(sync: &Value, room: &str) -> Option<Vec<String>> {
    let events = sync["rooms"]["join"][room]["ephemeral"]["events"].as_array()?;
    let event = events.iter().find(|event| event["type"] == "m.typing")?;
    let users = event["content"]["user_ids"].as_array()?;
    Some(
        users
            .iter()
            .map(|user| user.as_str().unwrap().to_owned())
            .collect(),
    )
}

/// How a user is, if the sync tells.
fn presence(sync: &Value, user: &str) -> Option<String> {
    let events = sync["presence"]["events"].as_array()?;
    let event = events.iter().find(|event| event["sender"] == user)?;
    Some(event["content"]["presence"].as_str()?.to_owned())
}

fn data(section: &Value) -> Vec<(String, Value)> {
    let events = section["account_data"]["events"].as_array();
    let events = events.map_or(&[][..], Vec::as_slice);
    let data = events.iter().map(|event| {
        let kind = event["type"].as_str().unwrap().to_owned();
        (kind, event["content"].clone())
    });
    data.filter(|(kind, _)| kind != "m.push_rules").collect()
}

#[tokio::test]
async fn typing_wakes_those_in_the_room() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let start = bob.sync("").await;
    let path = format!("/rooms/{room}/typing/{}", alice.id);
    let begins = async {
        alice
            .put(&path, json!({ "typing": true, "timeout": 30000 }))
            .await
            .ok();
    };
    let (seen, ()) = tokio::join!(
        until(&bob, next(&start), |sync| Some((
            typing(sync, &room)?,
            next(sync).to_owned()
        ))),
        begins
    );
    assert_eq!(seen.0, [&*alice.id]);
    // Who comes new learns it too.
    assert_eq!(
        typing(&bob.sync("").await, &room),
        Some(vec![alice.id.clone()])
    );
    // As does one with a token of another run of the server.
    let old = format!("since={}_0", seen.1.rsplit_once('_').unwrap().0);
    assert_eq!(
        typing(&bob.sync(&old).await, &room),
        Some(vec![alice.id.clone()])
    );
    let ends = async {
        alice.put(&path, json!({ "typing": false })).await.ok();
    };
    let (seen, ()) = tokio::join!(until(&bob, &seen.1, |sync| typing(sync, &room)), ends);
    assert_eq!(seen, [""; 0]);
    let none = "filter=%7B%22room%22:%7B%22ephemeral%22:%7B%22types%22:%5B%5D%7D%7D%7D";
    let sync = bob.sync(&format!("since={}&{none}", next(&start))).await;
    assert_eq!(typing(&sync, &room), None);
}

#[tokio::test]
async fn presence_is_told_to_those_who_share_a_room() {
    let server = TestServer::start().await;
    let (alice, bob, _) = direct(&server).await;
    let stranger = server.register("stranger").await;
    let start = bob.sync("").await;
    let start_of_stranger = stranger.sync("").await;
    assert_eq!(presence(&start, &bob.id).as_deref(), Some("online"));
    let comes = async {
        alice.sync("set_presence=unavailable").await;
    };
    let (seen, ()) = tokio::join!(
        until(&bob, next(&start), |sync| presence(sync, &alice.id)),
        comes
    );
    assert_eq!(seen, "unavailable");
    assert_eq!(
        presence(&bob.sync("").await, &alice.id).as_deref(),
        Some("unavailable")
    );
    let query = format!("since={}", next(&start_of_stranger));
    assert_eq!(presence(&stranger.sync(&query).await, &alice.id), None);
    assert_eq!(presence(&stranger.sync("").await, &alice.id), None);
    let without = "filter=%7B%22presence%22:%7B%22not_types%22:%5B%22m.presence%22%5D%7D%7D";
    assert_eq!(presence(&bob.sync(without).await, &alice.id), None);
}

#[tokio::test]
async fn account_data_is_told_for_the_user_and_for_rooms() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let start = alice.sync("").await;
    let of_bob = bob.sync("").await;
    let global = format!("/user/{}/account_data/org.example.x", alice.id);
    let of_room = format!("/user/{}/rooms/{room}/account_data/org.example.y", alice.id);
    let tag = format!("/user/{}/rooms/{room}/tags/m.favourite", alice.id);
    let sets = async {
        alice.put(&global, json!({ "a": 1 })).await.ok();
    };
    let (seen, ()) = tokio::join!(until(&alice, next(&start), |sync| data(sync).pop()), sets);
    assert_eq!(seen, ("org.example.x".to_owned(), json!({ "a": 1 })));
    alice.put(&of_room, json!({ "b": 2 })).await.ok();
    alice.put(&tag, json!({ "order": 0.5 })).await.ok();
    let sync = alice.sync(&format!("since={}", next(&start))).await;
    let in_room = data(&sync["rooms"]["join"][&room]);
    assert_eq!(in_room[0], ("org.example.y".to_owned(), json!({ "b": 2 })));
    assert_eq!(in_room[1].1["tags"]["m.favourite"]["order"], 0.5);
    let initial = alice.sync("").await;
    assert_eq!(data(&initial["rooms"]["join"][&room]).len(), 2);
    assert_eq!(data(&initial).len(), 1);
    let wanted = "filter=%7B%22account_data%22:%7B%22types%22:%5B%5D%7D,%22room%22:%7B%22account_data%22:%7B%22types%22:%5B%22m.tag%22%5D%7D%7D%7D";
    let filtered = alice.sync(wanted).await;
    assert_eq!(data(&filtered).len(), 0);
    assert_eq!(data(&filtered["rooms"]["join"][&room]).len(), 1);
    let other = bob.sync(&format!("since={}", next(&of_bob))).await;
    assert!(!other.to_string().contains("org.example"));
}

#[tokio::test]
async fn ignored_users_are_silent() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let path = format!("/user/{}/account_data/m.ignored_user_list", bob.id);
    let body = json!({ "ignored_users": { &alice.id: {} } });
    bob.put(&path, body).await.ok();
    let start = bob.sync("").await;
    alice.say(&room, "unheard").await;
    let path = format!("/rooms/{room}/state/m.room.name/");
    alice
        .put(&path, json!({ "name": "State is told" }))
        .await
        .ok();
    let invited = alice.create_room(json!({ "invite": [bob.id] })).await;
    for query in [String::new(), format!("since={}", next(&start))] {
        let sync = bob.sync(&query).await;
        let text = sync.to_string();
        assert!(!text.contains("unheard"), "{sync}");
        assert!(text.contains("State is told"), "{sync}");
        assert!(sync["rooms"]["invite"].get(&invited).is_none(), "{sync}");
    }
}

#[tokio::test]
async fn a_stored_filter_is_as_good_as_an_inline_one() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let body = json!({ "room": { "timeline": { "types": ["org.example.none"] } } });
    let path = format!("/user/{}/filter", bob.id);
    let id = bob.post(&path, body).await.ok();
    let start = bob.sync("").await;
    alice.say(&room, "filtered").await;
    let query = format!(
        "since={}&filter={}",
        next(&start),
        id["filter_id"].as_str().unwrap()
    );
    let sync = bob.sync(&query).await;
    assert!(!sync.to_string().contains("filtered"), "{sync}");
}

#[tokio::test]
async fn who_joins_and_who_is_there_see_each_other_at_once() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let carol = server.register("carol").await;
    let invite = json!({ "user_id": carol.id });
    alice
        .post(&format!("/rooms/{room}/invite"), invite)
        .await
        .ok();
    bob.sync("set_presence=unavailable").await;
    let start = alice.sync("").await;
    let of_carol = carol.sync("").await;
    assert_eq!(presence(&of_carol, &alice.id), None);
    let typing_path = format!("/rooms/{room}/typing/{}", bob.id);
    let types = json!({ "typing": true, "timeout": 30000 });
    bob.put(&typing_path, types).await.ok();
    let joins = async {
        carol.post(&format!("/join/{room}"), json!({})).await.ok();
    };
    let (seen, ()) = tokio::join!(
        until(&alice, next(&start), |sync| presence(sync, &carol.id)),
        joins
    );
    assert_eq!(seen, "online");
    let sync = carol.sync(&format!("since={}", next(&of_carol))).await;
    assert_eq!(presence(&sync, &alice.id).as_deref(), Some("online"));
    assert_eq!(presence(&sync, &bob.id).as_deref(), Some("unavailable"));
    assert_eq!(typing(&sync, &room), Some(vec![bob.id.clone()]));
    // Nothing more comes of it.
    let sync = carol.sync(&format!("since={}", next(&sync))).await;
    assert_eq!(presence(&sync, &alice.id), None);
    // A new name is no arrival.
    let path = format!("/profile/{}/displayname", carol.id);
    let since = next(&alice.sync("").await).to_owned();
    carol.put(&path, json!({ "displayname": "C" })).await.ok();
    let sync = alice.sync(&format!("since={since}")).await;
    assert_eq!(presence(&sync, &carol.id), None);
}

#[tokio::test]
async fn who_is_not_in_a_room_does_not_type_there() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for (way, by_alice) in [("leave", false), ("kick", true), ("ban", true)] {
        let bob = server.register(way).await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        let path = format!("/rooms/{room}/typing/{}", bob.id);
        // How long is optional.
        let types = json!({ "typing": true });
        bob.put(&path, types.clone()).await.ok();
        let start = alice.sync("").await;
        assert_eq!(typing(&start, &room), Some(vec![bob.id.clone()]));
        let who = if by_alice { &alice } else { &bob };
        let body = if by_alice {
            json!({ "user_id": bob.id })
        } else {
            json!({})
        };
        who.post(&format!("/rooms/{room}/{way}"), body).await.ok();
        let seen = until(&alice, next(&start), |sync| typing(sync, &room)).await;
        assert_eq!(seen, [""; 0], "{way}");
        bob.put(&path, types).await.fails(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn a_token_that_is_ahead_is_waited_for_and_then_taken_as_now() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let start = bob.sync("").await;
    let token = next(&start).to_owned();
    let (pos, rest) = token.strip_prefix('s').unwrap().split_once('_').unwrap();
    let pos: i64 = pos.parse().unwrap();
    let ahead = |by: i64| format!("since=s{}_{rest}", pos + by);
    // It comes within the second.
    let early = ahead(1);
    let (sync, _) = tokio::join!(bob.sync(&early), alice.say(&room, "one"));
    assert!(!next(&sync).is_empty());
    let began = std::time::Instant::now();
    let sync = bob.sync(&ahead(1_000_000)).await;
    assert!(began.elapsed() >= std::time::Duration::from_secs(1));
    assert!(sync["rooms"].is_null(), "{sync}");
    let query = format!("since={}", next(&sync));
    let heard = alice.say(&room, "two").await;
    let sync = bob.sync(&query).await;
    let timeline = &sync["rooms"]["join"][&room]["timeline"]["events"];
    assert_eq!(timeline[0]["event_id"], json!(heard));
}
