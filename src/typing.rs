//! Who is typing where (Client-Server API, "Typing Notifications"): kept in memory, with a time-out for each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::task::AbortHandle;

use crate::{
    app::App,
    outgoing::News,
    rooms::Room,
    storage::{RoomNid, UserNid},
};

/// How often other servers are told that somebody still types: they believe it for half a minute.
const TELL_AGAIN: Duration = Duration::from_secs(20);
/// The longest that somebody types without saying so again.
const LONGEST: Duration = Duration::from_mins(2);

/// Who types in each room.
#[derive(Debug, Default)]
pub struct Typing(Mutex<HashMap<RoomNid, HashMap<UserNid, Typist>>>);

/// Somebody who types.
#[derive(Debug)]
struct Typist {
    /// Until when, in milliseconds since 1970.
    until: i64,
    /// The task that waits for that.
    timer: AbortHandle,
}

impl Typing {
    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomNid, HashMap<UserNid, Typist>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who types in a room at the time `now`, in no particular order.
    #[must_use]
    pub fn users(&self, room: RoomNid, now: i64) -> Vec<UserNid> {
        let rooms = self.rooms();
        rooms.get(&room).map_or_else(Vec::new, |users| {
            users
                .iter()
                .filter(|(_, typist)| typist.until > now)
                .map(|(user, _)| *user)
                .collect()
        })
    }

    /// Sets until when a user types. Answers whether they were not typing before.
    fn set(
        &self,
        room: RoomNid,
        user: UserNid,
        until: i64,
        timer: impl FnOnce() -> AbortHandle,
    ) -> bool {
        let mut rooms = self.rooms();
        let users = rooms.entry(room).or_default();
        if let Some(typist) = users.get_mut(&user) {
            typist.until = until;
            return false;
        }
        let timer = timer();
        users.insert(user, Typist { until, timer });
        true
    }

    fn until(&self, room: RoomNid, user: UserNid) -> Option<i64> {
        Some(self.rooms().get(&room)?.get(&user)?.until)
    }

    /// Forgets a user; if `now` is given, only if the user's time is over. Answers whether the user was typing.
    fn remove(&self, room: RoomNid, user: UserNid, now: Option<i64>) -> bool {
        let mut rooms = self.rooms();
        let Some(users) = rooms.get_mut(&room) else {
            return false;
        };
        let until = users.get(&user).map(|typist| typist.until);
        if now.is_some_and(|now| until.is_some_and(|until| until > now)) {
            return false;
        }
        let typist = users.remove(&user);
        if users.is_empty() {
            rooms.remove(&room);
        }
        drop(rooms);
        match typist {
            // The timer itself comes with the time; it must not end itself before it has told the others.
            Some(typist) if now.is_none() => typist.timer.abort(),
            Some(_) => {}
            None => return false,
        }
        true
    }
}

/// A user types in a room, for as long as `timeout` (or two minutes, if that is less) if they do not say so again.
pub fn start(app: &Arc<App>, room: &Arc<Room>, user: UserNid, timeout: Duration) {
    let timeout = i64::try_from(timeout.min(LONGEST).as_millis()).unwrap_or(0);
    let until = app.clock.now() + timeout;
    let timer =
        || tokio::spawn(expire(Arc::clone(app), Arc::clone(room), user, until)).abort_handle();
    if app.typing.set(room.nid, user, until, timer) {
        app.bus.typing(room);
        tell_servers(app, room, user, true);
    }
}

/// A user does not type in a room any more: they said so, or left.
pub fn stop(app: &App, room: &Arc<Room>, user: UserNid) {
    if app.typing.remove(room.nid, user, None) {
        app.bus.typing(room);
        tell_servers(app, room, user, false);
    }
}

fn tell_servers(app: &App, room: &Arc<Room>, user: UserNid, typing: bool) {
    let seen = room.seen();
    if !seen.servers.is_empty() && seen.local.contains_key(&user) {
        let room = Arc::clone(room);
        app.bus.outgoing.tell(News::Typing { room, user, typing });
    }
}

/// Waits for the end of a user's typing.
async fn expire(app: Arc<App>, room: Arc<Room>, user: UserNid, mut until: i64) {
    loop {
        let wait = u64::try_from(until - app.clock.now()).unwrap_or(0);
        let sleep = tokio::time::sleep(Duration::from_millis(wait).min(TELL_AGAIN));
        if app.shutdown.run_until_cancelled(sleep).await.is_none() {
            return;
        }
        if app.typing.remove(room.nid, user, Some(app.clock.now())) {
            app.bus.typing(&room);
            tell_servers(&app, &room, user, false);
            return;
        }
        match app.typing.until(room.nid, user) {
            Some(later) => {
                until = later;
                tell_servers(&app, &room, user, true);
            }
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn typing_begins_and_ends_once() {
        let timer = || tokio::spawn(std::future::pending::<()>()).abort_handle();
        let typing = Typing::default();
        let (room, user) = (RoomNid(1), UserNid(2));
        assert!(typing.set(room, user, 10, timer));
        assert!(!typing.set(room, user, 20, timer), "it goes on");
        assert_eq!(typing.users(room, 19), [user]);
        assert!(typing.users(room, 20).is_empty());
        assert!(!typing.remove(room, user, Some(19)), "not over yet");
        assert!(typing.remove(room, user, Some(20)));
        assert!(!typing.remove(room, user, None));
    }
}
