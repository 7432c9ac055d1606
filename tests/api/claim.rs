//! A database is one server's. On SQLite the lock on the data directory sees to that, and `tests/process.rs` to it.

use std::time::Duration;

use homing::{Server, app::App, server::StartError};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::server::{TestServer, test_config};

const LOCK: &str = "SELECT pg_try_advisory_lock(7161)";
const TIME_LIMIT: Duration = Duration::from_mins(1);

/// Ends all other connections to the database, as a restart of PostgreSQL does, and waits until they are gone. Answers one
/// of its own.
async fn disconnect(app: &App) -> PgConnection {
    let url = app.config.database_url();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection
        .execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await
        .unwrap();
    connection
}

#[tokio::test]
async fn a_claim_that_was_lost_is_renewed() {
    if std::env::var_os("TEST_POSTGRES").is_none() {
        return;
    }
    let server = TestServer::start().await;
    let mut connection = disconnect(&server.app).await;
    let renewed = async {
        loop {
            let free: bool = sqlx::query_scalar(LOCK)
                .fetch_one(&mut connection)
                .await
                .unwrap();
            if !free {
                break;
            }
            // Given back at once, or the server would think that another one has it.
            let unlock = "SELECT pg_advisory_unlock(7161)";
            connection.execute(unlock).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIME_LIMIT, renewed).await.unwrap();

    let directory = TempDir::new().unwrap();
    let mut config = test_config(&directory).await;
    config.database = server.app.config.database.clone();
    let second = Server::start(config).await;
    assert!(matches!(second, Err(StartError::InUse(_))), "{second:?}");
}

#[tokio::test]
async fn a_server_whose_database_was_taken_stops() {
    if std::env::var_os("TEST_POSTGRES").is_none() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let server = Server::start(test_config(&directory).await).await.unwrap();
    // Whoever is first has the claim, and the server may be that.
    let _claimed = loop {
        let mut connection = disconnect(&server.app).await;
        let is_first: bool = sqlx::query_scalar(LOCK)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        if is_first {
            break connection;
        }
    };
    let ended = tokio::time::timeout(TIME_LIMIT, server.ended());
    assert!(matches!(ended.await, Ok(Err(StartError::InUse(_)))));
}

#[tokio::test]
async fn a_database_that_takes_no_emoji_is_refused() {
    let Ok(url) = std::env::var("TEST_POSTGRES") else {
        return;
    };
    let name = format!("homing_latin_{}", std::process::id());
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for statement in [
        format!("DROP DATABASE IF EXISTS {name}"),
        format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"),
    ] {
        connection.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    let directory = TempDir::new().unwrap();
    let mut config = test_config(&directory).await;
    let (server, _) = url.rsplit_once('/').unwrap();
    config.database.url = Some(format!("{server}/{name}").into());
    let refused = Server::start(config).await.expect_err("it is LATIN1");
    assert!(refused.to_string().contains("LATIN1"), "{refused}");
}
