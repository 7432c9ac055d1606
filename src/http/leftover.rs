//! What a request has left of its body when it is answered.
//!
//! A connection on which something is left unread has to be closed, and with it goes what the client asks next, or even the
//! answer, while the client still sends. So a rest is read and thrown away, unless that takes long or it is larger than what
//! clients send by mistake: that is announced with `Connection: close`.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use bytes::Bytes;
use http::{HeaderValue, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};

/// The largest rest that is read, in bytes, and how long that may take. The largest JSON that any endpoint takes is half of it.
const MAX_REST: usize = 16 << 20;
const REST_TIME: Duration = Duration::from_secs(2);

/// Looks after the rest, as a layer around everything that answers.
pub(super) async fn look_after(request: Request, next: Next) -> Response {
    // A client that waits to be told to go on has sent nothing yet.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let version = request.version();
    let (parts, body) = request.into_parts();
    let rest = Arc::new(Mutex::new(None));
    let lent = Lent {
        body: Some(body),
        owner: Arc::clone(&rest),
    };
    let mut response = next.run(Request::from_parts(parts, Body::new(lent))).await;
    let rest = rest.lock().unwrap_or_else(PoisonError::into_inner).take();
    let is_read = match rest {
        Some(rest) => read(rest).await,
        None => true,
    };
    // In HTTP/2 a request is a stream of its own, and nobody else's connection is touched.
    if !is_read && version < Version::HTTP_2 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// Reads a rest to its end. Answers whether that was possible.
async fn read(rest: Body) -> bool {
    let is_usual = |size: u64| usize::try_from(size).is_ok_and(|size| size <= MAX_REST);
    if !is_usual(rest.size_hint().lower()) {
        return false;
    }
    let mut rest = Limited::new(rest, MAX_REST);
    let whole = async {
        while let Some(frame) = rest.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(REST_TIME, whole).await == Ok(true)
}

/// A body that goes back to its owner when it is dropped before its end.
struct Lent {
    body: Option<Body>,
    owner: Arc<Mutex<Option<Body>>>,
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !body.is_end_stream());
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = rest;
    }
}
