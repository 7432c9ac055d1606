//! What SQLite needs from time to time. PostgreSQL looks after itself.

use std::time::Duration;

use sqlx::{Connection as _, Executor as _, SqliteConnection};

use super::{Db, Result};

/// How long the upkeep waits for others, who must not wait for it.
const PATIENCE: Duration = Duration::from_millis(50);

impl Db {
    /// Moves what was committed from SQLite's log into its file, so that no commit has to do it while somebody waits,
    /// and gives back free pages. When the server `is_idle` the log is emptied too.
    pub async fn tend(&self, is_idle: bool) -> Result<()> {
        let Some(options) = self.sqlite_writer() else {
            return Ok(());
        };
        let options = options.clone().busy_timeout(PATIENCE);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        if is_idle {
            connection
                .execute("PRAGMA incremental_vacuum(1000)")
                .await?;
            connection
                .execute("PRAGMA wal_checkpoint(TRUNCATE)")
                .await?;
        } else {
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").await?;
        }
        connection.close().await
    }
}
