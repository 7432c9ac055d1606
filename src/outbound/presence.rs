//! Presence of local users, for the servers that share a room with them: at most one update for each user and half a
//! minute, unless they come or go.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ruma::{OwnedServerName, OwnedUserId, presence::PresenceState};
use serde::Serialize;
use tokio::sync::mpsc;

use super::edus::Note;
use crate::{
    app::App,
    error::{Error, Result},
    presence,
    storage::{ServerNid, UserNid},
};

/// How long there is between two updates about one user, in milliseconds.
const PAUSE: i64 = 30_000;
/// How often it is looked whose pause is over.
const TICK: Duration = Duration::from_secs(1);

/// A note and for whom it is.
pub(super) type Addressed = (Arc<Note>, Vec<(OwnedServerName, ServerNid)>);

/// What was said about users, and when.
#[derive(Debug, Default)]
struct Pauses {
    said: HashMap<UserNid, Said>,
    /// When the pauses end.
    ends: BTreeSet<(i64, UserNid)>,
}

#[derive(Debug)]
struct Said {
    at: i64,
    is_there: bool,
    /// Something has changed since.
    is_old: bool,
}

impl Pauses {
    /// The presence of a user has changed. Answers whether that is to be said now.
    fn changed(&mut self, user: UserNid, is_there: bool, now: i64) -> bool {
        if let Some(said) = self.said.get_mut(&user)
            && said.is_there == is_there
            && now < said.at + PAUSE
        {
            said.is_old = true;
            return false;
        }
        let said = Said {
            at: now,
            is_there,
            is_old: false,
        };
        if let Some(before) = self.said.insert(user, said) {
            self.ends.remove(&(before.at + PAUSE, user));
        }
        self.ends.insert((now + PAUSE, user));
        true
    }

    /// A user of whom something has changed while there was a pause that is over now.
    fn next(&mut self, now: i64) -> Option<UserNid> {
        while let Some((end, user)) = self.ends.first().copied()
            && end <= now
        {
            self.ends.pop_first();
            if self.said.remove(&user).is_some_and(|said| said.is_old) {
                return Some(user);
            }
        }
        None
    }
}

/// Turns changes of presence into notes, until the server ends.
pub(super) async fn run(
    app: Arc<App>,
    mut changed: mpsc::UnboundedReceiver<UserNid>,
    notes: mpsc::UnboundedSender<Addressed>,
) {
    let mut pauses = Pauses::default();
    loop {
        let next = async {
            if pauses.ends.is_empty() {
                return changed.recv().await.map(Some);
            }
            match tokio::time::timeout(TICK, changed.recv()).await {
                Ok(user) => user.map(Some),
                Err(_) => Some(None),
            }
        };
        let Some(Some(user)) = app.shutdown.run_until_cancelled(next).await else {
            return;
        };
        let mut users: Vec<UserNid> = user.into_iter().collect();
        users.extend(std::iter::from_fn(|| pauses.next(app.clock.now())));
        for user in users {
            match look(&app, &mut pauses, user).await {
                Ok(Some(addressed)) => drop(notes.send(addressed)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "other servers could not be told of somebody's presence");
                }
            }
        }
    }
}

/// What is to be said about a user now, and to whom.
async fn look(app: &App, pauses: &mut Pauses, user: UserNid) -> Result<Option<Addressed>> {
    #[derive(Serialize)]
    struct Update<'a> {
        currently_active: bool,
        last_active_ago: u64,
        presence: &'a PresenceState,
        #[serde(skip_serializing_if = "Option::is_none")]
        status_msg: Option<&'a str>,
        user_id: &'a OwnedUserId,
    }
    let view = presence::view(app, user).await?;
    let now = app.clock.now();
    if !pauses.changed(user, view.state != PresenceState::Offline, now) {
        return Ok(None);
    }
    let servers = servers(app, user).await?;
    if servers.is_empty() {
        return Ok(None);
    }
    let update = Update {
        currently_active: view.currently_active,
        last_active_ago: view.last_active_ago(now).unwrap_or(0),
        presence: &view.state,
        status_msg: view.status_msg.as_deref(),
        user_id: &app.names.user_id(&app.db, user).await?,
    };
    let json = serde_json::to_string(&update).map_err(Error::internal)?;
    Ok(Some((Arc::new(Note::Presence { user, json }), servers)))
}

/// The servers that share a room with a user.
async fn servers(app: &App, user: UserNid) -> Result<Vec<(OwnedServerName, ServerNid)>> {
    let rooms = presence::rooms(app, user).await?;
    let rooms = app.rooms.many(&app.db, || app.head(), &rooms).await?;
    let mut met = HashSet::new();
    let mut servers = Vec::new();
    for room in rooms.values() {
        let seen = room.seen();
        for (name, server) in &seen.servers {
            if server.joined > 0 && met.insert(server.server) {
                servers.push((name.clone(), server.server));
            }
        }
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: UserNid = UserNid(1);

    #[test]
    fn there_is_a_pause_between_updates_unless_somebody_comes_or_goes() {
        let mut pauses = Pauses::default();
        assert!(pauses.changed(USER, true, 0));
        assert!(!pauses.changed(USER, true, 1));
        assert!(pauses.changed(USER, false, 2));
        assert!(!pauses.changed(USER, false, 3));
        assert_eq!(pauses.next(PAUSE + 1), None, "the pause has begun anew");
        assert_eq!(pauses.next(PAUSE + 2), Some(USER));
        assert_eq!(pauses.next(PAUSE + 2), None, "said once");
        assert!(pauses.changed(USER, false, PAUSE + 2));
        assert_eq!(pauses.next(2 * PAUSE + 2), None, "nothing new");
        assert!(pauses.said.is_empty() && pauses.ends.is_empty());
    }
}
