//! What is kept until an answer is sent, or nobody reads it any more.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// A body that keeps something as long as it lives.
struct Held<T> {
    body: Body,
    _kept: T,
}

/// The answer, which keeps something until it is sent: a large one is still made while it is sent.
pub(super) fn hold<T: Send + Unpin + 'static>(answer: Response, kept: T) -> Response {
    answer.map(|body| Body::new(Held { body, _kept: kept }))
}

impl<T: Unpin> http_body::Body for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body::Body as _;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_kept_until_the_answer_is_sent_or_given_up() {
        let kept = Arc::new(());
        let answer = || hold(Response::new(Body::from("12345")), Arc::clone(&kept));
        let sent = answer();
        assert_eq!(sent.body().size_hint().exact(), Some(5));
        assert_eq!(Arc::strong_count(&kept), 2);
        let body = sent.into_body();
        assert_eq!(Arc::strong_count(&kept), 2);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "12345");
        assert_eq!(Arc::strong_count(&kept), 1);
        let given_up = answer();
        assert_eq!(Arc::strong_count(&kept), 2);
        drop(given_up);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
