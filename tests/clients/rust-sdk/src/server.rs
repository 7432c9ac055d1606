//! The homeserver's process.

use std::{env, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use matrix_sdk::Client;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// The server that the conversation starts and stops. Both people use it, unless one of them is on
/// another one that is there already.
pub struct Server {
    pub url_of_alice: String,
    pub url_of_bob: String,
    pub is_shared_with_another: bool,
    url: String,
    command: Vec<String>,
    process: Option<Child>,
}

impl Server {
    pub fn from_environment() -> Result<Self> {
        let command = env::var("HOMESERVER_COMMAND").context("HOMESERVER_COMMAND is not set")?;
        let url = env::var("HOMESERVER_URL").context("HOMESERVER_URL is not set")?;
        let of = |person| env::var(person).unwrap_or_else(|_| url.clone());
        let (url_of_alice, url_of_bob) = (of("ALICE_URL"), of("BOB_URL"));
        Ok(Self {
            is_shared_with_another: url_of_alice != url_of_bob,
            url_of_alice,
            url_of_bob,
            url,
            command: command.split_whitespace().map(str::to_owned).collect(),
            process: None,
        })
    }

    /// Starts the server and returns when it answers.
    pub async fn start(&mut self) -> Result<()> {
        let (program, arguments) = self.command.split_first().context("the command is empty")?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{program} did not start"))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            // Building a client asks the server for its versions.
            let client = Client::builder().homeserver_url(&self.url).build().await?;
            if client.fetch_server_versions(None).await.is_ok() {
                self.process = Some(process);
                return Ok(());
            }
            if let Some(status) = process.try_wait()? {
                bail!("the server ended: {status}");
            }
            if Instant::now() > deadline {
                bail!("the server did not start within a minute");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks the server to end and waits until it has.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the server does not run")?;
        let pid = process.id().context("the server has ended by itself")?;
        Command::new("kill")
            .arg("-TERM")
            .arg(pid.to_string())
            .status()
            .await?;
        timeout(Duration::from_secs(30), process.wait())
            .await
            .context("the server did not end within 30 seconds of SIGTERM")??;
        Ok(())
    }
}
