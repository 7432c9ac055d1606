//! The command line.

use std::{
    env,
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, Subcommand};
use homing::{
    Server,
    announcement::announce,
    config::{self, Config, LogFormat},
    create_user, federation,
    listen::{self, Bound},
    storage, telemetry,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The system's allocator keeps what password hashing has used; this one gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Homing, a Matrix homeserver. Without a command, it serves.
#[derive(Parser)]
#[command(version, max_term_width = 80)]
struct Arguments {
    /// The configuration file; every setting has a default
    #[arg(short, long, global = true, value_name = "FILE", env = config::CONFIG_VARIABLE)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    Serve,
    /// Say whether the settings can be used
    CheckConfig,
    /// Print a commented configuration file
    GenerateConfig,
    /// Make an account
    ///
    /// Asks for the password, or reads it from standard input if that is not a
    /// terminal.
    CreateUser {
        /// The part of the user id between "@" and ":"
        name: String,
        /// Make the account an administrator
        #[arg(long)]
        admin: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("homing: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let command = arguments.command.unwrap_or(Command::Serve);
    if let Command::GenerateConfig = command {
        print!("{}", config::EXAMPLE);
        return Ok(ExitCode::SUCCESS);
    }
    let config = config::load(arguments.config.as_deref(), env::vars_os())?;
    match command {
        Command::Serve => {
            let command = own_command(arguments.config.as_deref());
            return runtime()?.block_on(serve(config, &command));
        }
        Command::CheckConfig => {
            listen::check(&config.listeners)?;
            federation::authorities(&config)?;
            storage::check_url(&config.database_url())
                .map_err(|error| format!("`database.url` cannot be used: {error}"))?;
            println!("The settings can be used.");
        }
        Command::CreateUser { name, admin } => {
            let place = storage::place(&config.database_url());
            let made = create_user(config, &name, admin, read_password);
            let user_id = runtime()?.block_on(made)?;
            println!("There is an account {user_id} now, in {place}.");
        }
        Command::GenerateConfig => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// How this program is run with the same settings, as a person would type it.
fn own_command(config: Option<&Path>) -> String {
    let name = env::args_os().next().unwrap_or_else(|| "homing".into());
    let name = name.display();
    match config {
        Some(file) => format!("{name} --config {}", file.display()),
        None => name.to_string(),
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}

/// Starts the log, and then the server. Who has every line of the log as JSON gets the cause of a failure so too.
async fn serve(config: Config, command: &str) -> Result<ExitCode, Failure> {
    let signals = Signals::new()?;
    telemetry::start_logging(&config.logging)?;
    let is_json = config.logging.format == LogFormat::Json;
    match serve_until_told(config, command, signals).await {
        Err(error) if is_json => {
            tracing::error!(%error, "cannot serve");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

/// Runs the server until it is told to stop.
async fn serve_until_told(config: Config, command: &str, signals: Signals) -> Result<(), Failure> {
    // Each connection takes a file descriptor, and many systems allow 1,024
    // unless a process asks for more.
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) => tracing::debug!(files, "may open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }

    let server = Server::start(config).await?;
    let urls: Vec<_> = server.listeners.iter().map(|bound| bound.url()).collect();
    let first_token = server.first_token.as_deref();
    let announcement = announce(&server.app.config, &urls, first_token, command);
    let mut output = io::stdout();
    let told = output.write_all(announcement.as_bytes());
    if let Err(error) = told.and_then(|()| output.flush()) {
        tracing::warn!(%error, "nobody reads what the server says at its start");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        server_name = %server.app.config.server_name,
        listeners = urls.join(" "),
        "serving"
    );

    tokio::spawn(signals.obey(server.app.shutdown.clone(), server.listeners.clone()));
    server.ended().await?;
    tracing::info!("stopped");
    Ok(())
}

/// The signals that a process with a terminal or a supervisor gets. They are
/// caught from the start, also because the kernel drops those that a process 1
/// does not catch.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The first SIGTERM or SIGINT stops the server in good order, the second
    /// one at once. SIGHUP reads the certificates again.
    async fn obey(mut self, shutdown: CancellationToken, listeners: Vec<Arc<Bound>>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hang_up.recv() => {
                    reload(&listeners);
                    continue;
                }
            }
            if shutdown.is_cancelled() {
                tracing::warn!("stopping without waiting");
                std::process::exit(1);
            }
            tracing::info!("stopping");
            shutdown.cancel();
        }
    }
}

fn reload(listeners: &[Arc<Bound>]) {
    for bound in listeners {
        match bound.reload() {
            Ok(()) => tracing::info!(address = %bound.address(), "read the certificate again"),
            Err(error) => tracing::error!(%error, "kept the old certificate"),
        }
    }
}

/// Asks for a password twice, or takes the first line of standard input.
fn read_password() -> Result<String, Failure> {
    let password = if io::stdin().is_terminal() {
        let password = rpassword::prompt_password("Password: ")?;
        if password != rpassword::prompt_password("Once more: ")? {
            return Err("the passwords differ".into());
        }
        password
    } else {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        line.trim_end_matches(['\n', '\r']).to_owned()
    };
    if password.is_empty() {
        return Err("the password is empty".into());
    }
    Ok(password)
}
