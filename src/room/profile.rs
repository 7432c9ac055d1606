//! What a user says about themselves, brought into the rooms that they have joined.

use std::{collections::HashMap, sync::Arc};

use futures_util::{StreamExt as _, stream};
use ruma::{
    UserId,
    api::federation::query::get_profile_information,
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::Value;

use super::{
    append::{NewEvent, Sender, append},
    membership,
};
use crate::{
    app::App,
    error::{Error, Result},
    remote::{self, Profile},
    storage::{Membership, UserNid, directory, members, profiles},
};

/// The largest profile of another server's user, in bytes of JSON.
const PROFILE_BYTES: u64 = 128 << 10;
/// How long the profile of another server's user is kept, in milliseconds.
const KEPT: i64 = 10_000;
/// How many rooms are told at once.
const AT_ONCE: usize = 32;
/// How often the rooms are told again because the profile changed meanwhile.
const TRIES: usize = 5;

/// Display name and avatar as member events have them.
type Names = (Option<String>, Option<String>);

/// The display name and the avatar of a local user.
///
/// # Errors
/// If the database fails.
pub async fn names(app: &App, user: UserNid) -> Result<Names> {
    let mut fields: HashMap<String, String> =
        profiles::many(&app.db, &[user], ["displayname", "avatar_url"])
            .await?
            .into_iter()
            .filter_map(|(_, field, json)| Some((field, serde_json::from_str(&json).ok()?)))
            .collect();
    Ok((fields.remove("displayname"), fields.remove("avatar_url")))
}

/// All fields of somebody's profile, by name. Those of other servers' users are asked for there.
///
/// # Errors
/// `M_NOT_FOUND` if there is no such user, 502 `M_UNKNOWN` if their server does not answer.
pub async fn fields(app: &App, user: &UserId) -> Result<Profile> {
    if app.is_local(user) {
        return local(app, user).await.map(Arc::new);
    }
    let now = app.clock.now();
    if let Some((until, profile)) = app.remote.profiles.get(user)
        && until > now
    {
        return Ok(profile);
    }
    let request = get_profile_information::v1::Request::new(user.to_owned());
    let answer = remote::ask(app, user.server_name(), request, PROFILE_BYTES).await?;
    let profile: Profile = Arc::new(answer.into_iter().collect());
    let kept = (now + KEPT, Arc::clone(&profile));
    app.remote.profiles.insert(user.to_owned(), kept);
    Ok(profile)
}

/// All fields of the profile of a user who has an account here, by name.
///
/// # Errors
/// `M_NOT_FOUND` if there is no such user.
pub async fn local(app: &App, user: &UserId) -> Result<Vec<(String, Value)>> {
    let unknown = || Error::not_found("there is no such user here");
    let nid = app.names.find_user(&app.db, user).await?;
    let nid = nid.filter(|_| app.is_local(user)).ok_or_else(unknown)?;
    let fields = profiles::get(&app.db, nid).await?;
    if fields.is_empty() && !directory::has_account(&app.db, nid).await? {
        return Err(unknown());
    }
    let value = |json: &str| serde_json::from_str(json).map_err(Error::internal);
    let fields = fields.into_iter();
    fields
        .map(|(name, json)| Ok((name, value(&json)?)))
        .collect()
}

/// Sends a member event to each joined room that knows another display name or avatar of the user. A room that refuses
/// it keeps what it has.
///
/// # Errors
/// If the database fails.
pub async fn spread(app: &Arc<App>, sender: &Sender) -> Result<()> {
    // Another change may come while this one goes round; whoever ends last makes sure that the newest stands.
    for _ in 0..TRIES {
        let names = names(app, sender.user).await?;
        let rooms: Vec<_> = members::of_user(&app.db, sender.user)
            .await?
            .into_iter()
            .filter(|member| member.membership == Membership::Join)
            .filter(|member| (&member.display_name, &member.avatar_url) != (&names.0, &names.1))
            .map(|member| member.room)
            .collect();
        if rooms.is_empty() {
            return Ok(());
        }
        let rooms = app.rooms.many(&app.db, &app.log, &rooms).await?;
        let sent: Vec<Result<()>> = stream::iter(rooms.into_values())
            .map(|room| async move {
                let content = membership::content(app, &sender.id, MembershipState::Join).await?;
                let user: &UserId = &sender.id;
                let event = NewEvent::state(StateEventType::RoomMember, user.as_str(), content);
                match append(app, &room, sender, event).await {
                    Ok(_) => Ok(()),
                    Err(error @ Error::Matrix { .. }) => {
                        tracing::warn!(room = %room.id, %user, %error, "a room refuses a profile");
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        sent.into_iter().collect::<Result<()>>()?;
        if self::names(app, sender.user).await? == names {
            return Ok(());
        }
    }
    Ok(())
}
