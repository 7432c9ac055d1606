//! "Filtering": filters that clients store and refer to by id.

use std::sync::Arc;

use ruma::api::client::filter::{create_filter, get_filter};

use crate::{
    app::App,
    error::{Error, Result},
    filter,
    http::{Call, Routes},
    rate_limit::{self, Class},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<create_filter::v3::Request, _, _>(create_filter)
        .add::<get_filter::v3::Request, _, _>(get_filter)
}

/// `POST /_matrix/client/v3/user/{userId}/filter`
async fn create_filter(
    app: Arc<App>,
    call: Call<create_filter::v3::Request>,
) -> Result<create_filter::v3::Response> {
    call.requester.must_be(&call.body.user_id)?;
    rate_limit::check(&app, Class::Messages, &call.requester)?;
    let id = filter::store(&app, call.requester.user, call.body.filter).await?;
    Ok(create_filter::v3::Response::new(id))
}

/// `GET /_matrix/client/v3/user/{userId}/filter/{filterId}`
async fn get_filter(
    app: Arc<App>,
    call: Call<get_filter::v3::Request>,
) -> Result<get_filter::v3::Response> {
    call.requester.must_be(&call.body.user_id)?;
    let filter = filter::stored(&app, call.requester.user, &call.body.filter_id)
        .await?
        .ok_or_else(|| Error::not_found("there is no filter with this id"))?;
    Ok(get_filter::v3::Response::new(Arc::unwrap_or_clone(filter)))
}
