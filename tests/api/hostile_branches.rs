//! Servers that make branch after branch of a room's history.

use homing_federation::{Draft, Pdu};
use serde_json::json;

use crate::{
    fake_room::{FakeRoom, outcome},
    fake_server::FakeServer,
    hostile_transactions::shared,
    server::{TestServer, User},
};

/// How many branches the hostile server makes: more than states can be resolved at once.
const BRANCHES: usize = 80;

/// The extremities of a room, as the next event of this server follows them.
async fn followed(server: &TestServer, fake: &FakeServer, room: &FakeRoom) -> Vec<String> {
    let path = format!(
        "/_matrix/federation/v1/make_leave/{}/{}",
        room.id, room.user
    );
    let made = fake.get(server, &path).await.ok();
    serde_json::from_value(made["event"]["prev_events"].clone()).unwrap()
}

async fn extremities(server: &TestServer, room: &FakeRoom) -> usize {
    let room = server.app.room(&room.id).await.unwrap();
    let head = room.head.lock().await;
    head.as_ref().map_or(0, |head| head.extremities.len())
}

/// An event that follows the same ones as all others of the branches: another name of its sender, or a message.
fn branch(room: &FakeRoom, fake: &FakeServer, number: usize, is_state: bool) -> Pdu {
    let draft = if is_state {
        let user = room.user.to_string();
        let member = json!({ "membership": "join", "displayname": number.to_string() });
        room.draft("m.room.member", Some(&user), member)
    } else {
        room.message(&number.to_string())
    };
    room.sign(fake, draft)
}

#[tokio::test]
async fn branches_without_number_cost_their_server_alone() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (honest, alice) = (FakeServer::start().await, server.register("alice").await);
    for is_state in [false, true] {
        let room = shared(&alice, &fake, "12").await;
        // Their last word comes before the flood, and changes the state.
        let mut theirs = FakeRoom::join(&honest, &server, room.id.as_str()).await;
        let user = theirs.user.to_string();
        let member = json!({ "membership": "join", "displayname": "Honest" });
        let last = theirs.set(&honest, "m.room.member", &user, member);
        theirs.send(&honest, &server, &[&last]).await.ok();
        let mut costs = Vec::new();
        let mut let_go = Vec::new();
        for number in 0..BRANCHES {
            let pdu = branch(&room, &fake, number, is_state);
            if number == 0 {
                let_go.push(pdu.event_id.clone());
            }
            let before = server.app.db.statistics().reads;
            let answer = room.send(&fake, &server, &[&pdu]).await.ok();
            assert_eq!(outcome(&answer, pdu.event_id.as_str()), Some(false));
            costs.push(server.app.db.statistics().reads - before);
        }
        let cost = |from: usize| costs[from..from + 10].iter().min().copied().unwrap();
        let (early, late) = (cost(25), cost(BRANCHES - 10));
        assert!(
            late <= early + early / 4,
            "{early} and then {late}: {costs:?}"
        );
        assert_eq!(extremities(&server, &room).await, 20);
        let followed = followed(&server, &fake, &room).await;
        assert!(
            followed.contains(&last.event_id.to_string()),
            "{followed:?}"
        );
        assert!(has_name(&alice, &room, &user).await);
        // The next event brings the branches together, and others can see that it rests on all of them.
        alice.say(room.id.as_str(), "and on").await;
        assert_eq!(extremities(&server, &room).await, 1);
        assert!(has_name(&alice, &room, &user).await);
        // An event that follows one of those that were let go is as good as any.
        let draft = Draft {
            prev_events: let_go,
            ..room.message("late")
        };
        let late = room.sign(&fake, draft);
        let answer = room.send(&fake, &server, &[&late]).await.ok();
        assert_eq!(outcome(&answer, late.event_id.as_str()), Some(false));
        assert_eq!(extremities(&server, &room).await, 2);
    }
}

#[tokio::test]
async fn who_names_one_branch_twice_has_not_seen_the_other() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let user = room.user.to_string();
    let [one, other] = [1, 2].map(|number| branch(&room, &fake, number, false));
    let member = json!({ "membership": "join", "displayname": "Honest" });
    let member = room.sign(&fake, room.draft("m.room.member", Some(&user), member));
    room.send(&fake, &server, &[&one, &other, &member])
        .await
        .ok();
    let draft = Draft {
        prev_events: vec![one.event_id.clone(), one.event_id, other.event_id],
        depth: one.depth + 1,
        ..room.message("twice")
    };
    let twice = room.sign(&fake, draft);
    let answer = room.send(&fake, &server, &[&twice]).await.ok();
    assert_eq!(outcome(&answer, twice.event_id.as_str()), Some(false));
    let mut expected = [twice.event_id.to_string(), member.event_id.to_string()];
    let mut followed = followed(&server, &fake, &room).await;
    expected.sort_unstable();
    followed.sort_unstable();
    assert_eq!(followed, expected);
    let state = format!(
        "/_matrix/federation/v1/state_ids/{}?event_id={}",
        room.id, twice.event_id
    );
    let before = fake.get(&server, &state).await.ok()["pdu_ids"].to_string();
    assert!(!before.contains(member.event_id.as_str()), "{before}");
    assert!(has_name(&alice, &room, &user).await);
}

async fn has_name(alice: &User<'_>, room: &FakeRoom, user: &str) -> bool {
    let path = format!("/rooms/{}/state/m.room.member/{user}", room.id);
    alice.get(&path).await.ok()["displayname"] == "Honest"
}
