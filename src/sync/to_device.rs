//! Messages to the device that syncs ("Send-to-Device messaging").

use serde_json::value::RawValue;

use super::{Context, Since};
use crate::{
    bus::Feed,
    error::{Error, Result},
    log::Change,
    storage::{Pos, to_device},
    to_device::fitting,
};

/// How many messages one answer has, and how many bytes of them when there are more than one.
const MOST: i64 = 100;
const BYTES: usize = 1 << 20;

/// Removes the messages that the device has got with its last answer, and takes the next. Answers also the position of the
/// last one that it is given, if there are more.
pub(super) async fn take(
    context: &Context<'_>,
    feed: &Feed,
    since: Option<Since>,
) -> Result<(Vec<Box<RawValue>>, Option<Pos>)> {
    let (app, device) = (context.app, context.requester.device);
    let after = since.map_or(0, |since| since.to_device.unwrap_or(since.pos));
    let Some(inbox) = feed.state().inbox(device) else {
        return Ok((Vec::new(), None));
    };
    if inbox.first <= after {
        let mut change = Change::new();
        change.write(to_device::remove(device, after));
        app.log.append(change).await?;
        feed.state().messages_removed(device, after);
    }
    if inbox.last <= after {
        return Ok((Vec::new(), None));
    }
    let upto = context.upto;
    let waiting = to_device::between(&app.db, device, after, upto, MOST + 1).await?;
    let count = fitting(&waiting, MOST, BYTES);
    let is_all = count == waiting.len();
    let given = &waiting[..count];
    let last = given.last().map(|message| message.pos);
    let events = given
        .iter()
        .map(|message| RawValue::from_string(message.json.clone()).map_err(Error::internal))
        .collect::<Result<_>>()?;
    Ok((events, last.filter(|_| !is_all)))
}
