//! "Syncing".

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{RawPathParams, Request, State},
    response::IntoResponse as _,
    routing::get,
};
use ruma::api::{auth_scheme::AccessToken, client::sync::sync_events::v3};

use crate::{
    app::App,
    auth::{self, Authenticate as _},
    error::Result,
    filter,
    http::{Routes, parse},
    presence,
    sync::{self, Answer, StateForm},
};

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
    let answer = sync_events(&app, &requester, &request, query);
    let answer = auth::while_signed_in(&app, &requester, answer).await?;
    Ok(Json(answer).into_response())
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
