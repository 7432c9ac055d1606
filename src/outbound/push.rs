//! Push notifications: a reader of the log that tells the push gateways of people what happens.
//!
//! One task ([`run`]) takes what may concern people with pushers ([`crate::pushes`]), asks the push rules, and knows what waits
//! for each pusher. Sending runs beside it, one request at a time for each pusher, so that what a gateway is told is in
//! order. Up to where the log was gone through is a position, and where a pusher has not taken all of that, so is up to
//! where it has; after a restart, the rest is read from the log.

mod delivery;
mod notice;
mod queue;
mod recipients;

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::{self, JoinError, JoinSet},
};

use self::queue::{Next, Notice, Outcome, Recipient};
use crate::{
    app::App,
    error::{Error, Result},
    log::Change,
    pushes::Push,
    rooms::Room,
    storage::{
        Event, EventNid, Pos, PusherNid, UserNid,
        pushers::{self, Progress},
    },
    turns::FewTurns,
};

/// How many requests to gateways are under way at a time, of pushers that have taken the last one.
const REQUESTS: usize = 64;
/// The same of all others: anybody can name a gateway that does not answer.
const TRIES: usize = 16;
/// How many of these one user has.
const TRIES_OF_ONE: usize = 2;
/// How much is taken from the queue at once.
const PUSHES: usize = 256;
/// The longest that the task sleeps while something is due: tests set the clock forward.
const TICK: Duration = Duration::from_secs(1);
/// How often it is written down how far everything has come, in milliseconds.
const SAVE: i64 = 5000;
/// How many rows are written at once.
const ROWS: usize = 500;
/// How long after a failure of the database it is asked again.
const DATABASE_PAUSE: Duration = Duration::from_secs(5);
/// How long what is being sent may take when the server ends.
const LAST: Duration = Duration::from_secs(2);

/// What was sent to a pusher, and what became of it.
type Done = (Option<Arc<Notice>>, Outcome);

/// The task's own.
struct Reader {
    app: Arc<App>,
    recipients: HashMap<PusherNid, Recipient>,
    /// The pushers of each user.
    people: HashMap<UserNid, Vec<PusherNid>>,
    /// Those that are to be looked at again, and when.
    due: BTreeSet<(i64, PusherNid)>,
    /// Those at which something has happened since they were looked at.
    touched: HashSet<PusherNid>,
    /// Those at which something has happened since it was written down how far they have come.
    unsaved: HashSet<PusherNid>,
    work: JoinSet<Done>,
    working: HashMap<task::Id, PusherNid>,
    requests: Arc<Semaphore>,
    tries: Arc<Semaphore>,
    tries_of_one: FewTurns<UserNid>,
    /// The log was gone through up to here, and it is written down up to where.
    told: Pos,
    saved: Pos,
    save_at: i64,
}

/// Tells push gateways what happens until the server ends.
pub async fn run(app: Arc<App>) {
    let Some(mut pushes) = app.bus.pushes.open() else {
        return;
    };
    let mut reader = Reader::new(Arc::clone(&app));
    let started = app.shutdown.run_until_cancelled(reader.start()).await;
    if started.is_none() {
        return;
    }
    let mut taken = Vec::with_capacity(PUSHES);
    loop {
        if app.bus.pushes.has_lost() {
            reader.catch_up().await;
        }
        reader.look_at_touched();
        if reader.sleep().is_zero() {
            // A stream of news that does not end must not keep what is due waiting.
            reader.tick().await;
            reader.look_at_touched();
        }
        let sleep = tokio::time::sleep(reader.sleep());
        tokio::select! {
            () = app.shutdown.cancelled() => break,
            count = pushes.recv_many(&mut taken, PUSHES) => {
                if count == 0 {
                    break;
                }
                for push in taken.drain(..) {
                    // What was missed may not be caught up with any more, so nothing may come after it.
                    if app.shutdown.is_cancelled() {
                        break;
                    }
                    reader.hear(push).await;
                }
            }
            Some(done) = reader.work.join_next_with_id() => reader.done(done),
            () = sleep => reader.tick().await,
        }
    }
    reader.end(pushes).await;
}

impl Reader {
    fn new(app: Arc<App>) -> Self {
        Self {
            save_at: app.clock.now() + SAVE,
            app,
            recipients: HashMap::new(),
            people: HashMap::new(),
            due: BTreeSet::new(),
            touched: HashSet::new(),
            unsaved: HashSet::new(),
            work: JoinSet::new(),
            working: HashMap::new(),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            tries: Arc::new(Semaphore::new(TRIES)),
            tries_of_one: FewTurns::new(TRIES_OF_ONE),
            told: 0,
            saved: 0,
        }
    }

    /// Goes on where the last run ended.
    async fn start(&mut self) {
        loop {
            match pushers::cursor(&self.app.db).await {
                Ok(cursor) => {
                    self.told = cursor.unwrap_or_else(|| self.app.head());
                    self.saved = cursor.unwrap_or(-1);
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot read who was notified of what");
                    tokio::time::sleep(DATABASE_PAUSE).await;
                }
            }
        }
        self.catch_up().await;
    }

    /// Reads from the log what was not heard of.
    async fn catch_up(&mut self) {
        while let Err(error) = self.try_to_catch_up().await {
            tracing::error!(%error, "people are notified later");
            let pause = tokio::time::sleep(DATABASE_PAUSE);
            if self.app.shutdown.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn try_to_catch_up(&mut self) -> Result<()> {
        let app = Arc::clone(&self.app);
        let progress = pushers::progress(&app.db).await?;
        app.bus.pushes.expect(progress.iter().map(|one| one.user));
        // Whose pushers have not taken everything, and since when.
        let mut behind: HashMap<UserNid, Pos> = HashMap::new();
        for one in progress {
            let known = if one.waits {
                one.pos
            } else {
                one.pos.max(self.told)
            };
            if !self.recipients.contains_key(&one.nid) && one.waits {
                let since = behind.entry(one.user).or_insert(known);
                *since = known.min(*since);
            }
            self.add(one.nid, one.user, known, one.waits);
        }
        // What comes later is in the queue.
        let head = app.head();
        drop(app.bus.settled());
        for user in pushers::behind(&app.db, self.told).await? {
            let since = behind.entry(user).or_insert(self.told);
            *since = self.told.min(*since);
        }
        for (user, after) in behind {
            match recipients::since(&app, user, after, head).await {
                Ok(notices) => self.queue(user, &notices),
                Err(error) if recipients::is_lasting(&error) => {
                    tracing::error!(%error, user = user.0, "somebody is not notified of what was missed");
                }
                Err(error) => return Err(error),
            }
        }
        for (nid, recipient) in &mut self.recipients {
            recipient.may_have_read();
            self.touched.insert(*nid);
        }
        self.told = head;
        Ok(())
    }

    /// Adds a pusher that is not known.
    fn add(&mut self, nid: PusherNid, user: UserNid, known: Pos, waits: bool) {
        if let Entry::Vacant(new) = self.recipients.entry(nid) {
            new.insert(Recipient::new(user, known, waits));
            self.people.entry(user).or_default().push(nid);
            self.touched.insert(nid);
        }
    }

    fn remove(&mut self, nid: PusherNid) {
        let Some(recipient) = self.recipients.remove(&nid) else {
            return;
        };
        if let Entry::Occupied(mut of_user) = self.people.entry(recipient.user) {
            of_user.get_mut().retain(|known| *known != nid);
            if of_user.get().is_empty() {
                of_user.remove();
            }
        }
    }

    fn each(&mut self, user: UserNid, mut tell: impl FnMut(&mut Recipient)) {
        for nid in self.people.get(&user).into_iter().flatten() {
            if let Some(recipient) = self.recipients.get_mut(nid) {
                tell(recipient);
                self.touched.insert(*nid);
            }
        }
    }

    /// Makes events wait for the pushers of a user.
    fn queue(&mut self, user: UserNid, notices: &[Arc<Notice>]) {
        self.each(user, |recipient| {
            for notice in notices {
                recipient.add(notice);
            }
        });
    }

    /// Takes to the pushers what concerns them.
    async fn hear(&mut self, push: Push) {
        // What is heard of first is in memory a moment later.
        drop(self.app.bus.settled());
        match push {
            Push::Event { room, event } => {
                let Some(pos) = event.pos.filter(|pos| *pos > self.told) else {
                    return;
                };
                match self.event(&room, &event, pos).await {
                    Ok(()) => self.told = pos,
                    Err(error) => self.miss(pos, &error).await,
                }
            }
            Push::Invite {
                room,
                user,
                event,
                pos,
            } => {
                if let Err(error) = self.invite(&room, user, event, pos).await {
                    self.miss(pos, &error).await;
                }
            }
            Push::Read(user) => self.each(user, Recipient::read),
            Push::Set { user, pusher, pos } => {
                self.add(pusher, user, pos, false);
                if let Some(recipient) = self.recipients.get_mut(&pusher) {
                    recipient.set_anew();
                    self.touched.insert(pusher);
                }
            }
        }
    }

    /// The database has failed over an event, which is read from the log with all that comes after it once that works.
    async fn miss(&mut self, pos: Pos, error: &Error) {
        tracing::error!(%error, "cannot find out whom an event notifies");
        self.told = self.told.min(pos - 1);
        self.catch_up().await;
    }

    /// The people with pushers whom an event may concern.
    async fn people_at(&self, room: &Room, event: &Event) -> Result<Vec<UserNid>> {
        let mut people: Vec<UserNid> = {
            let seen = room.seen();
            let joined = seen.local.keys();
            joined
                .filter(|user| self.people.contains_key(user))
                .copied()
                .collect()
        };
        let target = recipients::target(&self.app, event).await?;
        people
            .extend(target.filter(|user| self.people.contains_key(user) && !people.contains(user)));
        people.retain(|user| *user != event.sender);
        Ok(people)
    }

    async fn event(&mut self, room: &Room, event: &Event, pos: Pos) -> Result<()> {
        let people = self.people_at(room, event).await?;
        self.find_recipients(room, event, pos, &people).await
    }

    async fn invite(
        &mut self,
        room: &Room,
        user: UserNid,
        event: EventNid,
        pos: Pos,
    ) -> Result<()> {
        match recipients::invite(&self.app, room, event).await? {
            Some(event) => self.find_recipients(room, &event, pos, &[user]).await,
            None => Ok(()),
        }
    }

    /// Makes an event wait for those of `people` whom it notifies.
    async fn find_recipients(
        &mut self,
        room: &Room,
        event: &Event,
        pos: Pos,
        people: &[UserNid],
    ) -> Result<()> {
        if people.is_empty() {
            return Ok(());
        }
        for (user, notice) in recipients::of(&self.app, room, event, pos, people).await? {
            self.queue(user, &[notice]);
        }
        Ok(())
    }

    /// Starts what is to be done for those at which something has happened.
    fn look_at_touched(&mut self) {
        let now = self.app.clock.now();
        for nid in std::mem::take(&mut self.touched) {
            let Some(recipient) = self.recipients.get_mut(&nid) else {
                continue;
            };
            self.unsaved.insert(nid);
            match recipient.next(now) {
                Next::Nothing => {}
                Next::Wait(at) => {
                    self.due.insert((at, nid));
                }
                Next::Send(notice) => {
                    let told = recipient.badge();
                    let (own, turns) = if recipient.is_alive() {
                        (None, &self.requests)
                    } else {
                        (Some(self.tries_of_one.of(&recipient.user)), &self.tries)
                    };
                    let (app, turns) = (Arc::clone(&self.app), Arc::clone(turns));
                    let send = async move {
                        let _own = match &own {
                            Some(own) => Some(own.acquire().await),
                            None => None,
                        };
                        let _turn = turns.acquire().await;
                        let outcome = delivery::deliver(&app, nid, notice.clone(), told).await;
                        (notice, outcome)
                    };
                    self.working.insert(self.work.spawn(send).id(), nid);
                }
            }
        }
    }

    fn done(&mut self, done: std::result::Result<(task::Id, Done), JoinError>) {
        let (id, (notice, outcome)) = match done {
            Ok(done) => done,
            // It has panicked, and said so.
            Err(error) => (error.id(), (None, Outcome::Failed(Duration::ZERO))),
        };
        let Some(nid) = self.working.remove(&id) else {
            return;
        };
        if outcome == Outcome::Gone {
            self.remove(nid);
        } else if let Some(recipient) = self.recipients.get_mut(&nid) {
            let now = self.app.clock.now();
            recipient.done(notice.as_deref(), outcome, now, rand::random());
            self.touched.insert(nid);
        }
    }

    fn sleep(&self) -> Duration {
        let now = self.app.clock.now();
        let due = self.due.first().map(|(at, _)| *at);
        let next = due.into_iter().chain([self.save_at]).min();
        let wait = next.unwrap_or(now).saturating_sub(now).max(0);
        Duration::from_millis(wait.unsigned_abs()).min(TICK)
    }

    /// Does what is due.
    async fn tick(&mut self) {
        let now = self.app.clock.now();
        while let Some((at, nid)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, nid));
            self.touched.insert(nid);
        }
        if self.save_at <= now {
            self.save().await;
            self.save_at = now + SAVE;
        }
    }

    /// Writes down how far everything has come; what could not be written is tried again the next time.
    async fn save(&mut self) {
        let progress: Vec<Progress> = self
            .unsaved
            .iter()
            .filter_map(|nid| {
                let recipient = self.recipients.get(nid)?;
                let (pos, waits) = recipient.unsaved()?;
                Some(Progress {
                    nid: *nid,
                    user: recipient.user,
                    pos,
                    waits,
                })
            })
            .collect();
        let mut rest = &progress[..];
        while !rest.is_empty() || self.told > self.saved {
            let (some, later) = rest.split_at(rest.len().min(ROWS));
            let mut change = Change::new();
            for one in some {
                change.write(pushers::save(*one));
            }
            // Last, so that nothing counts as told that a pusher still waits for.
            if later.is_empty() {
                change.write(pushers::set_cursor(self.told));
            }
            if let Err(error) = self.app.log.append(change).await {
                tracing::warn!(%error, "after a crash, people may be notified twice");
                return;
            }
            for one in some {
                if let Some(recipient) = self.recipients.get_mut(&one.nid) {
                    recipient.was_saved(one.pos, one.waits);
                }
            }
            if later.is_empty() {
                self.saved = self.told;
            }
            rest = later;
        }
        self.unsaved.clear();
    }

    /// The server ends: what is being sent is let finish for a moment, and what waits is written down.
    async fn end(&mut self, mut pushes: mpsc::Receiver<Push>) {
        let rest = async {
            while let Some(done) = self.work.join_next_with_id().await {
                self.done(done);
            }
        };
        if tokio::time::timeout(LAST, rest).await.is_err() {
            self.work.shutdown().await;
        }
        pushes.close();
        let all: Vec<PusherNid> = self.touched.drain().collect();
        self.unsaved.extend(all);
        self.save().await;
    }
}
