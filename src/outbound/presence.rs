//! Presence of local users, for the servers that share a room with them: at most one update for each user and half a
//! minute, unless their state or what they say of it changes.

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
    outgoing::News,
    presence::{self, View},
    storage::{ServerNid, UserNid},
};

/// How long there is between two updates about one user, in milliseconds.
const PAUSE: i64 = 30_000;
/// How long it takes until it is said again that somebody is there, in milliseconds: other servers believe it for half an
/// hour.
const AGAIN: i64 = 25 * 60_000;
/// How often it is looked whose pause is over.
const TICK: Duration = Duration::from_secs(1);

/// A note and for whom it is.
pub(super) type Addressed = (Arc<Note>, Vec<(OwnedServerName, ServerNid)>);

/// What was said about users, and when.
#[derive(Debug, Default)]
struct Pauses {
    said: HashMap<UserNid, Said>,
    /// When they are to be looked at again.
    ends: BTreeSet<(i64, UserNid)>,
}

#[derive(Debug)]
struct Said {
    at: i64,
    told: Told,
    /// Something has changed since.
    is_old: bool,
    /// The entry in [`Pauses::ends`].
    end: i64,
}

/// What others are to know at once. When somebody was last active can wait.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    state: PresenceState,
    status_msg: Option<String>,
}

impl Told {
    fn is_there(&self) -> bool {
        self.state != PresenceState::Offline
    }
}

impl Pauses {
    /// The presence of a user has changed. Answers whether that is to be said now.
    fn changed(&mut self, user: UserNid, told: Told, now: i64) -> bool {
        if let Some(said) = self.said.get_mut(&user) {
            if said.told == told && now < said.at + PAUSE {
                said.is_old = true;
                return false;
            }
            self.ends.remove(&(said.end, user));
        }
        let said = Said {
            at: now,
            told,
            is_old: false,
            end: now + PAUSE,
        };
        self.ends.insert((said.end, user));
        self.said.insert(user, said);
        true
    }

    /// A user of whom something is to be said because time has passed.
    fn next(&mut self, now: i64) -> Option<UserNid> {
        while let Some((end, user)) = self.ends.first().copied()
            && end <= now
        {
            self.ends.pop_first();
            let Some(said) = self.said.get_mut(&user) else {
                continue;
            };
            let again = said.at + AGAIN;
            if said.told.is_there() && !said.is_old && again > now {
                said.end = again;
                self.ends.insert((again, user));
                continue;
            }
            if self
                .said
                .remove(&user)
                .is_some_and(|said| said.is_old || said.told.is_there())
            {
                return Some(user);
            }
        }
        None
    }
}

/// Turns changes of presence into notes, until the server ends.
pub(super) async fn run(
    app: Arc<App>,
    mut news: mpsc::UnboundedReceiver<News>,
    notes: mpsc::UnboundedSender<Addressed>,
) {
    let mut pauses = Pauses::default();
    loop {
        let next = async {
            if pauses.ends.is_empty() {
                return news.recv().await.map(Some);
            }
            match tokio::time::timeout(TICK, news.recv()).await {
                Ok(news) => news.map(Some),
                Err(_) => Some(None),
            }
        };
        let Some(Some(news)) = app.shutdown.run_until_cancelled(next).await else {
            return;
        };
        if !(app.config.presence.enabled && app.config.federation.presence) {
            continue;
        }
        let mut said = Vec::new();
        if let Some(news) = news {
            said.push(hear(&app, &mut pauses, news).await);
        }
        while let Some(user) = pauses.next(app.clock.now()) {
            said.push(look(&app, &mut pauses, user).await);
        }
        for said in said {
            match said {
                Ok(addressed) => {
                    for addressed in addressed {
                        // At the end of the server nobody takes it any more.
                        drop(notes.send(addressed));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "other servers could not be told of somebody's presence");
                }
            }
        }
    }
}

/// What is to be said about news, and to whom.
async fn hear(app: &App, pauses: &mut Pauses, news: News) -> Result<Vec<Addressed>> {
    let (room, users, servers) = match news {
        News::Presence(user) => return look(app, pauses, user).await,
        News::Joined { room, user } => {
            let servers = super::sender::joined(&room);
            (room, vec![user], servers)
        }
        News::Came { room, name, server } => {
            let users = room.seen().local.keys().copied().collect();
            (room, users, vec![(name, server)])
        }
        _ => return Ok(Vec::new()),
    };
    let mut there = app.presence.present(app.clock.now());
    let mut addressed = Vec::new();
    for user in users {
        if room.seen().local.contains_key(&user)
            && let Some(view) = there.remove(&user)
        {
            addressed.push((note(app, user, &view).await?, servers.clone()));
        }
    }
    Ok(addressed)
}

/// What is to be said about a user now, and to whom.
async fn look(app: &App, pauses: &mut Pauses, user: UserNid) -> Result<Vec<Addressed>> {
    let view = presence::view(app, user).await?;
    let told = Told {
        state: view.state.clone(),
        status_msg: view.status_msg.as_deref().map(str::to_owned),
    };
    if !pauses.changed(user, told, app.clock.now()) {
        return Ok(Vec::new());
    }
    let servers = servers(app, user).await?;
    if servers.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![(note(app, user, &view).await?, servers)])
}

/// How a user is, as it is sent.
async fn note(app: &App, user: UserNid, view: &View) -> Result<Arc<Note>> {
    #[derive(Serialize)]
    struct Update<'a> {
        currently_active: bool,
        last_active_ago: u64,
        presence: &'a PresenceState,
        #[serde(skip_serializing_if = "Option::is_none")]
        status_msg: Option<&'a str>,
        user_id: &'a OwnedUserId,
    }
    let update = Update {
        currently_active: view.currently_active,
        last_active_ago: view.last_active_ago(app.clock.now()).unwrap_or(0),
        presence: &view.state,
        status_msg: view.status_msg.as_deref(),
        user_id: &app.names.user_id(&app.db, user).await?,
    };
    let json = serde_json::to_string(&update).map_err(Error::internal)?;
    Ok(Arc::new(Note::Presence { user, json }))
}

/// The servers that share a room with a user.
async fn servers(app: &App, user: UserNid) -> Result<Vec<(OwnedServerName, ServerNid)>> {
    let rooms = presence::rooms(app, user).await?;
    let rooms = app.rooms.many(&app.db, &app.log, &rooms).await?;
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

    fn told(is_there: bool) -> Told {
        let state = if is_there {
            PresenceState::Online
        } else {
            PresenceState::Offline
        };
        Told {
            state,
            status_msg: None,
        }
    }

    #[test]
    fn there_is_a_pause_between_updates_unless_something_is_new() {
        let mut pauses = Pauses::default();
        assert!(pauses.changed(USER, told(true), 0));
        assert!(!pauses.changed(USER, told(true), 1));
        let busy = Told {
            state: PresenceState::Unavailable,
            status_msg: None,
        };
        assert!(pauses.changed(USER, busy.clone(), 1));
        let says_so = Told {
            status_msg: Some("at tea".to_owned()),
            ..busy
        };
        assert!(pauses.changed(USER, says_so.clone(), 1));
        assert!(!pauses.changed(USER, says_so, 1));
        assert!(pauses.changed(USER, told(false), 2));
        assert!(!pauses.changed(USER, told(false), 3));
        assert_eq!(pauses.next(PAUSE + 1), None, "the pause has begun anew");
        assert_eq!(pauses.next(PAUSE + 2), Some(USER));
        assert_eq!(pauses.next(PAUSE + 2), None, "said once");
        assert!(pauses.changed(USER, told(false), PAUSE + 2));
        assert_eq!(pauses.next(2 * PAUSE + 2), None, "nothing new");
        assert!(pauses.said.is_empty() && pauses.ends.is_empty());
    }

    #[test]
    fn that_somebody_is_there_is_said_again_before_others_forget_it() {
        let mut pauses = Pauses::default();
        assert!(pauses.changed(USER, told(true), 0));
        assert_eq!(pauses.next(PAUSE), None);
        assert_eq!(pauses.next(AGAIN - 1), None);
        assert_eq!(pauses.next(AGAIN), Some(USER));
        assert!(pauses.changed(USER, told(true), AGAIN));
        assert!(
            pauses.changed(USER, told(true), AGAIN + PAUSE),
            "the pause is over"
        );
        assert_eq!(pauses.ends.len(), 1);
    }
}
