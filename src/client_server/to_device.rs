//! "Send-to-Device messaging".

use std::sync::Arc;

use ruma::api::client::to_device::send_event_to_device;

use crate::{
    app::App,
    error::Result,
    http::{Call, Routes},
    log::{AppendError, Change},
    storage,
    to_device::{self, Messages},
};

/// The largest request, in bytes: clients send what a thousand devices get at once.
const BODY: usize = 8 << 20;

pub(super) fn routes() -> Routes {
    Routes::new().sized::<send_event_to_device::v3::Request, _, _>(BODY, send_event_to_device)
}

/// `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`
///
/// What one device has sent under one transaction id is sent once.
async fn send_event_to_device(
    app: Arc<App>,
    call: Call<send_event_to_device::v3::Request>,
) -> Result<send_event_to_device::v3::Response> {
    let (request, requester) = (call.body, call.requester);
    let txn_id = request.txn_id.as_str();
    super::send::check_txn_id(txn_id)?;
    let event_type = request.event_type.to_string();
    let messages = Messages {
        sender: &requester.user_id,
        event_type: &event_type,
        contents: &request.messages,
    };
    messages.check()?;
    let mut change = Change::new();
    to_device::to_local(&app, &mut change, messages).await?;
    to_device::to_others(&app, &mut change, messages).await?;
    let now = app.clock.now();
    let sent = storage::to_device::sent(requester.device, &event_type, txn_id, now);
    change.write(sent);
    match app.log.append(change).await {
        Ok(_) | Err(AppendError::Duplicate) => Ok(send_event_to_device::v3::Response::new()),
        Err(error) => Err(error.into()),
    }
}
