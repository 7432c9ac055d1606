//! What a sync costs, counted in statements ("Hot paths and budgets"): nothing new costs nothing, one new message in a
//! room in memory costs nothing, and any number of changed rooms costs as much as one.

use ruma::OwnedUserId;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use crate::{
    fake_room::FakeRoom,
    fake_server::FakeServer,
    server::{TestServer, User},
    shared_rooms::sees,
};

/// How many rooms a person has in these tests: enough to show if anything is done for each of them.
const ROOMS: usize = 30;

/// Syncs, and answers how many statements that took.
async fn counted(user: &User<'_>, query: &str) -> (Value, u64) {
    let before = user.server.app.db.statistics();
    let sync = user.sync(query).await;
    let after = user.server.app.db.statistics();
    assert_eq!(after.writes, before.writes, "a sync writes nothing");
    (sync, after.reads - before.reads)
}

async fn rooms(alice: &User<'_>, bob: &User<'_>) -> Vec<String> {
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        let room = alice
            .create_room(json!({ "preset": "public_chat", "name": "Room" }))
            .await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        rooms.push(room);
    }
    rooms
}

fn since(sync: &Value) -> String {
    let token = sync["next_batch"].as_str().expect("next_batch");
    format!("since={token}")
}

fn joined(sync: &Value) -> usize {
    sync["rooms"]["join"]
        .as_object()
        .map_or(0, serde_json::Map::len)
}

#[tokio::test]
async fn a_warm_incremental_sync_reads_nothing() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let rooms = rooms(&alice, &bob).await;
    let (first, _) = counted(&bob, "").await;
    let (warm, _) = counted(&bob, &since(&first)).await;

    let (empty, reads) = counted(&bob, &since(&warm)).await;
    assert_eq!((joined(&empty), reads), (0, 0));

    alice.say(&rooms[0], "one").await;
    let (one, reads) = counted(&bob, &since(&empty)).await;
    assert_eq!((joined(&one), reads), (1, 0));

    for room in &rooms {
        let event = alice.say(room, "all").await;
        let path = format!("/rooms/{room}/receipt/m.read/{event}");
        alice.post(&path, json!({})).await.ok();
    }
    let (all, reads) = counted(&bob, &since(&one)).await;
    assert_eq!((joined(&all), reads), (ROOMS, 0));
}

#[tokio::test]
async fn a_sync_of_many_rooms_that_are_not_in_memory_costs_seven_statements() {
    let server = TestServer::start().await;
    let (token, names, since) = {
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let names = rooms(&alice, &bob).await;
        let (first, _) = counted(&bob, "").await;
        for room in &names {
            let event = alice.say(room, "all").await;
            let path = format!("/rooms/{room}/receipt/m.read/{event}");
            alice.post(&path, json!({})).await.ok();
        }
        (bob.token.clone(), names, since(&first))
    };
    let server = server.restart().await;
    let get = async |path: &str| {
        server
            .request(reqwest::Method::GET, path, Some(&token), None)
            .await
            .ok()
    };
    // A new process learns once who asks, what they are in, what they set and how people are called.
    let query = format!("/_matrix/client/v3/sync?{since}");
    assert_eq!(joined(&get(&query).await), names.len());
    let before = server.app.db.statistics().reads;
    let all = get(&query).await;
    let reads = server.app.db.statistics().reads - before;
    assert_eq!(joined(&all), names.len());
    assert!(reads <= 7, "{reads} statements");
}

#[tokio::test]
async fn an_initial_sync_costs_the_same_for_one_room_and_for_many() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let rooms = rooms(&alice, &bob).await;
    carol
        .post(&format!("/join/{}", rooms[0]), json!({}))
        .await
        .ok();
    let lazy = "filter=%7B%22room%22:%7B%22state%22:%7B%22lazy_load_members%22:true%7D%7D%7D";
    for user in [&bob, &carol] {
        counted(user, lazy).await;
    }
    let (of_one, for_one) = counted(&carol, lazy).await;
    let (of_all, for_all) = counted(&bob, lazy).await;
    assert_eq!((joined(&of_one), joined(&of_all)), (1, ROOMS));
    assert!(
        for_all <= for_one + 1,
        "{for_one} for one, {for_all} for all"
    );
    assert!(for_all <= 8, "{for_all}");
}

#[tokio::test]
async fn few_first_syncs_of_a_user_are_made_at_a_time() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    for _ in 0..64 {
        alice.say(&room, &"large ".repeat(10_000)).await;
    }
    let filter = "filter=%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:100%7D%7D%7D";
    // Whoever asks for everything again and again, and reads none of it, waits for their own turn.
    let mut unread = Vec::new();
    for _ in 0..2 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(server.address).await.unwrap();
        let request = format!(
            "GET /_matrix/client/v3/sync?{filter} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            alice.token
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 100]).await.unwrap();
        unread.push(stream);
    }
    let (app, id) = (&server.app, OwnedUserId::try_from(&*alice.id).unwrap());
    let user = app.names.find_user(&app.db, &id).await.unwrap().unwrap();
    let feed = app.bus.feed(&app.db, &app.log, user).await.unwrap();
    assert_eq!(feed.whole.available_permits(), 0);
    drop(unread);
    assert_eq!(joined(&alice.sync("").await), 1);
}

/// The same for a server that has other things to do meanwhile: how few statements a sync took.
async fn fewest(user: &User<'_>, query: &str) -> (Value, u64) {
    let (mut sync, mut fewest) = (Value::Null, u64::MAX);
    for _ in 0..5 {
        let before = user.server.app.db.statistics().reads;
        sync = user.sync(query).await;
        fewest = fewest.min(user.server.app.db.statistics().reads - before);
    }
    (sync, fewest)
}

#[tokio::test]
async fn a_sync_of_a_room_with_others_reads_nothing_unless_something_branched_off_before() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for visibility in ["joined", "invited", "shared"] {
        let state = json!({
            "type": "m.room.history_visibility", "content": { "history_visibility": visibility },
        });
        let body = json!({ "preset": "public_chat", "initial_state": [state] });
        let id = alice.create_room(body).await;
        let mut guest = FakeRoom::join(&fake, &server, &id).await;
        let mut branch = guest.clone();
        bob.post(&format!("/join/{id}"), json!({})).await.ok();
        let (first, _) = fewest(&bob, "").await;
        let (warm, _) = fewest(&bob, &since(&first)).await;

        let said = alice.say(&id, "one").await;
        guest.latest = vec![said.try_into().unwrap()];
        guest.depth += 2;
        let answer = guest.say(&fake, "two");
        guest.send(&fake, &server, &[&answer]).await.ok();
        sees(&alice, &id, answer.event_id.as_str()).await;
        let (two, reads) = fewest(&bob, &since(&warm)).await;
        assert_eq!((joined(&two), reads), (1, 0), "{visibility}");
        assert!(two.to_string().contains(answer.event_id.as_str()));

        let late = branch.say(&fake, "late");
        branch.send(&fake, &server, &[&late]).await.ok();
        sees(&alice, &id, late.event_id.as_str()).await;
        let (late, reads) = fewest(&bob, &since(&two)).await;
        assert_eq!(joined(&late), usize::from(visibility == "shared"));
        let most = if visibility == "shared" { 0 } else { 3 };
        assert!(reads <= most, "{visibility}: {reads}");
    }
}
