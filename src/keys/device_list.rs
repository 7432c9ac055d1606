//! `GET /_matrix/federation/v1/user/devices/{userId}` as it is asked here. Servers also name devices without keys, such as
//! Synapse does, and ruma's type has none of these: the answer is read by one of our own.

use ruma::{
    OwnedUserId,
    api::{
        IncomingResponse, Metadata, OutgoingRequest,
        error::{DeserializationError, IntoHttpError},
        federation::device::get_devices::v1::Request,
    },
    encryption::CrossSigningKey,
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The request.
#[derive(Clone, Debug)]
pub(super) struct GetDevices(Request);

impl GetDevices {
    /// Asks for the devices of a user.
    pub(super) fn of(user: OwnedUserId) -> Self {
        Self(Request::new(user))
    }
}

/// The devices of a user.
#[derive(Debug, Deserialize)]
pub(super) struct DeviceList {
    /// Up to where the list is known by it, as its server counts.
    pub(super) stream_id: u64,
    /// The devices; see [`DeviceList::devices`].
    devices: Vec<Box<RawValue>>,
    /// The key that the user is known by.
    pub(super) master_key: Option<Raw<CrossSigningKey>>,
    /// The key that signs the user's devices.
    pub(super) self_signing_key: Option<Raw<CrossSigningKey>>,
}

impl DeviceList {
    /// Those devices that can be read: one that makes no sense costs the others nothing.
    pub(super) fn devices(&self) -> impl Iterator<Item = Device> {
        let devices = self.devices.iter();
        devices.filter_map(|device| serde_json::from_str(device.get()).ok())
    }
}

/// One of them.
#[derive(Debug, Deserialize)]
pub(super) struct Device {
    /// Its id.
    #[serde(rename = "device_id")]
    pub(super) id: String,
    /// Its keys, if it has any.
    pub(super) keys: Option<Box<RawValue>>,
    /// What its user calls it, if that is told.
    #[serde(rename = "device_display_name")]
    pub(super) display_name: Option<String>,
}

impl Metadata for GetDevices {
    const METHOD: http::Method = Request::METHOD;
    const RATE_LIMITED: bool = Request::RATE_LIMITED;
    type Authentication = <Request as Metadata>::Authentication;
    type PathBuilder = <Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = Request::PATH_BUILDER;
}

impl OutgoingRequest for GetDevices {
    type Body = <Request as OutgoingRequest>::Body;
    type EndpointError = <Request as OutgoingRequest>::EndpointError;
    type IncomingResponse = DeviceList;

    fn try_into_http_request_inner(
        self,
        base_url: &str,
        path: (),
    ) -> Result<http::Request<Self::Body>, IntoHttpError> {
        self.0.try_into_http_request_inner(base_url, path)
    }
}

impl IncomingResponse for DeviceList {
    type EndpointError = <Request as OutgoingRequest>::EndpointError;

    fn try_from_http_response_inner(
        response: http::Response<&[u8]>,
    ) -> Result<Self, DeserializationError> {
        Ok(serde_json::from_slice(response.body())?)
    }
}
