//! "Fully read markers".

use std::sync::Arc;

use ruma::{api::client::read_marker::set_read_marker::v3, events::receipt::ReceiptThread};

use crate::{
    app::App,
    error::Result,
    http::{Call, Routes},
    room::receipts::{self, Reading},
    storage::ReceiptKind,
};

pub(super) fn routes() -> Routes {
    Routes::new().add::<v3::Request, _, _>(set_read_marker)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/read_markers`
async fn set_read_marker(app: Arc<App>, call: Call<v3::Request>) -> Result<v3::Response> {
    let request = &call.body;
    let public = request.read_receipt.as_deref();
    let private = request.private_read_receipt.as_deref();
    let reading = Reading {
        receipts: public
            .map(|event| (ReceiptKind::Read, event))
            .into_iter()
            .chain(private.map(|event| (ReceiptKind::ReadPrivate, event)))
            .collect(),
        thread: ReceiptThread::Unthreaded,
        fully_read: request.fully_read.as_deref(),
    };
    let room = app.member_room(&request.room_id).await?;
    receipts::read(&app, &room, &call.requester, &reading).await?;
    Ok(v3::Response::new())
}
