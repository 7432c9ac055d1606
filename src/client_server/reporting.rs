//! "Reporting Content": reports to the administrators.

use std::{sync::Arc, time::Duration};

use ruma::api::client::{
    reporting::report_user,
    room::{report_content, report_room},
};
use serde_json::{Map, Value};

use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    http::{Call, Routes},
    log::Change,
    room::visibility::{Sight, Viewer},
    storage::{
        EventNid, RoomNid, UserNid, events,
        reports::{self, Report},
    },
};

/// The longest reason, in bytes.
const REASON_BYTES: usize = 4096;
/// How many reports a user can make in a day.
const REPORTS_PER_DAY: i64 = 200;
const DAY: Duration = Duration::from_hours(24);

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<report_content::v3::Request, _, _>(report_content)
        .add::<report_room::v3::Request, _, _>(report_room)
        .add::<report_user::v3::Request, _, _>(report_user)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}`
async fn report_content(
    app: Arc<App>,
    call: Call<report_content::v3::Request>,
) -> Result<report_content::v3::Response> {
    let body = call.body;
    let unknown =
        || Error::not_found("there is no such event that you may see in a room that you are in");
    let room = app.room(&body.room_id).await?;
    if !room.seen().local.contains_key(&call.requester.user) {
        return Err(unknown());
    }
    let viewer = Viewer::of(&app, &call.requester).await?;
    let sight = Sight::quick(&app, &room, &viewer).await?;
    let event = events::readable_by_id(&app.db, room.rules, room.nid, body.event_id.as_str())
        .await?
        .filter(|event| sight.may_see(event))
        .ok_or_else(unknown)?;
    let about = (Some(room.nid), Some(event.nid), None);
    add(
        &app,
        &call.requester,
        about,
        body.reason.unwrap_or_default(),
    )
    .await?;
    Ok(report_content::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report`
async fn report_room(
    app: Arc<App>,
    call: Call<report_room::v3::Request>,
) -> Result<report_room::v3::Response> {
    // Ruma takes a missing reason for an empty one; the specification wants one, even if it is empty.
    let has_reason = serde_json::from_slice::<Map<String, Value>>(&call.raw)
        .is_ok_and(|body| body.contains_key("reason"));
    if !has_reason {
        return Err(Error::missing_param("a report needs a `reason`"));
    }
    let room = app.room(&call.body.room_id).await?;
    let about = (Some(room.nid), None, None);
    add(&app, &call.requester, about, call.body.reason).await?;
    Ok(report_room::v3::Response::new())
}

/// `POST /_matrix/client/v3/users/{userId}/report`
async fn report_user(
    app: Arc<App>,
    call: Call<report_user::v3::Request>,
) -> Result<report_user::v3::Response> {
    let user = app
        .names
        .find_user(&app.db, &call.body.user_id)
        .await?
        .ok_or_else(|| Error::not_found("there is no such user here"))?;
    let about = (None, None, Some(user));
    add(&app, &call.requester, about, call.body.reason).await?;
    Ok(report_user::v3::Response::new())
}

/// What a report is about: a room, an event of it, or a user.
type About = (Option<RoomNid>, Option<EventNid>, Option<UserNid>);

async fn add(app: &App, requester: &Requester, about: About, reason: String) -> Result<()> {
    if reason.len() > REASON_BYTES || reason.contains('\0') {
        return Err(Error::invalid_param(format!(
            "a reason has at most {REASON_BYTES} bytes"
        )));
    }
    let now = app.clock.now();
    let day = i64::try_from(DAY.as_millis()).map_err(Error::internal)?;
    let made = reports::count_since(&app.db, requester.user, now - day).await?;
    if made >= REPORTS_PER_DAY {
        return Err(Error::limit_exceeded(DAY));
    }
    let (room, event, user) = about;
    let report = Report {
        nid: app.log.new_id()?,
        reporter: requester.user,
        ts: now,
        room,
        event,
        user,
        reason,
    };
    let mut change = Change::new();
    change.write(reports::add(&report));
    app.log.append(change).await?;
    tracing::info!(reporter = %requester.user_id, report = report.nid, "a user reports something");
    Ok(())
}
