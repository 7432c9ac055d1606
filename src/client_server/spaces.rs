//! "Spaces", "Discovering rooms within spaces".

use std::sync::Arc;

use ruma::api::client::space::{
    SpaceHierarchyRoomsChunk,
    get_hierarchy::v1::{Request, Response},
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::hierarchy::{self, Walk},
};

/// How many rooms an answer has where the request does not say.
const DEFAULT_LIMIT: u64 = 50;
/// The most rooms in one answer.
const MAX_LIMIT: u64 = 100;
/// The deepest walk; also the default.
const MAX_DEPTH: u64 = 20;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<Request, _, _>(get_hierarchy)
        .with_join_rules()
}

/// `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`
async fn get_hierarchy(app: Arc<App>, call: Call<Request>) -> Result<Response> {
    let request = call.body;
    let limit = match request.limit.map(u64::from) {
        Some(0) => return Err(Error::invalid_param("`limit` is greater than zero")),
        limit => limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT),
    };
    let walk = Walk {
        max_depth: request
            .max_depth
            .map_or(MAX_DEPTH, u64::from)
            .min(MAX_DEPTH),
        suggested_only: request.suggested_only,
        fresh: request.from.is_none(),
    };
    let skip = request.from.map_or(Ok(0), |token| skipped(&token, walk))?;
    let nodes = hierarchy::walk(&app, call.requester.user, &request.room_id, walk).await?;
    let total = nodes.len();
    let end = skip.saturating_add(usize::try_from(limit).unwrap_or(usize::MAX));
    let mut response = Response::new();
    response.rooms = nodes
        .into_iter()
        .take(end)
        .skip(skip)
        .map(|node| {
            let children = node.children.into_iter().map(|child| child.event).collect();
            SpaceHierarchyRoomsChunk::new(node.summary, children)
        })
        .collect();
    response.next_batch = (end < total).then(|| token(end, walk));
    Ok(response)
}

/// A token says how many rooms were told already, and how the walk was asked for, because that must not change.
fn token(skip: usize, walk: Walk) -> String {
    let suggested = u8::from(walk.suggested_only);
    format!("h{skip}_{}_{suggested}", walk.max_depth)
}

fn skipped(text: &str, walk: Walk) -> Result<usize> {
    let skip = text
        .strip_prefix('h')
        .and_then(|rest| rest.split('_').next())
        .and_then(|skip| skip.parse().ok());
    skip.filter(|skip| token(*skip, walk) == text)
        .ok_or_else(|| Error::invalid_param("`from` does not belong to such a request"))
}
