//! Two people talk through matrix-rust-sdk, a client library that this project did not write.
//!
//! Whatever one does is asserted where it matters: in what the other receives from `/sync`. See
//! `tests/clients/README.md` for the environment that this expects.

mod encryption;
mod person;
mod server;
mod talk;

use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use matrix_sdk::{
    RoomMemberships, RoomState,
    ruma::{
        TransactionId,
        api::{client::room::create_room, error::ErrorKind},
        events::{
            AnySyncStateEvent, AnySyncTimelineEvent,
            room::{member::MembershipState, message::RoomMessageEventContent},
        },
    },
};
use person::Person;
use server::Server;
use talk::talk;
use tokio::time::sleep;

/// Holds the conversation in the open, and then encrypted. Alice begins it.
#[tokio::main]
async fn main() -> Result<()> {
    let mut server = Server::from_environment()?;
    server.start().await?;
    // Two people of one server speak in the open, too; between servers that has checks of its own.
    if !server.is_shared_with_another {
        in_the_open(&mut server).await?;
    }
    encrypted(&mut server).await?;
    server.stop().await?;
    println!("matrix-sdk: the whole conversation was held");
    Ok(())
}

async fn in_the_open(server: &mut Server) -> Result<()> {
    let (mut alice, mut bob) = people(server, false).await?;
    timed("register and meet", register_and_meet(&mut alice, &mut bob)).await?;
    talk(&alice, &bob).await?;
    timed("restart", restart(&alice, &bob, server)).await?;
    timed("log out and in", log_out_and_in(&alice, bob, server)).await
}

async fn encrypted(server: &mut Server) -> Result<()> {
    let (mut alice, mut bob) = people(server, true).await?;
    timed(
        "register and meet in private",
        register_and_meet(&mut alice, &mut bob),
    )
    .await?;
    let (alice_key, bob_key) = timed("recovery", encryption::set_up_recovery(&alice, &bob)).await?;
    talk(&alice, &bob).await?;
    timed("emoji", encryption::verify_each_other(&alice, &bob)).await?;
    timed("picture", encryption::picture(&alice, &bob)).await?;
    timed("restart", restart(&alice, &bob, server)).await?;
    timed(
        "second device by emoji",
        encryption::second_device(&alice, &bob, &server.url_of_alice),
    )
    .await?;
    let urls = (&*server.url_of_alice, &*server.url_of_bob);
    timed(
        "all devices lost",
        encryption::all_devices_lost(alice, bob, (&alice_key, &bob_key), urls),
    )
    .await
}

/// Two people with new names, on the servers of either.
async fn people(server: &Server, is_private: bool) -> Result<(Person, Person)> {
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let alice = Person::new(&server.url_of_alice, &format!("alice{run}"), is_private).await?;
    let bob = Person::new(&server.url_of_bob, &format!("bob{run}"), is_private).await?;
    Ok((alice, bob))
}

async fn timed<T>(step: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    let done = work.await.with_context(|| step.to_owned())?;
    println!("  {step}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(done)
}

async fn register_and_meet(alice: &mut Person, bob: &mut Person) -> Result<()> {
    for person in [&*alice, &*bob] {
        person.register().await?;
        let who = person.client.whoami().await?;
        ensure!(
            who.user_id == person.user_id()?
                && who.device_id.as_deref() == person.client.device_id()
        );
        person.sync(Duration::ZERO).await?;
    }
    let room = if alice.is_private {
        // Who has no keys for cross-signing yet needs no password for the first ones.
        for person in [&*alice, &*bob] {
            person
                .client
                .encryption()
                .bootstrap_cross_signing(None)
                .await?;
        }
        alice.client.create_dm(bob.user_id()?).await?
    } else {
        let mut request = create_room::v3::Request::new();
        request.invite = vec![bob.user_id()?.to_owned()];
        request.is_direct = true;
        request.preset = Some(create_room::v3::RoomPreset::TrustedPrivateChat);
        alice.client.create_room(request).await?
    };
    let room_id = room.room_id().to_owned();
    alice.room_id = Some(room_id.clone());
    bob.room_id = Some(room_id.clone());

    bob.receive("the invite", |response| {
        response.rooms.invited.get(&room_id).map(drop)
    })
    .await?;
    let invited = bob.room()?;
    ensure!(invited.state() == RoomState::Invited);
    ensure!(
        invited.is_direct().await?,
        "the invite is not to a direct chat"
    );
    let inviter = invited
        .invite_details()
        .await?
        .inviter
        .context("the invite has no inviter")?;
    ensure!(inviter.user_id() == alice.user_id()?);

    invited.join().await?;
    let bob_id = bob.user_id()?;
    alice
        .receive_event("bob's join", |event| match event {
            AnySyncTimelineEvent::State(AnySyncStateEvent::RoomMember(member))
                if member.state_key() == bob_id
                    && *member.membership() == MembershipState::Join =>
            {
                Some(())
            }
            _ => None,
        })
        .await?;
    bob.receive_in_room("the joined room", |_| Some(())).await?;
    for person in [&*alice, &*bob] {
        let room = person.room()?;
        ensure!(room.state() == RoomState::Joined);
        let members = room.members(RoomMemberships::JOIN).await?;
        let ids: HashSet<_> = members.iter().map(|member| member.user_id()).collect();
        ensure!(
            ids == HashSet::from([alice.user_id()?, bob.user_id()?]),
            "{ids:?}"
        );
    }
    ensure!(
        alice.client.get_dm_room(bob_id).is_some(),
        "m.direct did not come back"
    );
    Ok(())
}

async fn restart(alice: &Person, bob: &Person, server: &mut Server) -> Result<()> {
    let transaction_id = TransactionId::new();
    let send = || async {
        let content = RoomMessageEventContent::text_plain("Before the restart");
        let sending = alice
            .room()?
            .send(content)
            .with_transaction_id(transaction_id.clone())
            .await?;
        anyhow::Ok(sending.response.event_id)
    };
    let before = send().await?;
    bob.sync(Duration::ZERO).await?;
    // Bob is asleep while his server stops: his request must end, by an answer or by an error.
    let asleep = Duration::from_secs(if server.is_shared_with_another { 2 } else { 30 });
    let (_, stopped) = tokio::join!(bob.sync(asleep), async {
        sleep(Duration::from_millis(500)).await;
        server.stop().await
    });
    stopped?;
    server.start().await?;

    // Access tokens, sync tokens and transaction ids are all as valid as before.
    ensure!(send().await? == before, "sent twice");
    let after = alice.say("After the restart").await?;
    bob.receive_event("the message after the restart", |event| {
        (event.event_id() == before)
            .then_some(Err(()))
            .or((event.event_id() == after).then_some(Ok(())))
    })
    .await?
    .map_err(|()| anyhow::anyhow!("a message came again after the restart"))?;
    let mut ids = Vec::new();
    for event in bob.timeline_from_scratch(2).await?.events {
        ids.push(event.deserialize()?.event_id().to_owned());
    }
    ensure!(ids == [before, after], "{ids:?}");
    let answer = bob.say("Still here").await?;
    alice.hear("Still here", &answer).await?;
    Ok(())
}

async fn log_out_and_in(alice: &Person, bob: Person, server: &Server) -> Result<()> {
    let old_device = bob.client.device_id().context("no device")?.to_owned();
    bob.client.logout().await?;
    let refused = bob
        .client
        .whoami()
        .await
        .err()
        .context("the old token still works")?;
    ensure!(
        matches!(
            refused.client_api_error_kind(),
            Some(ErrorKind::UnknownToken { .. })
        ),
        "{refused:?}"
    );

    let while_away = alice.say("While you were away").await?;
    let mut again = Person::new(&server.url_of_bob, &bob.name, false).await?;
    let auth = again.client.matrix_auth();
    let wrong = auth
        .login_username(&bob.name, "wrong password")
        .send()
        .await;
    let wrong = wrong.err().context("a wrong password was accepted")?;
    ensure!(
        matches!(wrong.client_api_error_kind(), Some(ErrorKind::Forbidden)),
        "{wrong:?}"
    );
    again.log_in("again").await?;
    ensure!(
        again
            .client
            .device_id()
            .is_some_and(|device| device != old_device)
    );
    again.room_id.clone_from(&alice.room_id);
    again.hear("While you were away", &while_away).await?;
    let devices = again.client.devices().await?.devices;
    let ids: Vec<_> = devices
        .iter()
        .map(|device| Some(&*device.device_id))
        .collect();
    ensure!(ids == [again.client.device_id()], "{ids:?}");
    let answer = again.say("Back again").await?;
    alice.hear("Back again", &answer).await?;
    Ok(())
}
