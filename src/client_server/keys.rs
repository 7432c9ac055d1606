//! "End-to-End Encryption", "Key management API" and "Cross-signing".

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ruma::{
    OneTimeKeyAlgorithm, UInt,
    api::client::{
        keys::{
            claim_keys, get_key_changes, get_keys, upload_keys, upload_signatures,
            upload_signing_keys,
        },
        uiaa::AuthType,
    },
    encryption::{CrossSigningKey, OneTimeKey},
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    keys::{self, Claimed, Keys, Upload, cross_signing, signatures},
    log::AppendError,
    storage::devices,
    sync,
    uiaa::{self, Task},
};

/// How long other servers have to answer if the client does not say.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<upload_keys::v3::Request, _, _>(upload_keys)
        .json::<get_keys::v3::Request, _, _, _>(get_keys)
        .json::<claim_keys::v3::Request, _, _, _>(claim_keys)
        .add::<get_key_changes::v3::Request, _, _>(get_key_changes)
        .interactive::<upload_signing_keys::v3::Request, _, _>(upload_signing_keys)
        .json::<upload_signatures::v3::Request, _, _, _>(upload_signatures)
}

/// `POST /_matrix/client/v3/keys/upload`
///
/// The same keys may come again; an id that has come with one key does not come with another.
async fn upload_keys(
    app: Arc<App>,
    call: Call<upload_keys::v3::Request>,
) -> Result<upload_keys::v3::Response> {
    let (request, requester) = (call.body, call.requester);
    let keys = |keys: &BTreeMap<_, Raw<OneTimeKey>>| -> Vec<(String, Box<RawValue>)> {
        let keys = keys.iter();
        keys.map(|(id, key)| (ToString::to_string(id), key.json().to_owned()))
            .collect()
    };
    let (one_time, fallback) = (keys(&request.one_time_keys), keys(&request.fallback_keys));
    let upload = Upload {
        user: requester.user,
        user_id: &requester.user_id,
        device: requester.device,
        device_id: requester.device_id.as_str(),
        device_keys: request.device_keys.as_ref().map(Raw::json),
        one_time: one_time.iter().map(|(id, key)| (&**id, &**key)).collect(),
        fallback: fallback.iter().map(|(id, key)| (&**id, &**key)).collect(),
    };
    let counts = keys::upload(&app, &upload).await?;
    let none = (OneTimeKeyAlgorithm::SignedCurve25519, UInt::MIN);
    let left = counts.one_time.into_iter();
    let left = left.map(|(algorithm, count)| {
        let count = UInt::try_from(count).unwrap_or(UInt::MAX);
        (OneTimeKeyAlgorithm::from(algorithm), count)
    });
    let counts = std::iter::once(none).chain(left).collect();
    Ok(upload_keys::v3::Response::new(counts))
}

/// `POST /_matrix/client/v3/keys/query`
async fn get_keys(app: Arc<App>, call: Call<get_keys::v3::Request>) -> Result<Keys> {
    let request = call.body;
    let timeout = request.timeout.unwrap_or(PATIENCE);
    keys::query(&app, call.requester.user, request.device_keys, timeout).await
}

/// `POST /_matrix/client/v3/keys/claim`
async fn claim_keys(app: Arc<App>, call: Call<claim_keys::v3::Request>) -> Result<Claimed> {
    let request = call.body;
    let timeout = request.timeout.unwrap_or(PATIENCE);
    keys::claim(&app, call.requester.user, request.one_time_keys, timeout).await
}

/// `GET /_matrix/client/v3/keys/changes`
///
/// All changes since `from` are told, also those after `to`: a client hears of them once more then.
async fn get_key_changes(
    app: Arc<App>,
    call: Call<get_key_changes::v3::Request>,
) -> Result<get_key_changes::v3::Response> {
    let lists = sync::device_changes(&app, &call.requester, call.body.from.parse()?).await?;
    let response = get_key_changes::v3::Response::new(lists.changed, lists.left);
    Ok(response)
}

/// `POST /_matrix/client/v3/keys/device_signing/upload`
///
/// Who has no keys yet, or brings those that are known, need not prove themselves.
async fn upload_signing_keys(
    app: Arc<App>,
    call: Call<upload_signing_keys::v3::Request>,
) -> Result<upload_signing_keys::v3::Response> {
    let (request, requester) = (&call.body, &call.requester);
    let json = |key: &Option<Raw<CrossSigningKey>>| key.as_ref().map(|key| key.json().to_owned());
    let (master, self_signing, user_signing) = (
        json(&request.master_key),
        json(&request.self_signing_key),
        json(&request.user_signing_key),
    );
    let uploaded = cross_signing::Uploaded {
        master: master.as_deref(),
        self_signing: self_signing.as_deref(),
        user_signing: user_signing.as_deref(),
    };
    let mut is_proven = false;
    loop {
        let keys = cross_signing::check(&app, requester, uploaded).await?;
        if keys.needs_proof() && !is_proven {
            let task = Task {
                path: call.parts.uri.path(),
                body: &call.raw,
                requester: Some(requester),
                auth: request.auth.as_ref(),
            };
            uiaa::authenticate(&app, task, &[vec![AuthType::Password]]).await?;
            is_proven = true;
        }
        match cross_signing::upload(&app, requester, keys).await {
            Err(Error::Append(AppendError::Unexpected)) => {
                let device = requester.device_id.as_str();
                let device = devices::find(&app.db, requester.user, device).await?;
                if device != Some(requester.device) {
                    return Err(Error::unknown_token(false));
                }
                // Another request has brought the first keys.
            }
            result => return result.map(|()| upload_signing_keys::v3::Response::default()),
        }
    }
}

/// The signatures that were not taken.
#[derive(Debug, Serialize)]
struct NotTaken {
    failures: signatures::Failures,
}

/// `POST /_matrix/client/v3/keys/signatures/upload`
async fn upload_signatures(
    app: Arc<App>,
    call: Call<upload_signatures::v3::Request>,
) -> Result<NotTaken> {
    let failures = signatures::add(&app, &call.requester, &call.body.signed_keys).await?;
    Ok(NotTaken { failures })
}
