//! "Backfilling and retrieving missing events".

use std::sync::Arc;

use ruma::{
    UInt,
    api::federation::{backfill::get_backfill, event::get_missing_events},
};
use serde_json::value::RawValue;

use super::events::now;
use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::{
        server_sight::{self, ServerSight, show},
        walk,
    },
    rooms::Room,
    storage::Event,
};

/// The most events that are told of a room's past at once.
const BACKFILLED: usize = 100;
/// The most missing events that are told at once.
const MISSING: usize = 20;
/// The most events from which a walk begins, or at which it ends.
const ENDS: usize = 100;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_backfill::v1::Request, _, _>(get_backfill)
        .add::<get_missing_events::v1::Request, _, _>(get_missing_events)
}

/// `GET /_matrix/federation/v1/backfill/{roomId}`
async fn get_backfill(
    app: Arc<App>,
    call: Call<get_backfill::v1::Request>,
) -> Result<get_backfill::v1::Response> {
    let request = call.body;
    let server = &call.requester.server;
    expect_few(request.v.len())?;
    let (room, sight) = server_sight::readable(&app, &request.room_id, server).await?;
    let limit = limit(request.limit, BACKFILLED);
    let events = walk::back(&app, &room, &request.v, limit).await?;
    Ok(get_backfill::v1::Response::new(
        app.server_name.clone(),
        now(&app),
        shown(&app, &room, &sight, &events).await?,
    ))
}

/// `POST /_matrix/federation/v1/get_missing_events/{roomId}`
async fn get_missing_events(
    app: Arc<App>,
    call: Call<get_missing_events::v1::Request>,
) -> Result<get_missing_events::v1::Response> {
    let mut request = call.body;
    let server = &call.requester.server;
    expect_few(request.latest_events.len())?;
    // Who has more ends than that is told some events that are known there.
    request.earliest_events.truncate(ENDS);
    let (room, sight) = server_sight::readable(&app, &request.room_id, server).await?;
    let ends = (&*request.earliest_events, &*request.latest_events);
    let limit = limit(request.limit, MISSING);
    let events = walk::between(&app, &room, ends, request.min_depth.into(), limit).await?;
    let events = shown(&app, &room, &sight, &events).await?;
    Ok(get_missing_events::v1::Response::new(events))
}

fn expect_few(events: usize) -> Result<()> {
    if events > ENDS {
        return Err(Error::invalid_param(format!(
            "a walk has at most {ENDS} ends"
        )));
    }
    Ok(())
}

fn limit(wanted: UInt, most: usize) -> usize {
    usize::try_from(wanted).map_or(most, |limit| limit.min(most))
}

async fn shown(
    app: &App,
    room: &Room,
    sight: &ServerSight,
    events: &[Arc<Event>],
) -> Result<Vec<Box<RawValue>>> {
    let mut shown = Vec::with_capacity(events.len());
    for event in events {
        shown.extend(show(app, room, sight, event).await?);
    }
    Ok(shown)
}
