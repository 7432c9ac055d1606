//! "Transactions".

use std::{sync::Arc, time::Duration};

use ruma::api::federation::transactions::send_transaction_message;

use super::edus;
use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::receive::incoming,
};

/// The most events, and the most ephemeral messages, of a transaction.
const MAX_PDUS: usize = 50;
const MAX_EDUS: usize = 100;
/// The largest transaction, in bytes: all its events may be as large as they can be.
const MAX_BYTES: usize = (MAX_PDUS + MAX_EDUS) * (64 << 10) + (1 << 20);
/// How long a server has to wait that sends a transaction while another of its own is worked on.
const WAIT: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Routes {
    Routes::new()
        .sized::<send_transaction_message::v1::Request, _, _>(MAX_BYTES, send_transaction_message)
}

/// `PUT /_matrix/federation/v1/send/{txnId}`
///
/// The answer comes when all that was sent is durable. What was sent before is known and costs nothing, so transaction ids
/// need not be kept.
async fn send_transaction_message(
    app: Arc<App>,
    call: Call<send_transaction_message::v1::Request>,
) -> Result<send_transaction_message::v1::Response> {
    let (request, origin) = (call.body, call.requester.server.clone());
    if request.pdus.len() > MAX_PDUS || request.edus.len() > MAX_EDUS {
        return Err(Error::invalid_param(format!(
            "a transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs"
        )));
    }
    if request.origin != origin {
        return Err(Error::forbidden("the transaction is of another server"));
    }
    let turn = app.transactions.turn(&origin);
    let turn = tokio::time::timeout(WAIT * 30, turn.lock_owned()).await;
    let _turn = turn.map_err(|_| Error::limit_exceeded(WAIT))?;
    // What is begun is finished, also if the other server does not wait for it.
    let work = {
        let app = Arc::clone(&app);
        async move {
            let answers = incoming::incoming(&app, &origin, request.pdus).await?;
            // What they are about may have come with the events.
            edus::receive(&app, &origin, &request.edus).await?;
            Ok::<_, Error>(answers)
        }
    };
    let answers = tokio::spawn(work).await.map_err(Error::internal)??;
    Ok(send_transaction_message::v1::Response::new(answers))
}
