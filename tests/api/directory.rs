use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{TestServer, User};

async fn search(user: &User<'_>, body: Value) -> Value {
    user.post("/publicRooms", body).await.ok()
}

fn names(page: &Value) -> Vec<&str> {
    let rooms = page["chunk"].as_array().expect("a page");
    rooms
        .iter()
        .map(|room| room["name"].as_str().unwrap_or(""))
        .collect()
}

/// A published room of this name, with so many members besides its creator.
async fn publish(owner: &User<'_>, name: &str, members: &[&User<'_>]) -> String {
    let body = json!({ "preset": "public_chat", "visibility": "public", "name": name });
    let room = owner.create_room(body).await;
    for member in members {
        member.post(&format!("/join/{room}"), json!({})).await.ok();
    }
    room
}

#[tokio::test]
async fn published_rooms_are_listed_largest_first_and_paged_both_ways() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let rooms = [
        publish(&alice, "small one", &[]).await,
        publish(&alice, "large", &[&bob, &carol]).await,
        publish(&alice, "middle", &[&bob]).await,
        publish(&alice, "small two", &[]).await,
    ];
    alice
        .create_room(json!({ "preset": "public_chat", "name": "hidden" }))
        .await;

    let first = alice.get("/publicRooms?limit=2").await.ok();
    assert_eq!(names(&first), ["large", "middle"]);
    assert_eq!(first["total_room_count_estimate"], 4);
    assert_eq!(first["chunk"][0]["num_joined_members"], 3);
    assert_eq!(first["chunk"][0]["join_rule"], "public");
    assert_eq!(first["chunk"][0]["room_id"], rooms[1]);
    assert_eq!(first["chunk"][0]["guest_can_join"], false);
    assert!(first.get("prev_batch").is_none());
    let next = first["next_batch"].as_str().expect("there are more");
    let second = alice
        .get(&format!("/publicRooms?limit=2&since={next}"))
        .await
        .ok();
    assert_eq!(names(&second), ["small one", "small two"]);
    assert!(second.get("next_batch").is_none());
    let back = second["prev_batch"]
        .as_str()
        .expect("there was a page before");
    let again = search(&alice, json!({ "limit": 2, "since": back })).await;
    assert_eq!(names(&again), ["large", "middle"]);
    assert!(again.get("prev_batch").is_none());
    let next = again["next_batch"]
        .as_str()
        .expect("the page from which we came");
    let again = search(&alice, json!({ "limit": 1, "since": next })).await;
    assert_eq!(names(&again), ["small one"]);
    let back = again["prev_batch"]
        .as_str()
        .expect("there are pages before");
    let again = search(&alice, json!({ "limit": 1, "since": back })).await;
    assert_eq!(names(&again), ["middle"]);
}

#[tokio::test]
async fn the_directory_is_searched_by_name_topic_alias_and_type() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for body in [
        json!({ "name": "Zoë's ROOM" }),
        json!({ "name": "B", "topic": "About roommates" }),
        json!({ "name": "C", "room_alias_name": "the-room" }),
        json!({ "name": "D", "topic": "nothing" }),
        json!({ "name": "E room", "creation_content": { "type": "m.space" } }),
    ] {
        let mut body = body;
        body["visibility"] = json!("public");
        alice.create_room(body).await;
    }
    let find = |filter: Value| search(&alice, json!({ "filter": filter }));
    let found = find(json!({ "generic_search_term": "Room" })).await;
    assert_eq!(names(&found), ["Zoë's ROOM", "B", "C", "E room"]);
    assert_eq!(
        names(&find(json!({ "generic_search_term": "ZOË" })).await),
        ["Zoë's ROOM"]
    );
    let found = find(json!({ "room_types": ["m.space"] })).await;
    assert_eq!(names(&found), ["E room"]);
    assert_eq!(found["chunk"][0]["room_type"], "m.space");
    let found = find(json!({ "room_types": [null], "generic_search_term": "room" })).await;
    assert_eq!(names(&found), ["Zoë's ROOM", "B", "C"]);
    assert_eq!(
        names(&find(json!({ "generic_search_term": "%" })).await),
        Vec::<&str>::new()
    );
}

#[tokio::test]
async fn who_has_the_power_publishes_a_room() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let path = format!("/directory/list/room/{room}");
    let visibility = || async {
        let path = format!("/_matrix/client/v3{path}");
        server.request(Method::GET, &path, None, None).await.ok()["visibility"].clone()
    };
    assert_eq!(visibility().await, "private");
    bob.put(&path, json!({ "visibility": "public" }))
        .await
        .fails(403, "M_FORBIDDEN");
    // It is public where the request does not say.
    alice.put(&path, json!({})).await.ok();
    assert_eq!(visibility().await, "public");
    alice
        .put(&path, json!({ "visibility": "private" }))
        .await
        .ok();
    assert_eq!(visibility().await, "private");
    alice
        .put(&path, json!({ "visibility": "secret" }))
        .await
        .fails(400, "M_INVALID_PARAM");
    alice
        .put(&path, json!({ "visibility": 1 }))
        .await
        .fails(400, "M_BAD_JSON");
    let unknown = "/directory/list/room/!unknown:localhost";
    alice.get(unknown).await.fails(404, "M_NOT_FOUND");
    alice
        .put(unknown, json!({ "visibility": "public" }))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn bad_requests_to_the_directory_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for query in [
        "since=nonsense",
        "since=n1",
        "since=n01_2",
        "since=",
        "limit=-1",
        "limit=x",
        "since=%C3%A4",
    ] {
        let answer = alice.get(&format!("/publicRooms?{query}")).await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    alice
        .post("/publicRooms", json!({ "limit": "x" }))
        .await
        .fails(400, "M_BAD_JSON");
    alice
        .post("/publicRooms", json!({ "filter": [] }))
        .await
        .fails(400, "M_BAD_JSON");
    alice
        .get("/publicRooms?server=elsewhere.org")
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .get("/publicRooms?server=localhost&limit=0")
        .await
        .ok();
    alice.get("/publicRooms?limit=9007199254740991").await.ok();
}
