//! What operators and their tools ask the server over HTTP: is it well, and
//! what has it measured.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{Method, StatusCode, header};

use crate::listen::ClientAddress;
use crate::telemetry::{self, Answer, Counted, Endpoint, Metrics};

/// `GET /health`: 200 if `check` finds nothing wrong, else 503. What is wrong
/// goes to the log, not to whoever asks.
pub fn health<S, F, Checked, E>(check: F) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    F: Fn() -> Checked + Clone + Send + Sync + 'static,
    Checked: Future<Output = Result<(), E>> + Send,
    E: std::fmt::Display + Send,
{
    let answer = || async move {
        match check().await {
            Ok(()) => (StatusCode::OK, "OK\n"),
            Err(error) => {
                tracing::error!(%error, "not well");
                (StatusCode::SERVICE_UNAVAILABLE, "not well\n")
            }
        }
    };
    Router::new().route("/health", get(answer))
}

/// `GET /metrics`, for the listener that is only for this. `look` looks up what is not measured as it happens.
pub fn metrics<F>(metrics: Arc<Metrics>, look: F) -> Router
where
    F: Fn(&Metrics) + Clone + Send + Sync + 'static,
{
    let answer = async move |State(metrics): State<Arc<Metrics>>| {
        look(&metrics);
        match metrics.encode() {
            Ok(text) => ([(header::CONTENT_TYPE, telemetry::MEDIA_TYPE)], text).into_response(),
            Err(error) => {
                tracing::error!(%error, "cannot write the measurements");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    };
    Router::new()
        .route("/metrics", get(answer))
        .with_state(metrics)
}

/// Measures a request, as a layer of the router:
/// `.layer(middleware::from_fn_with_state(metrics, operations::measure))`.
///
/// What the client chooses never makes a new series: the path is the route's,
/// with the names of its arguments, and an unusual method is `other`.
pub async fn measure(
    State(metrics): State<Arc<Metrics>>,
    request: Request,
    next: Next,
) -> Response {
    let method = method(request.method());
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unknown", MatchedPath::as_str)
        .to_owned();
    let address = request.extensions().get::<ClientAddress>();
    let address = address.map_or_else(String::new, |address| address.0.to_string());
    let started = Instant::now();
    let running = Counted::new(&metrics.requests_running);
    let response = next.run(request).await;
    drop(running);

    // The route tells enough: what clients choose may be secret.
    let status = response.status().as_u16();
    let took = started.elapsed();
    tracing::debug!(method, path, status, ?took, address, "answered");
    let endpoint = Endpoint { method, path };
    metrics
        .request_duration
        .get_or_create(&endpoint)
        .observe(took.as_secs_f64());
    let answer = Answer {
        method,
        path: endpoint.path,
        status,
    };
    metrics.requests.get_or_create(&answer).inc();
    response
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, middleware};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router, method: &str, path: &str) -> (StatusCode, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn health_tells_well_from_not_well() {
        let well = health(|| async { Ok::<_, String>(()) });
        assert_eq!(ask(&well, "GET", "/health").await.0, StatusCode::OK);

        let ill = health(|| async { Err("database on fire") });
        let (status, body) = ask(&ill, "GET", "/health").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!body.contains("fire"), "the cause is for the log: {body}");
    }

    #[tokio::test]
    async fn requests_are_measured_by_route() {
        let measured = Arc::new(Metrics::new());
        let router = Router::new()
            .route("/room/{room_id}", get(|| async { StatusCode::IM_A_TEAPOT }))
            .fallback(|| async { StatusCode::NOT_FOUND })
            .layer(middleware::from_fn_with_state(
                Arc::clone(&measured),
                measure,
            ));
        for path in ["/room/a", "/room/b"] {
            ask(&router, "GET", path).await;
        }
        ask(&router, "BREW", "/elsewhere").await;

        let (_, text) = ask(&metrics(measured, |_| {}), "GET", "/metrics").await;
        for line in [
            r#"homing_requests_total{method="GET",path="/room/{room_id}",status="418"} 2"#,
            r#"homing_request_duration_seconds_count{method="GET",path="/room/{room_id}"} 2"#,
            r#"homing_requests_total{method="other",path="unknown",status="404"} 1"#,
            "homing_requests_running 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
