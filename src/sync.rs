//! `GET /sync`: what is new for a user since a position, and waiting until something is.
//!
//! A sync first looks into the user's [feed](crate::bus::Feed): which rooms have news is known there without a query.
//! The rooms are then gone through in batches ([`batch`]), each with a number of queries that does not depend on the
//! number of rooms, and with none where memory has all that is needed.

mod answer;
mod batch;
mod counts;
mod device_lists;
mod ephemeral;
mod filter;
mod keys;
mod lookup;
mod plan;
mod render;
mod state;
mod stripped;
mod summary;
mod timeline;
mod to_device;

use std::{pin::pin, sync::Arc, time::Duration};

use serde_json::value::to_raw_value;
use tokio::time::Instant;

use crate::{
    app::App,
    auth::Requester,
    bus::Feed,
    error::{Error, Result},
    filter::Filter,
    room::visibility::Viewer,
    storage::{self, AccountData, Pos},
    telemetry::Counted,
    token::Token,
};
pub use answer::{Answer, DeviceLists, State};
pub use counts::badge;
use plan::Plan;

/// The longest that a sync waits.
const LONGEST: Duration = Duration::from_mins(5);

/// How long a position that is ahead of this server is waited for, and how often it is looked whether it is reached.
const AHEAD: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a client asks for.
#[derive(Debug)]
pub struct Request {
    /// Where its last sync came to; `None`: it knows nothing yet.
    pub since: Option<Token>,
    /// What it wants to hear of.
    pub filter: Arc<Filter>,
    /// Whether it wants all state of its rooms although it has synced before.
    pub full_state: bool,
    /// How long it waits for news.
    pub timeout: Duration,
    /// How it wants to be told of state.
    pub state: StateForm,
}

/// How a client wants to be told of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateForm {
    /// As it is before the timeline.
    Before,
    /// As it is after the timeline.
    After,
    /// The same under the name that it had before it was in the specification.
    AfterUnstable,
}

/// Up to where a client knows everything.
#[derive(Clone, Copy, Debug)]
struct Since {
    pos: Pos,
    /// The count of what only memory knows; 0 if it was counted before the server was started again.
    ephemeral: u64,
    /// The last message that the device was given, if it was not given all up to `pos`.
    to_device: Option<Pos>,
}

/// What belongs to one sync.
struct Context<'a> {
    app: &'a App,
    viewer: &'a Viewer,
    requester: &'a Requester,
    request: &'a Request,
    /// Up to where the client knows everything; 0: it knows nothing.
    since: Pos,
    /// Up to where it is told everything now.
    upto: Pos,
}

impl Context<'_> {
    fn filter(&self) -> &Filter {
        &self.request.filter
    }
}

/// Answers a sync: at once if there is news, or once there is, or when the time is over.
///
/// # Errors
/// `M_INVALID_PARAM` if `since` is no token of a sync; if the database fails.
pub async fn sync(app: &App, requester: &Requester, request: &Request) -> Result<Answer> {
    let mut since = match request.since {
        Some(token) => Some(read_since(app, token).await?),
        None => None,
    };
    let feed = app.bus.feed(&app.db, &app.log, requester.user).await?;
    let deadline = Instant::now() + request.timeout.min(LONGEST);
    let mut at_once = since.is_none() || request.full_state;
    loop {
        let mut news = pin!(feed.news.notified());
        // From here on no news is missed.
        news.as_mut().enable();
        let over = Instant::now() >= deadline || app.shutdown.is_cancelled();
        let device = requester.device;
        if at_once || over || since.is_none_or(|since| plan::has_news(app, &feed, device, since)) {
            let viewer = Viewer::of(app, requester).await?;
            let plan = Plan::make(app, request, &feed, since).await?;
            let answer = answer(app, requester, request, (&viewer, &feed), since, plan).await?;
            if at_once || over || !answer.0.is_empty() {
                return Ok(answer.0);
            }
            since = Some(answer.1);
            at_once = false;
        }
        let _waiter = Counted::new(&app.metrics.sync_waiters);
        tokio::select! {
            () = news => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = app.shutdown.cancelled() => {}
        }
    }
}

/// Where the client's last sync came to. A position that is not reached within a second was given before the database was
/// set back: what has happened since is told from now on.
async fn read_since(app: &App, token: Token) -> Result<Since> {
    let Token::Sync {
        pos,
        ephemeral,
        run,
        to_device,
    } = token
    else {
        return Err(Error::invalid_param("since is no token of a sync"));
    };
    let deadline = Instant::now() + AHEAD;
    while pos > *app.bus.settled() && Instant::now() < deadline && !app.shutdown.is_cancelled() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let settled = *app.bus.settled();
    let is_set_back = pos > settled;
    Ok(Since {
        pos: pos.min(settled),
        ephemeral: if run == app.bus.run() { ephemeral } else { 0 },
        // Messages for the device that it was not given with that position must not be removed as if it had been.
        to_device: if is_set_back { Some(0) } else { to_device },
    })
}

/// Puts an answer together; with it, where the next sync goes on.
async fn answer(
    app: &App,
    requester: &Requester,
    request: &Request,
    (viewer, feed): (&Viewer, &Feed),
    since: Option<Since>,
    mut plan: Plan,
) -> Result<(Answer, Since)> {
    let context = Context {
        app,
        viewer,
        requester,
        request,
        since: since.map_or(0, |since| since.pos),
        upto: plan.upto,
    };
    let mut answer = Answer::default();
    add_rooms(&context, &mut plan, Some(&mut answer)).await?;
    answer.presence.events = ephemeral::presence(&context, &plan).await?;
    let global = plan.account_data.remove(&None).unwrap_or_default();
    let most = filter::limit(context.filter().account_data.limit);
    answer.account_data.events = global
        .iter()
        .filter(|item| filter::admits(&context.filter().account_data, &item.event_type, None))
        .take(most)
        .map(account_data)
        .collect::<Result<_>>()?;
    let company = std::mem::take(&mut plan.company);
    let devices = std::mem::take(&mut plan.devices);
    answer.device_lists = company.finish(&context, devices).await?;
    keys::count(&context, feed, &mut answer).await?;
    let (messages, to_device) = to_device::take(&context, feed, since).await?;
    answer.to_device.events = messages;
    let next = Since {
        pos: plan.upto,
        ephemeral: plan.ephemeral,
        to_device,
    };
    answer.next_batch = token(app, next).to_string();
    Ok((answer, next))
}

/// Adds what is new of the rooms to the answer; without one, only finds out who has come and gone.
async fn add_rooms(
    context: &Context<'_>,
    plan: &mut Plan,
    mut answer: Option<&mut Answer>,
) -> Result<()> {
    let rooms = std::mem::take(&mut plan.rooms);
    for members in rooms.chunks(batch::ROOMS) {
        match batch::add(context, plan, members, answer.as_deref_mut()).await {
            Err(error) if is_unreadable(&error) => {}
            result => {
                result?;
                continue;
            }
        }
        // Who may see what of a room hangs on some of its events. If one of these cannot be read, the room is left out.
        for member in members {
            let member = std::slice::from_ref(member);
            match batch::add(context, plan, member, answer.as_deref_mut()).await {
                Err(error) if is_unreadable(&error) => {
                    tracing::error!(room = member[0].room.0, %error, "a room cannot be read");
                }
                result => result?,
            }
        }
    }
    Ok(())
}

/// Whose devices have changed since a sync, and who shares no room any more since then, as the next sync would tell.
///
/// # Errors
/// `M_INVALID_PARAM` if `since` is no token of a sync; if the database fails.
pub async fn device_changes(app: &App, requester: &Requester, since: Token) -> Result<DeviceLists> {
    let from = read_since(app, since).await?;
    let request = Request {
        since: Some(since),
        filter: Arc::default(),
        full_state: false,
        timeout: Duration::ZERO,
        state: StateForm::After,
    };
    let feed = app.bus.feed(&app.db, &app.log, requester.user).await?;
    let viewer = Viewer::of(app, requester).await?;
    let mut plan = Plan::make(app, &request, &feed, Some(from)).await?;
    let context = Context {
        app,
        viewer: &viewer,
        requester,
        request: &request,
        since: from.pos,
        upto: plan.upto,
    };
    add_rooms(&context, &mut plan, None).await?;
    plan.company.finish(&context, plan.devices).await
}

/// Whether something that is stored makes no sense.
fn is_unreadable(error: &Error) -> bool {
    matches!(error, Error::Database(storage::Error::Decode(_)))
}

fn token(app: &App, since: Since) -> Token {
    Token::Sync {
        pos: since.pos,
        ephemeral: since.ephemeral,
        run: app.bus.run(),
        to_device: since.to_device,
    }
}

/// An item of account data as an event.
fn account_data(item: &AccountData) -> Result<Box<serde_json::value::RawValue>> {
    #[derive(serde::Serialize)]
    struct Event<'a> {
        content: &'a serde_json::value::RawValue,
        r#type: &'a str,
    }
    let content = serde_json::from_str(&item.json).map_err(Error::internal)?;
    to_raw_value(&Event {
        content,
        r#type: &item.event_type,
    })
    .map_err(Error::internal)
}
