use std::time::Duration;

use homing::storage::{Membership, members};
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{TestServer, User};

async fn set(user: &User<'_>, field: &str, value: Value) -> crate::server::Answer {
    let path = format!("/profile/{}/{field}", user.id);
    user.put(&path, json!({ field: value })).await
}

#[tokio::test]
async fn a_profile_has_names_and_any_other_field() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let path = format!("/profile/{}", alice.id);
    set(&alice, "displayname", json!("Alice")).await.ok();
    set(&alice, "avatar_url", json!("mxc://localhost/abc"))
        .await
        .ok();
    set(&alice, "m.tz", json!("Europe/Berlin")).await.ok();
    let pronouns = json!([{ "language": "en", "summary": "she/her" }, 1.5, null]);
    set(&alice, "org.example.pronouns", pronouns.clone())
        .await
        .ok();
    let profile = bob.get(&path).await.ok();
    let unstable = "/_matrix/client/unstable/uk.tcpip.msc4133";
    let same = bob.get(&format!("{unstable}{path}")).await.ok();
    assert_eq!(same, profile);
    assert_eq!(
        profile,
        json!({
            "displayname": "Alice",
            "avatar_url": "mxc://localhost/abc",
            "m.tz": "Europe/Berlin",
            "org.example.pronouns": pronouns
        })
    );
    // Profiles are open to everybody, also on the paths of old and of new clients.
    let public = format!("/_matrix/client/r0{path}/displayname");
    let answer = server.request(Method::GET, &public, None, None).await;
    assert_eq!(answer.ok(), json!({ "displayname": "Alice" }));
    let unstable = format!("/_matrix/client/unstable/uk.tcpip.msc4133{path}/org.example.pronouns");
    let answer = server.request(Method::GET, &unstable, None, None).await;
    assert_eq!(answer.ok(), json!({ "org.example.pronouns": pronouns }));

    alice
        .delete(&format!("{path}/org.example.pronouns"))
        .await
        .ok();
    alice
        .delete(&format!("{path}/org.example.pronouns"))
        .await
        .ok();
    bob.get(&format!("{path}/org.example.pronouns"))
        .await
        .fails(404, "M_NOT_FOUND");
    set(&alice, "avatar_url", json!("")).await.ok();
    bob.get(&format!("{path}/avatar_url"))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn impossible_profiles_are_refused() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let path = format!("/profile/{}", alice.id);
    bob.put(
        &format!("{path}/displayname"),
        json!({ "displayname": "x" }),
    )
    .await
    .fails(403, "M_FORBIDDEN");
    bob.delete(&format!("{path}/displayname"))
        .await
        .fails(403, "M_FORBIDDEN");
    for (field, value) in [
        ("displayname", json!("x".repeat(2000))),
        ("avatar_url", json!(format!("mxc://{}/x", "x".repeat(2000)))),
        ("nonsense", json!(1)),
        ("Upper.case", json!(1)),
        ("m.%00", json!(1)),
    ] {
        let answer = alice
            .put(
                &format!("{path}/{field}"),
                json!({ field.replace("%00", "\0"): value }),
            )
            .await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    for value in [json!(1), json!(null), json!({})] {
        set(&alice, "displayname", value)
            .await
            .fails(400, "M_BAD_JSON");
    }
    let path_of_name = format!("{path}/displayname");
    for (body, code) in [
        (json!({ "other": 1 }), "M_MISSING_PARAM"),
        (json!(["displayname"]), "M_BAD_JSON"),
    ] {
        alice.put(&path_of_name, body).await.fails(400, code);
    }
    let answer = server
        .request(
            Method::PUT,
            &format!("/_matrix/client/v3{path_of_name}"),
            None,
            Some(json!({})),
        )
        .await;
    answer.fails(401, "M_MISSING_TOKEN");
    let long = format!("m.{}", "x".repeat(254));
    set(&alice, &long, json!(1))
        .await
        .fails(400, "M_KEY_TOO_LARGE");
    set(&alice, "m.big", json!("x".repeat(65_000))).await.ok();
    set(&alice, "m.more", json!("x".repeat(1000)))
        .await
        .fails(400, "M_PROFILE_TOO_LARGE");
    set(&alice, "m.big", json!("x")).await.ok();
    set(&alice, "m.more", json!("x".repeat(1000))).await.ok();
    for user in ["@nobody:localhost", "@alice:elsewhere.example"] {
        let answer = alice.get(&format!("/profile/{user}")).await;
        answer.fails(404, "M_NOT_FOUND");
    }
    let fresh = server.register("carol").await;
    fresh.get(&format!("/profile/{}", fresh.id)).await.ok();
}

#[tokio::test]
async fn rooms_hear_of_a_new_name() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut rooms = Vec::new();
    for _ in 0..3 {
        rooms.push(alice.create_room(json!({ "invite": [bob.id] })).await);
    }
    bob.post(&format!("/join/{}", rooms[0]), json!({}))
        .await
        .ok();
    bob.post(&format!("/join/{}", rooms[1]), json!({}))
        .await
        .ok();
    set(&bob, "displayname", json!("Bob")).await.ok();
    let app = &server.app;
    let nid = app.user(bob.id.as_str().try_into().unwrap()).await.unwrap();
    let member = async |room: &str| {
        let room = app.room(room.try_into().unwrap()).await.unwrap();
        let member = members::get(&app.db, room.nid, nid).await.unwrap().unwrap();
        (member.membership, member.display_name)
    };
    for room in &rooms[..2] {
        assert_eq!(
            member(room).await,
            (Membership::Join, Some("Bob".to_owned()))
        );
    }
    assert_eq!(
        member(&rooms[2]).await,
        (Membership::Invite, Some("bob".to_owned()))
    );
    // Two changes at once: in the end all rooms agree with the profile.
    let (one, other) = tokio::join!(
        set(&bob, "displayname", json!("One")),
        set(&bob, "displayname", json!("Other"))
    );
    one.ok();
    other.ok();
    let profile = bob.get(&format!("/profile/{}", bob.id)).await.ok();
    for room in &rooms[..2] {
        assert_eq!(
            member(room).await.1.as_deref(),
            profile["displayname"].as_str()
        );
    }
    tokio::time::timeout(Duration::from_secs(5), set(&bob, "displayname", json!("")))
        .await
        .unwrap()
        .ok();
    assert_eq!(member(&rooms[0]).await, (Membership::Join, None));
}
