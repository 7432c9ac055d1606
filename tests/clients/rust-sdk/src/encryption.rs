//! What there is besides to a conversation that is encrypted: emoji, backup, pictures, new devices.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, ensure};
use matrix_sdk::{
    attachment::AttachmentConfig,
    encryption::verification::{Verification, VerificationRequest, VerificationRequestState},
    media::{MediaFormat, MediaRequestParameters},
    room::MessagesOptions,
    ruma::{
        api::client::backup::{get_backup_keys_for_room, get_latest_backup_info},
        events::{
            AnySyncMessageLikeEvent, AnySyncTimelineEvent, SyncMessageLikeEvent,
            key::verification::VerificationMethod, room::MediaSource, room::message::MessageType,
        },
        uint,
    },
};
use tokio::time::Instant;

use crate::person::Person;

/// Time after which something that should have happened counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes either one's secret storage and key backup, and returns the two recovery keys.
pub async fn set_up_recovery(alice: &Person, bob: &Person) -> Result<(String, String)> {
    let mut keys = Vec::new();
    for person in [alice, bob] {
        let encryption = person.client.encryption();
        keys.push(encryption.recovery().enable().await?);
        ensure!(encryption.backups().fetch_exists_on_server().await?);
    }
    let bob_key = keys.pop().context("no key")?;
    Ok((keys.pop().context("no key")?, bob_key))
}

/// Alice asks in the room; both compare seven emoji.
pub async fn verify_each_other(alice: &Person, bob: &Person) -> Result<()> {
    let theirs = |person: &Person, other: &Person| {
        let (encryption, other) = (
            person.client.encryption(),
            other.user_id().map(ToOwned::to_owned),
        );
        async move {
            let identity = encryption.request_user_identity(&other?).await?;
            identity.context("no identity")
        }
    };
    let identity = theirs(alice, bob).await?;
    ensure!(!identity.is_verified());
    let request = identity
        .request_verification_with_methods(vec![VerificationMethod::SasV1])
        .await?;
    compare_emoji(alice, &request, bob).await?;
    ensure!(theirs(alice, bob).await?.is_verified());
    ensure!(theirs(bob, alice).await?.is_verified());
    Ok(())
}

async fn compare_emoji(
    asking: &Person,
    request: &VerificationRequest,
    asked: &Person,
) -> Result<()> {
    let (asking_id, flow) = (asking.user_id()?, request.flow_id());
    let methods = vec![VerificationMethod::SasV1];
    let theirs = until("the request", asking, asked, async || {
        let encryption = asked.client.encryption();
        encryption.get_verification_request(asking_id, flow).await
    })
    .await?;
    theirs.accept_with_methods(methods).await?;
    until("readiness", asking, asked, async || {
        request.is_ready().then_some(())
    })
    .await?;
    let mine = request.start_sas().await?.context("no emoji to compare")?;
    let theirs = until("the start", asking, asked, async || match theirs.state() {
        VerificationRequestState::Transitioned {
            verification: Verification::SasV1(sas),
        } => Some(sas),
        _ => None,
    })
    .await?;
    theirs.accept().await?;
    until("the emoji", asking, asked, async || {
        (mine.can_be_presented() && theirs.can_be_presented()).then_some(())
    })
    .await?;
    let names = |emoji: Option<[_; 7]>| {
        emoji.map(|emoji| emoji.map(|one: matrix_sdk::encryption::verification::Emoji| one.symbol))
    };
    ensure!(mine.emoji().is_some() && names(mine.emoji()) == names(theirs.emoji()));
    mine.confirm().await?;
    theirs.confirm().await?;
    until("the end", asking, asked, async || {
        (mine.is_done() && theirs.is_done()).then_some(())
    })
    .await
}

/// Syncs both until there is what is waited for.
async fn until<T>(
    what: &str,
    one: &Person,
    other: &Person,
    find: impl AsyncFn() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find().await {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what} did not come");
        let brief = Duration::from_millis(200);
        tokio::try_join!(one.sync(brief), other.sync(brief))?;
    }
}

/// A picture that the server keeps without being able to see it.
pub async fn picture(alice: &Person, bob: &Person) -> Result<()> {
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let kind = "image/png".parse()?;
    alice
        .room()?
        .send_attachment("cat.png", &kind, bytes.clone(), AttachmentConfig::new())
        .await?;
    let image = bob
        .receive_event("the picture", |event| match event {
            AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomMessage(
                SyncMessageLikeEvent::Original(message),
            )) => match message.content.msgtype {
                MessageType::Image(image) => Some(image),
                _ => None,
            },
            _ => None,
        })
        .await?;
    ensure!(
        matches!(image.source, MediaSource::Encrypted(_)),
        "{image:?}"
    );
    let request = MediaRequestParameters {
        source: image.source,
        format: MediaFormat::File,
    };
    let received = bob
        .client
        .media()
        .get_media_content(&request, false)
        .await?;
    ensure!(received == bytes, "the picture came changed");
    Ok(())
}

/// Alice logs in on a second device, which her first one vouches for and gives all keys to.
pub async fn second_device(alice: &Person, bob: &Person, url: &str) -> Result<()> {
    backed_up(alice, bob).await?;
    let mut second = Person::new(url, &alice.name, true).await?;
    second.lacks_keys = true;
    second.log_in("second").await?;
    second.room_id.clone_from(&alice.room_id);
    second.sync(Duration::ZERO).await?;
    // A request by a device that one does not know of is not taken.
    let device_id = second.client.device_id().context("no device")?;
    until("news of the second device", alice, bob, async || {
        let encryption = alice.client.encryption();
        encryption
            .get_device(alice.user_id().ok()?, device_id)
            .await
            .ok()?
    })
    .await?;
    let identity = second
        .client
        .encryption()
        .get_user_identity(second.user_id()?)
        .await?
        .context("alice has no identity")?;
    let request = identity
        .request_verification_with_methods(vec![VerificationMethod::SasV1])
        .await?;
    compare_emoji(&second, &request, alice).await?;
    // The first device sends the secrets, with which the second one fetches the backup.
    let encryption = second.client.encryption();
    until("the secrets", &second, alice, async || {
        let status = encryption.cross_signing_status().await?;
        (status.is_complete() && encryption.backups().are_enabled().await).then_some(())
    })
    .await?;
    second.lacks_keys = false;
    until("the keys of the room", &second, alice, async || {
        reads_everything(&second).await.ok()
    })
    .await?;
    let both = bob.say("To both of your devices").await?;
    alice.hear("To both of your devices", &both).await?;
    second.hear("To both of your devices", &both).await?;
    let answer = second.say("From the second one").await?;
    bob.hear("From the second one", &answer).await?;
    alice.hear("From the second one", &answer).await?;
    second.client.logout().await?;
    Ok(())
}

/// Both log out everywhere, log in anew, and have their history again with their recovery keys.
pub async fn all_devices_lost(
    alice: Person,
    bob: Person,
    keys: (&str, &str),
    urls: (&str, &str),
) -> Result<()> {
    let mut again = Vec::new();
    backed_up(&alice, &bob).await?;
    backed_up(&bob, &alice).await?;
    for (person, key, url) in [(&alice, keys.0, urls.0), (&bob, keys.1, urls.1)] {
        person.client.logout().await?;
        let mut new = Person::new(url, &person.name, true).await?;
        new.log_in("again").await?;
        new.room_id.clone_from(&person.room_id);
        new.client.encryption().recovery().recover(key).await?;
        again.push(new);
    }
    let [alice, bob] = &again[..] else {
        anyhow::bail!("two people");
    };
    for person in &again {
        person.sync(Duration::ZERO).await?;
        reads_everything(person).await?;
        // They remember whom they compared emoji with: it is in the signatures on the server.
        let other = if person.name == alice.name {
            bob
        } else {
            alice
        };
        let (encryption, other) = (person.client.encryption(), other.user_id()?);
        let identity = encryption.request_user_identity(other).await?;
        ensure!(identity.is_some_and(|identity| identity.is_verified()));
        // And so they trust the other's new device, which has signed itself with the recovered keys.
        until("trust in the new device", alice, bob, async || {
            let devices = encryption.get_user_devices(other).await.ok()?;
            let mut devices = devices.devices();
            let only = devices.next().filter(|_| devices.next().is_none())?;
            only.is_verified_with_cross_signing().then_some(())
        })
        .await?;
    }
    let hello = alice.say("New telephone").await?;
    bob.hear("New telephone", &hello).await?;
    let answer = bob.say("Mine too").await?;
    alice.hear("Mine too", &answer).await?;
    Ok(())
}

/// Waits until the backup has the keys of all that was said in the room.
async fn backed_up(person: &Person, other: &Person) -> Result<()> {
    let backups = person.client.encryption().backups();
    let said = reads_everything(person).await?;
    until("the backup of all keys", person, other, async || {
        backups.wait_for_steady_state().await.ok()?;
        let client = &person.client;
        let request = get_latest_backup_info::v3::Request::new();
        let version = client.send(request).await.ok()?.version;
        let room_id = person.room_id.clone()?;
        let request = get_backup_keys_for_room::v3::Request::new(version, room_id);
        let kept = client.send(request).await.ok()?.sessions;
        said.iter()
            .all(|session| kept.contains_key(session))
            .then_some(())
    })
    .await
}

/// Walks back through the whole room, every message of which must be intelligible. Returns the sessions
/// that they were encrypted in.
async fn reads_everything(person: &Person) -> Result<HashSet<String>> {
    let mut token = None;
    let (mut decrypted, mut sessions) = (0, HashSet::new());
    loop {
        let mut options = MessagesOptions::backward().from(token.as_deref());
        options.limit = uint!(50);
        let page = person.room()?.messages(options).await?;
        person.intelligible(&page.chunk)?;
        for event in &page.chunk {
            decrypted += usize::from(event.encryption_info().is_some());
            sessions.extend(event.kind.session_id().map(ToOwned::to_owned));
        }
        token = page.end;
        if token.is_none() {
            break;
        }
    }
    ensure!(decrypted > 45, "only {decrypted} messages were decrypted");
    Ok(sessions)
}
