//! The task that knows the destinations.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use homing_federation::client;
use ruma::{OwnedServerName, ServerName};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::{self, JoinError, JoinSet},
};

use super::{
    catch_up,
    destination::{Destination, Next},
    durable::{self, Durable},
    edus::{self, Note, Said},
    presence::{self, Addressed},
    transaction::{Pdu, Transaction, is_made_by},
};
use crate::{
    app::App,
    error::{Error, Result},
    log::Change,
    outgoing::News,
    rooms::Room,
    storage::{
        Event, Pos, Receipt, ReceiptThread, ServerNid, UserNid,
        destinations::{self, DestinationRow},
        device_lists, to_device,
    },
    telemetry::Queue,
};

/// How many transactions are under way at a time to destinations that are there.
const TRANSACTIONS: usize = 64;
/// The same to destinations of which nobody knows whether they are there: anybody can make up names of servers, and these
/// must not keep the others waiting.
const FIRST_TRIES: usize = 48;
/// The same to destinations that could not be reached when they were tried last.
const RETRIES: usize = 16;
/// How many destinations are read from the database at a time.
const READS: usize = 4;
/// How many news are taken at once.
const NEWS: usize = 256;
/// The longest that the task sleeps while something is due: tests set the clock forward.
const TICK: Duration = Duration::from_secs(1);
/// How often it is written down how far the destinations have come, in milliseconds.
const SAVE: i64 = 30_000;
/// The same when one has failed.
const SAVE_SOON: i64 = 1000;
/// How many rows are written at once.
const ROWS: usize = 500;
/// How long a destination stays in memory for which nothing happens, in milliseconds.
const IDLE: i64 = 10 * 60_000;
/// How long after a failure of the database it is asked again.
const DATABASE_PAUSE: Duration = Duration::from_secs(5);

/// What became of the work for a destination.
#[derive(Debug)]
enum Done {
    Sent(Transaction, std::result::Result<(), client::Error>),
    Read(Result<(Vec<Arc<Pdu>>, Option<Pos>)>),
    ReadDurable(Result<Durable>),
}

/// The task's own.
struct Sender {
    app: Arc<App>,
    destinations: HashMap<ServerNid, Destination>,
    /// Those that are to be looked at again, and when.
    due: BTreeSet<(i64, ServerNid)>,
    /// Those at which something has happened since they were looked at.
    touched: HashSet<ServerNid>,
    work: JoinSet<Done>,
    working: HashMap<task::Id, ServerNid>,
    transactions: Arc<Semaphore>,
    first_tries: Arc<Semaphore>,
    retries: Arc<Semaphore>,
    /// Those that have taken a transaction, or were heard from, and have not failed since.
    alive: HashSet<ServerNid>,
    /// To tell those that wait for a place that they were heard from.
    heard: HashMap<ServerNid, Arc<Notify>>,
    reads: Arc<Semaphore>,
    /// All events up to here have been told to the destinations; one that is not in memory has been sent them.
    told: Pos,
    /// Makes the ids of transactions differ from those of other runs.
    run: i64,
    count: u64,
    save_at: i64,
    presence: mpsc::UnboundedSender<News>,
}

/// Sends until the server ends. Then it writes down how far each destination has come; what was under way is sent again by
/// the next run.
pub async fn run(app: Arc<App>) {
    if !app.config.federation.enabled {
        return;
    }
    let Some(mut news) = app.bus.outgoing.open() else {
        return;
    };
    let (changed, changes) = mpsc::unbounded_channel();
    let (addressed, mut notes) = mpsc::unbounded_channel();
    let presence = tokio::spawn(presence::run(Arc::clone(&app), changes, addressed));
    let mut sender = Sender::new(Arc::clone(&app), changed);
    if app
        .shutdown
        .run_until_cancelled(sender.load())
        .await
        .is_some()
    {
        let mut taken = Vec::with_capacity(NEWS);
        loop {
            sender.look_at_touched();
            if sender.sleep().is_zero() {
                // A stream of news that does not end must not keep what is due waiting.
                sender.tick().await;
                sender.look_at_touched();
            }
            let sleep = tokio::time::sleep(sender.sleep());
            tokio::select! {
                () = app.shutdown.cancelled() => break,
                count = news.recv_many(&mut taken, NEWS) => {
                    if count == 0 {
                        break;
                    }
                    for news in taken.drain(..) {
                        sender.hear(news).await;
                    }
                }
                Some(note) = notes.recv() => sender.address(note),
                Some(done) = sender.work.join_next_with_id() => sender.done(done),
                () = sleep => sender.tick().await,
            }
        }
    }
    presence.abort();
    sender.work.shutdown().await;
    sender.save().await;
}

impl Sender {
    fn new(app: Arc<App>, presence: mpsc::UnboundedSender<News>) -> Self {
        let now = app.clock.now();
        Self {
            told: app.head(),
            app,
            destinations: HashMap::new(),
            due: BTreeSet::new(),
            touched: HashSet::new(),
            work: JoinSet::new(),
            working: HashMap::new(),
            transactions: Arc::new(Semaphore::new(TRANSACTIONS)),
            first_tries: Arc::new(Semaphore::new(FIRST_TRIES)),
            retries: Arc::new(Semaphore::new(RETRIES)),
            alive: HashSet::new(),
            heard: HashMap::new(),
            reads: Arc::new(Semaphore::new(READS)),
            run: now,
            count: 0,
            save_at: now + SAVE,
            presence,
        }
    }

    /// Finds the destinations that the last runs have left behind.
    async fn load(&mut self) {
        let (behind, failing, waiting) = loop {
            let read = async {
                let db = &self.app.db;
                let alive = destinations::alive(db).await?;
                let behind = destinations::behind(db).await?;
                let failing = destinations::failing(db).await?;
                let mut waiting = to_device::servers_waiting(db).await?;
                waiting.extend(device_lists::servers_behind(db).await?);
                Ok::<_, Error>((alive, behind, failing, waiting))
            };
            match read.await {
                Ok((alive, behind, failing, waiting)) => {
                    self.alive.extend(alive);
                    break (behind, failing, waiting);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot read what other servers are to be sent");
                    tokio::time::sleep(DATABASE_PAUSE).await;
                }
            }
        };
        let now = self.app.clock.now();
        let rows = behind.into_iter().map(|row| (row, true));
        for (row, is_behind) in rows.chain(failing.into_iter().map(|row| (row, false))) {
            let server = row.server;
            let Ok(name) = OwnedServerName::try_from(row.name.as_str()) else {
                continue;
            };
            let destination = || Destination::loaded(name, row, is_behind, now);
            let destination = self.destinations.entry(server).or_insert_with(destination);
            if destination.is_failing() {
                let name = destination.name.clone();
                self.app.bus.outgoing.failing().insert(name);
            }
            self.touched.insert(server);
        }
        self.wait_for_durable(waiting);
    }

    fn destination(&mut self, name: &ServerName, server: ServerNid) -> &mut Destination {
        let told = self.told;
        self.touched.insert(server);
        self.destinations.entry(server).or_insert_with(|| {
            let row = DestinationRow {
                server,
                name: name.to_string(),
                last_ok_pos: told,
                failures: 0,
                fail_since: None,
                next_try: None,
            };
            Destination::new(name.to_owned(), row, false)
        })
    }

    /// Takes news to those whom they concern.
    async fn hear(&mut self, news: News) {
        let note = match news {
            News::Event { room, event } => return self.event(&room, &event),
            News::Presence(_) | News::Joined { .. } | News::Came { .. } => {
                // At the end of the server nobody takes it any more.
                drop(self.presence.send(news));
                return;
            }
            News::Messages { name, server } => {
                self.destination(&name, server).add_durable();
                return;
            }
            News::Devices(user, at) => return self.devices(user, at).await,
            News::Heard(name) => return self.heard(&name),
            News::Typing { room, user, typing } => self.typing(&room, user, typing).await,
            News::Receipt { room, receipt } => self.receipt(&room, &receipt).await,
        };
        match note {
            Ok(Some(note)) => self.address(note),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "other servers could not be told of something"),
        }
    }

    /// An event is for the servers that are in the room, but not for the one that has made it.
    fn event(&mut self, room: &Room, event: &Event) {
        let Some(pos) = event.pos else {
            return;
        };
        let sender = event.pdu.sender.as_str();
        let pdu = Arc::new(Pdu {
            pos,
            json: event.pdu.json.clone(),
        });
        let seen = room.seen();
        for (name, server) in &seen.servers {
            if server.hears(pos) && !is_made_by(name, sender, &event.pdu.json) {
                self.destination(name, server.server).add_pdu(&pdu);
            }
        }
        drop(seen);
        self.told = self.told.max(pos);
    }

    async fn typing(&self, room: &Room, user: UserNid, typing: bool) -> Result<Option<Addressed>> {
        let id = self.app.names.user_id(&self.app.db, user).await?;
        let Some(json) = edus::typing(&room.id, &id, typing) else {
            return Ok(None);
        };
        let room_nid = room.nid;
        let note = Note::Typing {
            room: room_nid,
            user,
            json,
        };
        Ok(Some((Arc::new(note), joined(room))))
    }

    async fn receipt(&self, room: &Room, receipt: &Receipt) -> Result<Option<Addressed>> {
        let (names, db) = (&self.app.names, &self.app.db);
        let thread = match receipt.thread {
            ReceiptThread::Unthreaded => None,
            ReceiptThread::Main => Some("main".into()),
            ReceiptThread::Thread(root) => {
                match names.event_ids(db, &[root]).await?.remove(&root) {
                    Some(id) => Some(id),
                    None => return Ok(None),
                }
            }
        };
        let said = Said {
            room: room.id.clone(),
            user: names.user_id(db, receipt.user).await?,
            event: receipt.event_id.clone(),
            thread,
            ts: receipt.ts,
        };
        let note = Note::Receipt {
            room: room.nid,
            user: receipt.user,
            thread: receipt.thread,
            said,
        };
        Ok(Some((Arc::new(note), joined(room))))
    }

    /// The devices of a user have changed: for the servers that share a room with them.
    async fn devices(&mut self, user: UserNid, at: Pos) {
        match device_lists::servers(&self.app.db, user, at).await {
            Ok(servers) => self.wait_for_durable(servers),
            Err(error) => {
                tracing::warn!(%error, "other servers are told later whose devices have changed");
            }
        }
    }

    fn wait_for_durable(&mut self, servers: Vec<(ServerNid, String)>) {
        for (server, name) in servers {
            if let Ok(name) = OwnedServerName::try_from(name) {
                self.destination(&name, server).add_durable();
            }
        }
    }

    fn address(&mut self, (note, servers): Addressed) {
        for (name, server) in servers {
            self.destination(&name, server).add_note(&note);
        }
    }

    fn heard(&mut self, name: &ServerName) {
        let now = self.app.clock.now();
        let mut known = self.destinations.values_mut();
        if let Some(destination) = known.find(|destination| destination.name == name) {
            destination.heard(now);
            let server = destination.server();
            self.touched.insert(server);
            self.alive.insert(server);
            if let Some(waits) = self.heard.remove(&server) {
                waits.notify_one();
            }
        }
    }

    /// Starts what is to be done for those at which something has happened.
    fn look_at_touched(&mut self) {
        let now = self.app.clock.now();
        for server in std::mem::take(&mut self.touched) {
            let Some(destination) = self.destinations.get_mut(&server) else {
                continue;
            };
            match destination.next(now) {
                Next::Nothing => {}
                Next::Wait(at) => {
                    self.due.insert((at, server));
                }
                Next::Read { after, from } => self.read(server, after, from),
                Next::ReadDurable => self.read_durable(server),
                Next::Send(transaction) => self.send(server, transaction),
            }
        }
    }

    fn read(&mut self, server: ServerNid, after: Pos, from: Pos) {
        let Some(destination) = self.destinations.get(&server) else {
            return;
        };
        let name = destination.name.clone();
        let (app, reads) = (Arc::clone(&self.app), Arc::clone(&self.reads));
        let read = async move {
            let _turn = reads.acquire().await;
            Done::Read(catch_up::read(&app, server, &name, after, from).await)
        };
        self.working.insert(self.work.spawn(read).id(), server);
    }

    fn read_durable(&mut self, server: ServerNid) {
        let (app, reads) = (Arc::clone(&self.app), Arc::clone(&self.reads));
        let read = async move {
            let _turn = reads.acquire().await;
            Done::ReadDurable(durable::read(&app, server).await)
        };
        self.working.insert(self.work.spawn(read).id(), server);
    }

    fn send(&mut self, server: ServerNid, mut transaction: Transaction) {
        let Some(destination) = self.destinations.get(&server) else {
            return;
        };
        let name = destination.name.clone();
        self.count += 1;
        let (run, count) = (self.run, self.count);
        let was_heard = || self.app.bus.outgoing.was_heard(&name);
        let turns = if self.alive.contains(&server) {
            &self.transactions
        } else if destination.is_failing() {
            &self.retries
        } else if was_heard() {
            &self.transactions
        } else {
            &self.first_tries
        };
        let (app, turns) = (Arc::clone(&self.app), Arc::clone(turns));
        let best = Arc::clone(&self.transactions);
        let heard = Arc::new(Notify::new());
        self.heard.insert(server, Arc::clone(&heard));
        let send = async move {
            let _turn = tokio::select! {
                turn = turns.acquire() => turn,
                () = heard.notified() => best.acquire().await,
            };
            let sent = transaction.send(&app, &name, || format!("{run}-{count}"));
            let result = sent.await;
            if result.is_ok()
                && !transaction.durable.is_empty()
                && let Err(error) = durable::taken(&app, server, &transaction.durable).await
            {
                tracing::warn!(%error, "another server is to be told once more what it was told");
            }
            Done::Sent(transaction, result)
        };
        self.working.insert(self.work.spawn(send).id(), server);
    }

    /// Some work is done.
    fn done(&mut self, done: std::result::Result<(task::Id, Done), JoinError>) {
        let now = self.app.clock.now();
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(server) = self.working.remove(&id) else {
            return;
        };
        let Some(destination) = self.destinations.get_mut(&server) else {
            return;
        };
        self.touched.insert(server);
        self.heard.remove(&server);
        match done {
            Ok((_, Done::Sent(transaction, result))) => {
                self.sent(server, transaction, result, now);
            }
            Ok((_, Done::Read(Ok((pdus, upto))))) => {
                if let Some(transaction) = destination.read(pdus, upto) {
                    self.send(server, transaction);
                }
            }
            Ok((_, Done::ReadDurable(Ok(durable)))) => destination.durable_read(durable),
            Ok((_, Done::Read(Err(error)) | Done::ReadDurable(Err(error)))) => {
                tracing::warn!(%error, "cannot read what another server is to be sent");
                destination.start_anew(now);
            }
            Err(error) => {
                tracing::error!(%error, "sending to another server has failed");
                destination.start_anew(now);
            }
        }
    }

    fn sent(
        &mut self,
        server: ServerNid,
        transaction: Transaction,
        result: std::result::Result<(), client::Error>,
        now: i64,
    ) {
        let Some(destination) = self.destinations.get_mut(&server) else {
            return;
        };
        let (metrics, outgoing) = (&self.app.metrics, &self.app.bus.outgoing);
        match result {
            Ok(()) => {
                metrics.pdus_sent.inc_by(transaction.pdus.len() as u64);
                if destination.is_failing() {
                    tracing::info!(server = %destination.name, "another server can be reached again");
                    outgoing.failing().remove(&destination.name);
                }
                destination.sent(&transaction, now);
                self.alive.insert(server);
            }
            Err(error) => {
                metrics.transactions_failed.inc();
                destination.failed(transaction, now, rand::random());
                self.alive.remove(&server);
                outgoing.failing().insert(destination.name.clone());
                self.save_at = self.save_at.min(now + SAVE_SOON);
                let (name, failures) = (&destination.name, destination.row.failures);
                tracing::debug!(server = %name, failures, %error, "a transaction was not taken");
                if failures == 1 {
                    tracing::info!(server = %name, %error, "another server cannot be reached");
                }
            }
        }
    }

    /// How long there is nothing to do but to wait for news.
    fn sleep(&self) -> Duration {
        let next = self.due.first().map_or(i64::MAX, |(at, _)| *at);
        let next = next.min(self.save_at).saturating_sub(self.app.clock.now());
        Duration::from_millis(u64::try_from(next).unwrap_or(0)).min(TICK)
    }

    /// Time has passed.
    async fn tick(&mut self) {
        let now = self.app.clock.now();
        let waiting = self.destinations.values().map(Destination::waiting);
        let waiting = i64::try_from(waiting.sum::<usize>()).unwrap_or(i64::MAX);
        let queue = Queue {
            queue: "federation",
        };
        let metric = &self.app.metrics.queue_length;
        metric.get_or_create(&queue).set(waiting);
        while let Some((at, server)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            self.touched.insert(server);
        }
        if self.save_at <= now {
            self.save().await;
            let is_needed =
                |destination: &Destination| !destination.is_idle() || destination.used + IDLE > now;
            self.destinations.retain(|_, one| is_needed(one));
            self.save_at = now + SAVE;
        }
    }

    /// Writes down how far the destinations have come. What is not written is sent again after a restart.
    async fn save(&mut self) {
        let destinations = self.destinations.values();
        let unsaved = destinations.filter(|one| one.is_unsaved);
        let unsaved: Vec<ServerNid> = unsaved.map(Destination::server).collect();
        for servers in unsaved.chunks(ROWS) {
            let mut change = Change::new();
            for server in servers {
                if let Some(destination) = self.destinations.get(server) {
                    change.write(destinations::set(&destination.row));
                }
            }
            if let Err(error) = self.app.log.append(change).await {
                tracing::warn!(%error, "cannot write down what other servers have been sent");
                return;
            }
            for server in servers {
                if let Some(destination) = self.destinations.get_mut(server) {
                    destination.is_unsaved = false;
                }
            }
        }
    }
}

/// The servers that are in a room.
pub(super) fn joined(room: &Room) -> Vec<(OwnedServerName, ServerNid)> {
    let seen = room.seen();
    let joined = seen.servers.iter().filter(|(_, server)| server.joined > 0);
    joined
        .map(|(name, server)| (name.clone(), server.server))
        .collect()
}
