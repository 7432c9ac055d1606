//! "Server-side key backups": the better key stays, and the count is always that of the keys, whoever writes at the same time.

use std::{
    fmt::Write as _,
    ops::Range,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all, stream};
use homing::{key_backup::sweep, storage};
use reqwest::Method;
use ruma::UserId;
use serde_json::{Value, json};

use crate::server::{Answer, TestServer, User};

const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";
const ROOM: &str = "!room:elsewhere.example";
const OTHER: &str = "!other:elsewhere.example";

/// Makes a new version.
async fn version(user: &User<'_>) -> String {
    let body = json!({ "algorithm": ALGORITHM, "auth_data": { "public_key": "abc" } });
    let answer = user.post("/room_keys/version", body).await.ok();
    answer["version"].as_str().unwrap().to_owned()
}

fn key(first_message_index: u64, forwarded_count: u64, is_verified: bool, data: &str) -> Value {
    json!({
        "first_message_index": first_message_index,
        "forwarded_count": forwarded_count,
        "is_verified": is_verified,
        "session_data": { "ciphertext": data, "unknown": [1.5] },
    })
}

fn path(of: &str, version: &str) -> String {
    format!("/room_keys/keys{of}?version={version}")
}

async fn put(user: &User<'_>, of: &str, version: &str, body: Value) -> Answer {
    user.put(&path(of, version), body).await
}

async fn get(user: &User<'_>, of: &str, version: &str) -> Value {
    user.get(&path(of, version)).await.ok()
}

async fn info(user: &User<'_>) -> Value {
    user.get("/room_keys/version").await.ok()
}

/// How many keys can be read.
fn count(all: &Value) -> usize {
    let rooms = all["rooms"].as_object().unwrap().values();
    rooms
        .map(|room| room["sessions"].as_object().unwrap().len())
        .sum()
}

/// The count that is told, which must be that of the keys.
async fn true_count(user: &User<'_>, version: &str) -> usize {
    let told = info(user).await["count"].as_u64().unwrap();
    let all = count(&get(user, "", version).await);
    assert_eq!(all as u64, told);
    all
}

#[tokio::test]
async fn versions_come_one_after_the_other_and_never_again() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let none = alice.get("/room_keys/version").await;
    none.fails(404, "M_NOT_FOUND");
    assert_eq!([version(&alice).await, version(&alice).await], ["1", "2"]);
    let expected = json!({
        "version": "2", "algorithm": ALGORITHM, "auth_data": { "public_key": "abc" }, "count": 0, "etag": "0",
    });
    assert_eq!(info(&alice).await, expected);
    let first = alice.get("/room_keys/version/1").await.ok();
    assert_eq!(first["version"], "1");

    let delete = async |version: &str| {
        let path = format!("/room_keys/version/{version}");
        alice.delete(&path).await
    };
    delete("2").await.ok();
    delete("2").await.ok();
    for never in ["0", "3", "01", "+1", "-1", "x", "9223372036854775808"] {
        delete(never).await.fails(404, "M_NOT_FOUND");
        let path = format!("/room_keys/version/{never}");
        alice.get(&path).await.fails(404, "M_NOT_FOUND");
    }
    let gone = alice.get("/room_keys/version/2").await;
    gone.fails(404, "M_NOT_FOUND");
    assert_eq!(
        info(&alice).await["version"],
        "1",
        "the newest that is left"
    );
    assert_eq!(version(&alice).await, "3");
    let others = bob.get("/room_keys/version/3").await;
    others.fails(404, "M_NOT_FOUND");
    assert_eq!(version(&bob).await, "1");
}

#[tokio::test]
async fn only_the_auth_data_of_a_version_changes() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    version(&alice).await;
    let update = async |version: &str, body: Value| {
        let path = format!("/room_keys/version/{version}");
        alice.put(&path, body).await
    };
    let body = json!({ "algorithm": ALGORITHM, "auth_data": { "b": 2 } });
    update("1", body.clone()).await.ok();
    let body_of = |version: &str| {
        let mut body = body.clone();
        body["version"] = version.into();
        body
    };
    update("1", body_of("1")).await.ok();
    let expected = json!({
        "version": "1", "algorithm": ALGORITHM, "auth_data": { "b": 2 }, "count": 0, "etag": "0",
    });
    assert_eq!(info(&alice).await, expected);
    let wrong = update("1", body_of("2")).await;
    wrong.fails(400, "M_INVALID_PARAM");
    let other = json!({ "algorithm": "m.other", "auth_data": {} });
    update("1", other).await.fails(400, "M_INVALID_PARAM");
    update("2", body.clone()).await.fails(404, "M_NOT_FOUND");
    assert_eq!(info(&alice).await, expected);
}

#[tokio::test]
async fn the_better_key_stays() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let version = version(&alice).await;
    // Whether the second one takes the place of the first one.
    let cases = [
        ((10, 5, false), (11, 5, false), false),
        ((10, 5, false), (10, 6, false), false),
        ((10, 5, false), (9, 6, false), true),
        ((10, 5, false), (10, 4, false), true),
        ((10, 5, false), (11, 4, false), false),
        ((10, 5, false), (10, 5, false), false),
        ((10, 5, false), (11, 6, true), true),
        ((10, 5, true), (9, 4, false), false),
        ((10, 5, true), (10, 5, true), false),
        ((10, 5, true), (9, 6, true), true),
    ];
    for (number, (old, new, is_replaced)) in cases.into_iter().enumerate() {
        let of = format!("/{ROOM}/s{number}");
        let old = key(old.0, old.1, old.2, "old");
        let new = key(new.0, new.1, new.2, "new");
        put(&alice, &of, &version, old.clone()).await.ok();
        let before = info(&alice).await["etag"].clone();
        let answer = put(&alice, &of, &version, new.clone()).await.ok();
        assert_eq!(answer["count"], number + 1);
        assert_eq!(answer["etag"] != before, is_replaced, "{number}");
        let expected = if is_replaced { new } else { old };
        assert_eq!(get(&alice, &of, &version).await, expected, "{number}");
    }
}

#[tokio::test]
async fn keys_are_put_read_and_deleted_one_by_one_by_room_and_all() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let v = &version(&alice).await;
    version(&bob).await;
    assert_eq!(get(&alice, "", v).await, json!({ "rooms": {} }));
    let room = format!("/{ROOM}");
    assert_eq!(get(&alice, &room, v).await, json!({ "sessions": {} }));

    let k = |data: &str| key(1, 0, true, data);
    // An id that has to be written with care, in the path and in JSON.
    let odd = "/%22%5C%2F%C3%A9+";
    let answer = put(&alice, &format!("{room}{odd}"), v, k("odd")).await.ok();
    assert_eq!(answer, json!({ "count": 1, "etag": "1" }));
    let body = json!({ "sessions": { "a": k("a"), "b": k("b") } });
    let answer = put(&alice, &room, v, body).await.ok();
    assert_eq!(answer, json!({ "count": 3, "etag": "2" }));
    let body = json!({ "rooms": { OTHER: { "sessions": { "a": k("c") } }, ROOM: { "sessions": { "d": k("d"), "a": k("worse") } } } });
    let answer = put(&alice, "", v, body).await.ok();
    assert_eq!(answer, json!({ "count": 5, "etag": "3" }));
    let answer = put(&alice, "", v, json!({ "rooms": {} })).await.ok();
    assert_eq!(answer, json!({ "count": 5, "etag": "3" }));

    let sessions = json!({ "\"\\/é+": k("odd"), "a": k("a"), "b": k("b"), "d": k("d") });
    let expected = json!({ "rooms": { ROOM: { "sessions": sessions }, OTHER: { "sessions": { "a": k("c") } } } });
    assert_eq!(get(&alice, "", v).await, expected);
    assert_eq!(get(&alice, &room, v).await, expected["rooms"][ROOM]);
    assert_eq!(get(&alice, &format!("{room}{odd}"), v).await, k("odd"));
    assert_eq!(get(&bob, "", "1").await, json!({ "rooms": {} }));
    let none = alice.get(&path(&format!("{room}/c"), v)).await;
    none.fails(404, "M_NOT_FOUND");

    let delete = async |of: &str| alice.delete(&path(of, v)).await.ok();
    for _ in 0..2 {
        let answer = delete(&format!("{room}/b")).await;
        assert_eq!(answer, json!({ "count": 4, "etag": "4" }));
    }
    let answer = delete(&room).await;
    assert_eq!(answer, json!({ "count": 1, "etag": "5" }));
    assert_eq!(true_count(&alice, v).await, 1);
    let answer = delete("").await;
    assert_eq!(answer, json!({ "count": 0, "etag": "6" }));
    assert_eq!(get(&alice, "", v).await, json!({ "rooms": {} }));
    put(&alice, &format!("{room}/b"), v, k("again")).await.ok();
    sweep(&server.app).await.unwrap();
    assert_eq!(get(&alice, &format!("{room}/b"), v).await, k("again"));
    assert_eq!(true_count(&alice, v).await, 1);
}

#[tokio::test]
async fn keys_are_added_to_the_current_version_only() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let of = format!("/{ROOM}/s");
    let k = key(1, 0, true, "k");
    let none = put(&alice, &of, "1", k.clone()).await;
    none.fails(404, "M_NOT_FOUND");
    version(&alice).await;
    put(&alice, &of, "1", k.clone()).await.ok();
    version(&alice).await;
    let forms = [
        (of.clone(), k.clone()),
        (format!("/{ROOM}"), json!({ "sessions": { "s": k } })),
        (
            String::new(),
            json!({ "rooms": { ROOM: { "sessions": { "s": k } } } }),
        ),
    ];
    for (of, body) in &forms {
        let wrong = put(&alice, of, "1", body.clone()).await;
        let wrong = wrong.fails(403, "M_WRONG_ROOM_KEYS_VERSION");
        assert_eq!(wrong["current_version"], "2");
        let never = put(&alice, of, "3", body.clone()).await;
        never.fails(404, "M_NOT_FOUND");
        for method in [Method::GET, Method::DELETE] {
            let never = alice.send(method, &path(of, "3"), None).await;
            never.fails(404, "M_NOT_FOUND");
        }
    }
    assert_eq!(get(&alice, &of, "1").await, k, "old ones can be read");
    let deleted = alice.delete(&path(&of, "1")).await.ok();
    assert_eq!(deleted, json!({ "count": 0, "etag": "2" }));
    alice.delete("/room_keys/version/1").await.ok();
    let deleted = put(&alice, &of, "1", k.clone()).await;
    deleted.fails(403, "M_WRONG_ROOM_KEYS_VERSION");
    alice.delete("/room_keys/version/2").await.ok();
    put(&alice, &of, "2", k).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn what_is_no_key_is_refused_as_a_whole() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let v = &version(&alice).await;
    let mut cases = vec![];
    for field in [
        "first_message_index",
        "forwarded_count",
        "is_verified",
        "session_data",
    ] {
        let mut without = key(1, 0, true, "k");
        without.as_object_mut().unwrap().remove(field);
        cases.push(("s".to_owned(), without, 400, "M_MISSING_PARAM"));
        for wrong in [json!("x"), json!(-1), json!(null), json!([1])] {
            let mut bad = key(1, 0, true, "k");
            bad[field] = wrong;
            cases.push(("s".to_owned(), bad, 400, "M_BAD_JSON"));
        }
    }
    let large = key(1, 0, true, &"k".repeat(20_000));
    cases.push(("s".to_owned(), large, 413, "M_TOO_LARGE"));
    for id in [String::new(), "s".repeat(256), "a\0b".to_owned()] {
        cases.push((id, key(1, 0, true, "k"), 400, "M_INVALID_PARAM"));
    }
    for (id, bad, status, errcode) in cases {
        let body = json!({ "sessions": { "good": key(1, 0, true, "k"), id: bad } });
        let answer = put(&alice, &format!("/{ROOM}"), v, body).await;
        answer.fails(status, errcode);
    }
    let many: serde_json::Map<_, _> = (0..10_001)
        .map(|number| (number.to_string(), key(1, 0, true, "k")))
        .collect();
    let many = put(&alice, &format!("/{ROOM}"), v, json!({ "sessions": many })).await;
    many.fails(413, "M_TOO_LARGE");
    assert_eq!(true_count(&alice, v).await, 0);
    let bad = [
        (json!({ "auth_data": {} }), 400, "M_MISSING_PARAM"),
        (json!({ "algorithm": "a" }), 400, "M_MISSING_PARAM"),
        (
            json!({ "algorithm": "", "auth_data": {} }),
            400,
            "M_INVALID_PARAM",
        ),
        (
            json!({ "algorithm": "a", "auth_data": [] }),
            400,
            "M_BAD_JSON",
        ),
        (
            json!({ "algorithm": "a", "auth_data": { "a": "a".repeat(70_000) } }),
            413,
            "M_TOO_LARGE",
        ),
    ];
    for (body, status, errcode) in bad {
        let answer = alice.post("/room_keys/version", body).await;
        answer.fails(status, errcode);
    }
}

#[tokio::test]
async fn a_user_cannot_have_versions_without_end() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for _ in 0..100 {
        version(&alice).await;
    }
    let body = json!({ "algorithm": ALGORITHM, "auth_data": {} });
    let more = alice.post("/room_keys/version", body).await;
    more.fails(413, "M_TOO_LARGE");
    alice.delete("/room_keys/version/1").await.ok();
    assert_eq!(version(&alice).await, "101");
}

#[tokio::test]
async fn the_count_stays_right_whoever_writes_at_the_same_moment() {
    let server = TestServer::start().await;
    let alice = &server.register("alice").await;
    let v = &version(alice).await;
    // Each request has ten keys, of which others have most too; some requests are cut off, some keys are deleted meanwhile.
    let requests = (0..64_u64).map(|number| async move {
        let sessions: serde_json::Map<_, _> = (number..number + 10)
            .map(|id| (id.to_string(), key(100 - number, 0, false, "k")))
            .collect();
        let room = format!("/{ROOM}");
        let request = put(alice, &room, v, json!({ "sessions": sessions }));
        let session = format!("/{ROOM}/{}", number + 1);
        match number % 8 {
            0 => drop(tokio::time::timeout(Duration::from_millis(number), request).await),
            1 => drop(alice.delete(&path(&session, v)).await.ok()),
            5 if number == 29 => drop(alice.delete(&path(&format!("/{OTHER}"), v)).await.ok()),
            5 if number == 37 => drop(alice.delete(&path(&room, v)).await.ok()),
            5 if number == 45 => drop(alice.delete(&path("", v)).await.ok()),
            _ => drop(request.await.ok()),
        }
    });
    join_all(requests).await;
    true_count(alice, v).await;
    // All again: each key is there, and of each the best one.
    let requests = (0..64_u64).map(|number| async move {
        let sessions: serde_json::Map<_, _> = (number..number + 10)
            .map(|id| (id.to_string(), key(100 - number, 0, true, "k")))
            .collect();
        let body = json!({ "sessions": sessions });
        put(alice, &format!("/{ROOM}"), v, body).await.ok();
    });
    join_all(requests).await;
    assert_eq!(true_count(alice, v).await, 73);
    let sessions = get(alice, &format!("/{ROOM}"), v).await;
    for id in 0..73_u64 {
        let best = 100 - id.min(63);
        assert_eq!(
            sessions["sessions"][id.to_string()]["first_message_index"],
            best
        );
    }
}

#[tokio::test]
async fn versions_made_at_the_same_moment_are_different() {
    let server = TestServer::start().await;
    let alice = &server.register("alice").await;
    let mut versions = join_all((0..16).map(|_| version(alice))).await;
    versions.sort_by_key(|version| version.parse::<u32>().unwrap());
    let expected: Vec<String> = (1..=16).map(|version| version.to_string()).collect();
    assert_eq!(versions, expected);
}

/// The keys that are in the database although nobody can see them.
async fn hidden(server: &TestServer) -> Option<(storage::BackupNid, bool)> {
    storage::key_backup::gone(&server.app.db).await.unwrap()
}

#[tokio::test]
async fn nothing_is_left_of_deleted_backups_and_of_deactivated_users() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let body = json!({ "rooms": { ROOM: { "sessions": { "s": key(1, 0, true, "k") } } } });
    for user in [&alice, &bob] {
        let v = version(user).await;
        put(user, "", &v, body.clone()).await.ok();
    }
    alice.delete("/room_keys/version/1").await.ok();
    let (nid, has_keys) = hidden(&server).await.unwrap();
    assert!(has_keys);
    sweep(&server.app).await.unwrap();
    let db = &server.app.db;
    let left =
        storage::key_backup::page(db, nid, storage::key_backup::Walked::All, ("", ""), 1).await;
    assert!(left.unwrap().is_empty() && hidden(&server).await.is_none());
    assert_eq!(true_count(&bob, "1").await, 1);

    let id = UserId::parse(&*bob.id).unwrap();
    let user = server.app.user(&id).await.unwrap();
    let backup = storage::key_backup::current(db, user).await.unwrap();
    let nid = backup.unwrap().nid;
    let deactivate = bob.send_with_password(Method::POST, "/account/deactivate", json!({}));
    deactivate.await.ok();
    assert_eq!(storage::key_backup::current(db, user).await.unwrap(), None);
    assert_eq!(storage::key_backup::newest(db, user).await.unwrap(), 0);
    sweep(&server.app).await.unwrap();
    let left =
        storage::key_backup::page(db, nid, storage::key_backup::Walked::All, ("", ""), 1).await;
    assert!(left.unwrap().is_empty() && hidden(&server).await.is_none());
}

/// Puts keys into the backup, a hundred at once as clients do, of a hundred rooms, of which the first has most.
async fn fill(user: &User<'_>, version: &str, batches: Range<usize>) {
    let data = "k".repeat(1000);
    let batches = batches.map(|batch| {
        let mut rooms = json!({});
        for number in batch * 100..batch * 100 + 100 {
            let room = if number % 4 == 0 { number / 4 % 100 } else { 0 };
            // Ids of sessions have no order.
            let mut id = String::new();
            write!(
                id,
                "{:016x}",
                (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            )
            .unwrap();
            let room = &mut rooms[format!("!room{room:03}-of-some-server:example.org")];
            room["sessions"][id] = key(1, 0, true, &data);
        }
        async move {
            put(user, "", version, json!({ "rooms": rooms })).await.ok();
        }
    });
    stream::iter(batches).buffer_unordered(2).count().await;
}

#[tokio::test]
async fn large_backups_are_read_and_deleted_in_parts() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let v = &version(&alice).await;
    fill(&alice, v, 0..30).await;
    assert_eq!(true_count(&alice, v).await, 3000);
    let first = "/!room000-of-some-server:example.org";
    let room = get(&alice, first, v).await;
    let all = get(&alice, "", v).await;
    assert_eq!(all["rooms"].as_object().unwrap().len(), 100);
    assert_eq!(all["rooms"][&first[1..]], room);
    let in_room = room["sessions"].as_object().unwrap().len();
    assert_eq!(in_room, 2258);
    let answer = alice.delete(&path(first, v)).await.ok();
    assert_eq!(answer["count"], 3000 - in_room);
    assert_eq!(true_count(&alice, v).await, 3000 - in_room);
    let room = get(&alice, first, v).await;
    assert_eq!(room, json!({ "sessions": {} }));
}

#[tokio::test]
async fn it_is_quick_to_find_which_keys_are_there() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let v = &version(&alice).await;
    let keys: serde_json::Map<_, _> = (0..10_000)
        .map(|number| (number.to_string(), key(1, 0, true, "k")))
        .collect();
    let body = json!({ "sessions": keys });
    let of = &format!("/{ROOM}");
    let twice = async {
        for _ in 0..2 {
            let answer = put(&alice, of, v, body.clone()).await.ok();
            assert_eq!(answer, json!({ "count": 10_000, "etag": "1" }));
        }
    };
    // To go through all keys for each of them takes minutes.
    let twice = tokio::time::timeout(Duration::from_secs(30), twice).await;
    twice.expect("an answer in time");
}

/// Prints how long things take with a hundred thousand keys: `cargo test --test api key_backup::measure -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement, which takes minutes in a debug build"]
async fn measure() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let v = &version(&alice).await;
    let mut started = Instant::now();
    let mut lap = |what: &str| {
        println!("{what}: {:?}", started.elapsed());
        started = Instant::now();
    };
    for part in 0..5 {
        fill(&alice, v, part * 200..(part + 1) * 200).await;
        lap("200 requests of 100 keys");
    }
    fill(&alice, v, 0..200).await;
    lap("200 requests of keys that are there");
    let all = get(&alice, "", v).await;
    lap("all keys");
    assert_eq!(count(&all), 100_000);
    get(&alice, "/!room000-of-some-server:example.org", v).await;
    lap("a room of 75,000");
    get(&alice, "/!room007-of-some-server:example.org", v).await;
    lap("a room of 250");
    get(
        &alice,
        "/!room000-of-some-server:example.org/0000000000000000",
        v,
    )
    .await;
    lap("one session");
    alice.get("/room_keys/version").await.ok();
    lap("the version");
    put(&alice, &format!("/{ROOM}/s"), v, key(1, 0, true, "k"))
        .await
        .ok();
    lap("one key more");
    alice
        .delete(&path("/!room000-of-some-server:example.org", v))
        .await
        .ok();
    lap("the large room deleted");
    alice.delete(&path("", v)).await.ok();
    lap("all deleted");
    sweep(&server.app).await.unwrap();
    lap("the rest swept away");
}
