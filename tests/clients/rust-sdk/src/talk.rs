//! What people do in a chat, encrypted or not.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use matrix_sdk::{
    room::{MessagesOptions, edit::EditedContent},
    ruma::{
        OwnedEventId,
        api::client::{
            presence::{get_presence, set_presence},
            receipt::create_receipt::v3::ReceiptType as SendReceiptType,
        },
        events::{
            AnySyncEphemeralRoomEvent, AnySyncMessageLikeEvent, AnySyncStateEvent,
            AnySyncTimelineEvent, SyncMessageLikeEvent,
            reaction::ReactionEventContent,
            receipt::{ReceiptThread, ReceiptType},
            relation::Annotation,
            room::{
                message::{Relation, RoomMessageEventContentWithoutRelation},
                redaction::SyncRoomRedactionEvent,
            },
        },
        presence::PresenceState,
    },
};
use tokio::time::sleep;

use crate::{person::Person, timed};

/// All of it, one after the other.
pub async fn talk(alice: &Person, bob: &Person) -> Result<()> {
    timed("both ways", both_ways(alice, bob)).await?;
    timed("typing", typing(alice, bob)).await?;
    timed("read receipts", read_receipts(alice, bob)).await?;
    timed("presence", presence(alice, bob)).await?;
    timed("edit", edit(alice, bob)).await?;
    timed("reaction", reaction(alice, bob)).await?;
    timed("redaction", redaction(alice, bob)).await?;
    timed("back pagination", back_pagination(alice, bob)).await
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
    bob.receive_in_room("the unread message", |room| {
        let mut events = room.timeline.events.iter();
        let is_there = events.any(|event| event.event_id() == Some(unread.clone()));
        (is_there && room.unread_notifications.notification_count >= 1).then_some(())
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
        bob.intelligible(&page.chunk)?;
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
