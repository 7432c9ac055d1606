//! Two people talk through matrix-rust-sdk, a client library that this project did not write.
//!
//! Whatever one does is asserted where it matters: in what the other receives from `/sync`. See
//! `tests/clients/README.md` for the environment that this expects.

mod person;
mod server;

use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use matrix_sdk::{
    RoomMemberships, RoomState,
    room::{MessagesOptions, edit::EditedContent},
    ruma::{
        OwnedEventId, TransactionId,
        api::{
            client::{
                presence::{get_presence, set_presence},
                receipt::create_receipt::v3::ReceiptType as SendReceiptType,
            },
            error::ErrorKind,
        },
        events::{
            AnySyncEphemeralRoomEvent, AnySyncMessageLikeEvent, AnySyncStateEvent,
            AnySyncTimelineEvent, SyncMessageLikeEvent,
            reaction::ReactionEventContent,
            receipt::{ReceiptThread, ReceiptType},
            relation::Annotation,
            room::{
                member::MembershipState,
                message::{
                    Relation, RoomMessageEventContent, RoomMessageEventContentWithoutRelation,
                },
                redaction::SyncRoomRedactionEvent,
            },
        },
        presence::PresenceState,
    },
};
use person::{PASSWORD, Person};
use server::Server;
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<()> {
    let mut server = Server::from_environment()?;
    server.start().await?;
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let mut alice = Person::new(&server.url, &format!("alice{run}")).await?;
    let mut bob = Person::new(&server.url, &format!("bob{run}")).await?;

    timed("register and meet", register_and_meet(&mut alice, &mut bob)).await?;
    timed("both ways", both_ways(&alice, &bob)).await?;
    timed("typing", typing(&alice, &bob)).await?;
    timed("read receipts", read_receipts(&alice, &bob)).await?;
    timed("presence", presence(&alice, &bob)).await?;
    timed("edit", edit(&alice, &bob)).await?;
    timed("reaction", reaction(&alice, &bob)).await?;
    timed("redaction", redaction(&alice, &bob)).await?;
    timed("back pagination", back_pagination(&alice, &bob)).await?;
    timed("restart", restart(&alice, &bob, &mut server)).await?;
    timed("log out and in", log_out_and_in(&alice, bob, &server.url)).await?;
    server.stop().await?;
    println!("matrix-sdk: the whole conversation was held");
    Ok(())
}

async fn timed(step: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let started = Instant::now();
    work.await.with_context(|| step.to_owned())?;
    println!("  {step}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
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
    let room = alice.client.create_dm(bob.user_id()?).await?;
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

async fn both_ways(alice: &Person, bob: &Person) -> Result<()> {
    let hello = alice.say("Hello Bob").await?;
    let event = bob.hear("Hello Bob", &hello).await?;
    ensure!(event.sender == alice.user_id()?);

    // A sleeping sync is woken, it does not poll: Alice is asleep before Bob sends.
    alice.sync(Duration::ZERO).await?;
    let sending = async {
        sleep(Duration::from_secs(1)).await;
        let sent = Instant::now();
        anyhow::Ok((bob.say("Hello Alice").await?, sent))
    };
    let (event, sent) = tokio::join!(alice.receive_message("Hello Alice"), sending);
    let (event, (answer, sent)) = (event?, sent?);
    ensure!(event.event_id == answer && event.sender == bob.user_id()?);
    ensure!(
        sent.elapsed() < Duration::from_secs(2),
        "the sleeping sync was woken late"
    );
    Ok(())
}

async fn typing(alice: &Person, bob: &Person) -> Result<()> {
    let bob_id = bob.user_id()?;
    let users = |event| match event {
        AnySyncEphemeralRoomEvent::Typing(typing) => Some(typing.content.user_ids),
        _ => None,
    };
    bob.room()?.typing_notice(true).await?;
    alice
        .receive_ephemeral("that bob types", |event| {
            users(event).filter(|users| *users == [bob_id])
        })
        .await?;
    bob.room()?.typing_notice(false).await?;
    alice
        .receive_ephemeral("that bob stopped", |event| {
            users(event).filter(Vec::is_empty)
        })
        .await?;
    Ok(())
}

async fn read_receipts(alice: &Person, bob: &Person) -> Result<()> {
    let unread = alice.say("Have you read this?").await?;
    bob.receive_in_room("the unread count", |room| {
        (room.unread_notifications.notification_count >= 1).then_some(())
    })
    .await?;
    bob.room()?
        .send_single_receipt(
            SendReceiptType::Read,
            ReceiptThread::Unthreaded,
            unread.clone(),
        )
        .await?;
    let bob_id = bob.user_id()?;
    alice
        .receive_ephemeral("bob's receipt", |event| match event {
            AnySyncEphemeralRoomEvent::Receipt(receipt) => receipt
                .content
                .get(&unread)?
                .get(&ReceiptType::Read)?
                .get(bob_id)
                .map(drop),
            _ => None,
        })
        .await?;
    bob.receive_in_room("that nothing is unread", |room| {
        (room.unread_notifications.notification_count == 0).then_some(())
    })
    .await?;
    Ok(())
}

async fn presence(alice: &Person, bob: &Person) -> Result<()> {
    let bob_id = bob.user_id()?.to_owned();
    let mut request = set_presence::v3::Request::new(bob_id.clone(), PresenceState::Unavailable);
    request.status_msg = Some("At lunch".to_owned());
    bob.client.send(request).await?;
    alice
        .receive("bob's presence", |response| {
            let events = response
                .presence
                .iter()
                .filter_map(|event| event.deserialize().ok());
            events.filter(|event| event.sender == bob_id).find(|event| {
                event.content.presence == PresenceState::Unavailable
                    && event.content.status_msg.as_deref() == Some("At lunch")
            })
        })
        .await?;
    let asked = alice
        .client
        .send(get_presence::v3::Request::new(bob_id))
        .await?;
    ensure!(asked.presence == PresenceState::Unavailable, "{asked:?}");
    ensure!(asked.status_msg.as_deref() == Some("At lunch"), "{asked:?}");
    Ok(())
}

async fn edit(alice: &Person, bob: &Person) -> Result<()> {
    let original = alice.say("I am hapy").await?;
    bob.hear("I am hapy", &original).await?;
    let new_content = RoomMessageEventContentWithoutRelation::text_plain("I am happy");
    let room = alice.room()?;
    let content = room
        .make_edit_event(&original, EditedContent::RoomMessage(new_content))
        .await?;
    let edited = room.send(content).await?.response.event_id;
    let event = bob.hear("* I am happy", &edited).await?;
    let Some(Relation::Replacement(replacement)) = event.content.relates_to else {
        anyhow::bail!("not a replacement: {:?}", event.content);
    };
    ensure!(
        replacement.event_id == original && replacement.new_content.msgtype.body() == "I am happy"
    );
    // Who asks for the original is told of its replacement.
    let event = bob
        .room()?
        .event(&original, None)
        .await?
        .raw()
        .deserialize()?;
    let AnySyncTimelineEvent::MessageLike(event) = event else {
        anyhow::bail!("not a message: {event:?}");
    };
    ensure!(event.relations().has_replacement(), "{event:?}");
    Ok(())
}

async fn reaction(alice: &Person, bob: &Person) -> Result<()> {
    let target = alice.say("A joke").await?;
    bob.hear("A joke", &target).await?;
    let content = ReactionEventContent::new(Annotation::new(target.clone(), "👍".to_owned()));
    let sent = bob.room()?.send(content).await?.response.event_id;
    let event = alice
        .receive_event("the reaction", |event| match event {
            AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::Reaction(
                SyncMessageLikeEvent::Original(reaction),
            )) => Some(reaction),
            _ => None,
        })
        .await?;
    ensure!(event.event_id == sent && event.sender == bob.user_id()?);
    ensure!(event.content.relates_to.event_id == target && event.content.relates_to.key == "👍");
    Ok(())
}

async fn redaction(alice: &Person, bob: &Person) -> Result<()> {
    let mistake = alice.say("Never mind").await?;
    bob.hear("Never mind", &mistake).await?;
    let redacted = alice
        .room()?
        .redact(&mistake, Some("a mistake"), None)
        .await?
        .event_id;
    let event = bob
        .receive_event("the redaction", |event| match event {
            AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomRedaction(
                SyncRoomRedactionEvent::Original(redaction),
            )) => Some(redaction),
            _ => None,
        })
        .await?;
    ensure!(event.event_id == redacted && event.content.reason.as_deref() == Some("a mistake"));
    ensure!(event.content.redacts.as_ref().or(event.redacts.as_ref()) == Some(&mistake));
    let pruned = bob
        .room()?
        .event(&mistake, None)
        .await?
        .raw()
        .deserialize()?;
    let AnySyncTimelineEvent::MessageLike(pruned) = pruned else {
        anyhow::bail!("not a message: {pruned:?}");
    };
    ensure!(pruned.is_redacted(), "{pruned:?}");
    Ok(())
}

async fn back_pagination(alice: &Person, bob: &Person) -> Result<()> {
    let mut said = Vec::new();
    for n in 0..40 {
        said.push(alice.say(&format!("message {n}")).await?);
    }
    bob.receive_message("message 39").await?;

    let recent = bob.timeline_from_scratch(5).await?;
    ensure!(recent.limited && recent.events.len() == 5, "{recent:?}");
    // Newest first, from the timeline's start back to the room's creation.
    let mut walked = Vec::new();
    for event in recent.events.iter().rev() {
        walked.push(event.deserialize()?);
    }
    let mut token = recent.prev_batch;
    while token.is_some() {
        let mut options = MessagesOptions::backward().from(token.as_deref());
        options.limit = 7_u32.into();
        let page = bob.room()?.messages(options).await?;
        ensure!(page.chunk.len() <= 7);
        for event in page.chunk {
            walked.push(event.raw().deserialize()?);
        }
        token = page.end;
    }
    let ids: Vec<OwnedEventId> = walked
        .iter()
        .map(|event| event.event_id().to_owned())
        .collect();
    ensure!(
        ids.iter().collect::<HashSet<_>>().len() == ids.len(),
        "an event came twice: {ids:?}"
    );
    let heard: Vec<_> = ids.iter().filter(|id| said.contains(id)).collect();
    ensure!(heard.iter().copied().eq(said.iter().rev()), "{heard:?}");
    let oldest = walked.last().context("no history")?;
    ensure!(
        matches!(
            oldest,
            AnySyncTimelineEvent::State(AnySyncStateEvent::RoomCreate(_))
        ),
        "{oldest:?}"
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
    // Bob is asleep while the server stops: his request must end, by an answer or by an error.
    let (_, stopped) = tokio::join!(bob.sync(Duration::from_secs(30)), async {
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

async fn log_out_and_in(alice: &Person, bob: Person, url: &str) -> Result<()> {
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
    let mut again = Person::new(url, &bob.name).await?;
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
    auth.login_username(&bob.name, PASSWORD)
        .initial_device_display_name("again")
        .send()
        .await?;
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
