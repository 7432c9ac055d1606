//! "Receipts".

use std::sync::Arc;

use ruma::{
    api::client::receipt::create_receipt::v3::{self, ReceiptType},
    events::receipt::ReceiptThread,
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::receipts::{self, Reading},
    storage::ReceiptKind,
};

pub(super) fn routes() -> Routes {
    Routes::new().add::<v3::Request, _, _>(create_receipt)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}`
async fn create_receipt(app: Arc<App>, call: Call<v3::Request>) -> Result<v3::Response> {
    let request = &call.body;
    let mut reading = Reading {
        receipts: Vec::new(),
        thread: request.thread.clone(),
        fully_read: None,
    };
    match request.receipt_type {
        ReceiptType::Read => reading
            .receipts
            .push((ReceiptKind::Read, &request.event_id)),
        ReceiptType::ReadPrivate => {
            let receipt = (ReceiptKind::ReadPrivate, &*request.event_id);
            reading.receipts.push(receipt);
        }
        ReceiptType::FullyRead if request.thread == ReceiptThread::Unthreaded => {
            reading.fully_read = Some(&request.event_id);
        }
        ReceiptType::FullyRead => {
            return Err(Error::invalid_param("m.fully_read knows no threads"));
        }
        _ => {
            let message = "a receipt is m.read, m.read.private or m.fully_read";
            return Err(Error::invalid_param(message));
        }
    }
    let room = app.member_room(&request.room_id).await?;
    receipts::read(&app, &room, &call.requester, &reading).await?;
    Ok(v3::Response::new())
}
