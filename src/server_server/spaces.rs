//! "Spaces".

use std::sync::Arc;

use ruma::api::federation::space::{
    SpaceHierarchyParentSummary,
    get_hierarchy::v1::{Request, Response},
};

use crate::{
    app::App,
    error::Result,
    http::{Call, Routes},
    room::hierarchy,
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<Request, _, _>(get_hierarchy)
        .with_join_rules()
}

/// `GET /_matrix/federation/v1/hierarchy/{roomId}`
async fn get_hierarchy(app: Arc<App>, call: Call<Request>) -> Result<Response> {
    let request = call.body;
    let server = &call.requester.server;
    let part = hierarchy::part(&app, server, &request.room_id, request.suggested_only).await?;
    let children = part.room.children.into_iter().map(|child| child.event);
    let room = SpaceHierarchyParentSummary::new(part.room.summary, children.collect());
    let mut response = Response::new(room);
    response.children = part.children;
    response.inaccessible_children = part.inaccessible;
    Ok(response)
}
