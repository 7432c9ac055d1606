//! "Push Notifications": the pushers.

use std::sync::Arc;

use http::Uri;
use ruma::api::client::push::{
    Pusher, PusherIds, PusherKind, get_pushers,
    set_pusher::{self, v3::PusherAction},
};
use serde_json::{Map, Value};

use crate::{
    app::App,
    auth::Requester,
    bus::Effect,
    error::{Error, Result},
    http::{Call, Routes},
    log::{AppendError, Change},
    storage::{self, PusherNid, devices, pushers},
};

/// The most pushers of one user.
const PUSHERS: usize = 100;
/// The longest key, in bytes, and the longest id of an application, in characters, as the specification has them.
const PUSHKEY_BYTES: usize = 512;
const APP_ID_CHARS: usize = 64;
/// The longest name of an application or a device, and the like, in bytes.
const NAME_BYTES: usize = 1024;
/// The longest address of a push gateway, in bytes.
const URL_BYTES: usize = 2048;
/// How much a client may want to be passed on to its push gateway, in bytes of JSON.
const DATA_BYTES: usize = 16 << 10;
/// The path under which all push gateways are.
const GATEWAY_PATH: &str = "/_matrix/push/v1/notify";
/// How often a change is tried that others got in the way of.
const ATTEMPTS: usize = 5;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_pushers::v3::Request, _, _>(get_pushers)
        .add::<set_pusher::v3::Request, _, _>(set_pusher)
}

/// `GET /_matrix/client/v3/pushers`
async fn get_pushers(
    app: Arc<App>,
    call: Call<get_pushers::v3::Request>,
) -> Result<get_pushers::v3::Response> {
    let rows = pushers::of_user(&app.db, call.requester.user).await?;
    let pushers = rows
        .iter()
        .map(|row| serde_json::from_str(&row.json).map_err(Error::internal))
        .collect::<Result<_>>()?;
    Ok(get_pushers::v3::Response::new(pushers))
}

/// `POST /_matrix/client/v3/pushers/set`
///
/// Of the kinds of pushers there is `http`. A pusher goes with the device that has set it last.
async fn set_pusher(
    app: Arc<App>,
    call: Call<set_pusher::v3::Request>,
) -> Result<set_pusher::v3::Response> {
    match call.body.action {
        PusherAction::Post(data) => set(&app, &call.requester, &data.pusher, data.append).await?,
        PusherAction::Delete(ids) => {
            // Ruma takes one that is left out for one that is null.
            let body: Map<String, Value> = serde_json::from_slice(&call.raw)
                .map_err(|error| Error::bad_json(error.to_string()))?;
            if !body.contains_key("kind") {
                return Err(Error::missing_param("`kind` is missing"));
            }
            let mut change = Change::new();
            let user = call.requester.user;
            change.write(pushers::remove(user, &ids.app_id, &ids.pushkey));
            app.log.append(change).await?;
        }
        _ => return Err(Error::invalid_param("there is no such kind of pusher")),
    }
    Ok(set_pusher::v3::Response::new())
}

async fn set(app: &App, requester: &Requester, pusher: &Pusher, append: bool) -> Result<()> {
    check(pusher)?;
    for _ in 0..ATTEMPTS {
        let known = pushers::of_user(&app.db, requester.user).await?;
        let is_same = |row: &&storage::pushers::Pusher| {
            row.app_id == pusher.ids.app_id && row.pushkey == pusher.ids.pushkey
        };
        let before = known.iter().find(is_same).map(|row| row.nid);
        if before.is_none() && known.len() >= PUSHERS {
            return Err(Error::too_large(format!(
                "one user can have at most {PUSHERS} pushers"
            )));
        }
        let new = pushers::Pusher {
            nid: before.map_or_else(|| app.log.new_id().map(PusherNid), Ok)?,
            user: requester.user,
            device: requester.device,
            app_id: pusher.ids.app_id.clone(),
            pushkey: pusher.ids.pushkey.clone(),
            set_ts: app.clock.now(),
            json: serde_json::to_string(pusher).map_err(Error::internal)?,
        };
        let mut change = Change::new();
        let at = change.position();
        change.write(devices::expect(requester.device));
        change.write(match before {
            Some(_) => pushers::change(&new),
            None => pushers::add(&new, at),
        });
        if !append {
            change.write(pushers::remove_of_others(&new));
        }
        change.effect(Effect::Pusher {
            user: new.user,
            pusher: new.nid,
            at,
        });
        match app.log.append(change).await {
            Ok(_) => return Ok(()),
            // The pusher came or went meanwhile, or the device went.
            Err(AppendError::Duplicate | AppendError::Unexpected) => {}
            Err(error) => return Err(error.into()),
        }
        let device = requester.device_id.as_str();
        let is_here = devices::find(&app.db, requester.user, device).await?;
        if is_here != Some(requester.device) {
            return Err(Error::unknown_token(false));
        }
    }
    Err(Error::refused("the pusher is being changed by others"))
}

fn check(pusher: &Pusher) -> Result<()> {
    let PusherIds {
        app_id, pushkey, ..
    } = &pusher.ids;
    if !(1..=APP_ID_CHARS).contains(&app_id.chars().count()) {
        return Err(Error::invalid_param(format!(
            "an app_id has 1 to {APP_ID_CHARS} characters"
        )));
    }
    if !(1..=PUSHKEY_BYTES).contains(&pushkey.len()) {
        return Err(Error::invalid_param(format!(
            "a pushkey has 1 to {PUSHKEY_BYTES} bytes"
        )));
    }
    let names = [
        Some(&pusher.app_display_name),
        Some(&pusher.device_display_name),
        Some(&pusher.lang),
        pusher.profile_tag.as_ref(),
    ];
    if names
        .into_iter()
        .flatten()
        .any(|name| name.len() > NAME_BYTES)
    {
        return Err(Error::invalid_param(format!(
            "names of applications and devices have at most {NAME_BYTES} bytes"
        )));
    }
    match &pusher.kind {
        PusherKind::Http(data) => {
            let json = serde_json::to_string(data).map_err(Error::internal)?;
            if json.len() > DATA_BYTES + data.url.len() {
                return Err(Error::too_large(format!(
                    "`data` has at most {DATA_BYTES} bytes"
                )));
            }
            if is_gateway(&data.url) {
                return Ok(());
            }
            Err(Error::invalid_param(format!(
                "the url of a push gateway is https://HOST{GATEWAY_PATH}"
            )))
        }
        PusherKind::Email(_) => Err(Error::invalid_param(
            "this server sends no notifications by e-mail",
        )),
        _ => Err(Error::invalid_param("there is no such kind of pusher")),
    }
}

/// Whether a URL can be that of a push gateway.
fn is_gateway(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    url.len() <= URL_BYTES
        && uri.scheme_str() == Some("https")
        && uri.path() == GATEWAY_PATH
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri
            .authority()
            .is_some_and(|authority| !authority.as_str().contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_reached_over_https_at_the_path_of_the_specification() {
        for (url, expected) in [
            ("https://push.example/_matrix/push/v1/notify", true),
            (
                "https://push.example:8443/_matrix/push/v1/notify?up=1",
                true,
            ),
            ("https://[::1]/_matrix/push/v1/notify", true),
            ("http://push.example/_matrix/push/v1/notify", false),
            ("https://push.example/_matrix/push/v1/notify/", false),
            ("https://push.example/", false),
            ("https://a:b@push.example/_matrix/push/v1/notify", false),
            ("https:///_matrix/push/v1/notify", false),
            ("/_matrix/push/v1/notify", false),
            ("matrix://push.example/_matrix/push/v1/notify", false),
            ("", false),
        ] {
            assert_eq!(is_gateway(url), expected, "{url}");
        }
    }
}
