//! Several people of one server who join a room at the same moment that the server does not know yet.

use futures_util::future::join_all;
use serde_json::json;

use crate::server::{TestServer, User};

const PEOPLE: usize = 6;
const ROUNDS: usize = 12;

#[tokio::test]
async fn whoever_joins_at_the_same_moment_is_in_the_room() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let alice = one.register("alice").await;
    let mut people = Vec::new();
    for name in 0..PEOPLE {
        people.push(two.register(&format!("person{name}")).await);
    }
    for _ in 0..ROUNDS {
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        let path = format!("/join/{room}?server_name={}", one.name());
        // The first one clicks twice.
        let joining = people.iter().chain(people.first());
        let joins = joining.map(|person| person.post(&path, json!({})));
        for join in join_all(joins).await {
            join.ok();
        }
        for person in &people {
            person.say(&room, "here").await;
            assert_eq!(members(person, &room).await, PEOPLE + 1);
        }
        // The other server hears of those who have joined here.
        let mut since = String::new();
        while members(&alice, &room).await < PEOPLE + 1 {
            let sync = alice.sync(&format!("{since}&timeout=10000")).await;
            since = format!("since={}", sync["next_batch"].as_str().unwrap());
        }
    }
}

async fn members(user: &User<'_>, room: &str) -> usize {
    let members = user.get(&format!("/rooms/{room}/joined_members")).await;
    members.ok()["joined"].as_object().unwrap().len()
}
