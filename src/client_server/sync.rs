//! "Syncing".

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{RawPathParams, Request, State},
    response::IntoResponse as _,
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use http::header;
use ruma::api::{auth_scheme::AccessToken, client::sync::sync_events::v3};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    app::App,
    auth::{self, Authenticate as _},
    error::{Error, Result},
    filter,
    http::{Routes, parse},
    presence,
    sync::{self, Answer, StateForm},
};

/// How much of a whole answer is handed to the connection at a time, in bytes.
const PIECE: usize = 64 << 10;

pub(super) fn routes() -> Routes {
    Routes::new().raw::<v3::Request>(get(answer))
}

async fn answer(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<axum::response::Response> {
    let (parts, _) = request.into_parts();
    let requester = AccessToken::authenticate(&app, &parts).await?;
    let request = parse::<v3::Request>(&parts, &params, &[])?;
    let query = parts.uri.query().unwrap_or_default();
    let is_whole = request.full_state || request.since.as_ref().is_none_or(String::is_empty);
    let work = async {
        let turn = if is_whole {
            let feed = app.bus.feed(&app.db, &app.log, requester.user).await?;
            let turn = Arc::clone(&feed.whole).acquire_owned().await;
            Some(turn.map_err(Error::internal)?)
        } else {
            None
        };
        let answer = sync_events(&app, &requester, &request, query).await?;
        Ok((turn, answer))
    };
    let (turn, answer) = auth::while_signed_in(&app, &requester, work).await?;
    match turn {
        None => Ok(Json(answer).into_response()),
        Some(turn) => {
            let json = serde_json::to_vec(&answer).map_err(Error::internal)?;
            drop(answer);
            let json_type = [(header::CONTENT_TYPE, "application/json")];
            Ok((json_type, in_pieces(json.into(), turn)).into_response())
        }
    }
}

/// A large body, which gives its turn to the next one when it is sent: so few are in memory at a time.
fn in_pieces(body: Bytes, turn: OwnedSemaphorePermit) -> Body {
    let pieces = stream::unfold((body, turn), |(mut body, turn)| async move {
        let piece = body.split_to(body.len().min(PIECE));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (body, turn)))
    });
    Body::from_stream(pieces)
}

/// `GET /_matrix/client/v3/sync`
///
/// Not answered with ruma's type: that has no place for the unstable name of `state_after`, which some clients know
/// only (MSC4222).
async fn sync_events(
    app: &Arc<App>,
    requester: &crate::auth::Requester,
    request: &v3::Request,
    query: &str,
) -> Result<Answer> {
    let unstable = query
        .split('&')
        .any(|pair| pair == "org.matrix.msc4222.use_state_after=true");
    let asked = sync::Request {
        since: request
            .since
            .as_deref()
            .filter(|since| !since.is_empty())
            .map(str::parse)
            .transpose()?,
        filter: filter::of_sync(app, requester.user, request.filter.as_ref()).await?,
        full_state: request.full_state,
        timeout: request.timeout.unwrap_or(Duration::ZERO),
        state: match (request.use_state_after, unstable) {
            (true, _) => StateForm::After,
            (false, true) => StateForm::AfterUnstable,
            (false, false) => StateForm::Before,
        },
    };
    let _there = presence::syncing(app, requester, &request.set_presence).await?;
    sync::sync(app, requester, &asked).await
}
