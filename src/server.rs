//! A running server: its start and its end.

use std::{
    fs::{File, TryLockError},
    io::Write as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{Router, middleware};
use homing_federation::{SigningKey, server_keys::OwnKeys};
use http::{HeaderName, Method, header};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, OwnedUserId};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{Any, CorsLayer},
};

use crate::{
    accounts::{self, Erased, NewAccount, Nonces},
    admin,
    app::App,
    application_services::ApplicationServices,
    auth::{Origins, Seen, Sessions},
    bus::Bus,
    client_server,
    clock::Clock,
    config::{Config, Listener},
    early_receipts::EarlyReceipts,
    error::Error,
    federation,
    files::Files,
    filter::Filters,
    http::{Bodies, panicked},
    keys::Stocks,
    lazy_members::LazyMembers,
    listen::{self, Bound},
    log::{Committed, Log, OnCommit},
    media::sweep::sweep,
    names::Names,
    operations, outbound,
    password::Passwords,
    preferences::KnownPreferences,
    presence::{self, Presence},
    rate_limit::Buckets,
    remote::Remote,
    room::{self, membership, receive::staging},
    rooms::Rooms,
    server_keys::{self, ServerKeys},
    server_server,
    staging::Staging,
    storage::{self, Claim, Db},
    telemetry::{Metrics, Queue},
    turns::Turns,
    typing::Typing,
    uiaa::Uiaa,
    upkeep,
    web::{self, Web},
};

/// How many connections read from the database where the configuration does not say.
const DATABASE_CONNECTIONS: u32 = 8;
/// How many sent events are kept in memory to know them when they are sent again.
const CACHED_TXNS: usize = 50_000;
/// How often it is checked that the database is still this server's.
const CLAIM_EVERY: Duration = Duration::from_secs(2);

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("{path}: {error}")]
    Files {
        /// What.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Another server uses the data directory.
    #[error("another server is running on {0}")]
    InUse(String),
    /// The signing key cannot be read.
    #[error("{path}: {error}")]
    SigningKey {
        /// The file.
        path: String,
        /// Why.
        error: homing_federation::Error,
    },
    /// The database cannot be used.
    #[error("cannot use the database {place}: {}", storage::cause(error))]
    Database {
        /// Where it is.
        place: String,
        /// Why.
        error: storage::Error,
    },
    /// The database is that of a server with another name.
    #[error(
        "the database has the account {account}; `server_name` is {name} and can never be changed"
    )]
    OtherName {
        /// One of its accounts.
        account: String,
        /// The name that is configured.
        name: OwnedServerName,
    },
    /// An account cannot be made.
    #[error("{0}")]
    Account(String),
    /// The client for other servers cannot be made.
    #[error(transparent)]
    Federation(#[from] federation::Error),
    /// The client for the web cannot be made.
    #[error(transparent)]
    Web(#[from] web::Unusable),
    /// A listener cannot be opened.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// What the server needs at its start cannot be read or written.
    #[error(transparent)]
    Prepare(#[from] Error),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Its parts.
    pub app: Arc<App>,
    /// Where it listens.
    pub listeners: Vec<Arc<Bound>>,
    /// The registration token of the first administrator, as long as there is none.
    pub first_token: Option<String>,
    tasks: TaskTracker,
    claim: JoinHandle<Option<Claim>>,
    _lock: File,
}

impl Server {
    /// Starts a server. It runs until its `app.shutdown` is cancelled.
    ///
    /// # Errors
    /// If the data directory, the database or a listener cannot be used.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let directory = config.data_dir.clone();
        let files = |error| StartError::Files {
            path: directory.display().to_string(),
            error,
        };
        make_data_dir(&directory)?;
        let lock = File::create(directory.join("homing.lock")).map_err(files)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StartError::InUse(directory.display().to_string()));
            }
            Err(TryLockError::Error(error)) => return Err(files(error)),
        }

        let listeners = listen::bind(&config.listeners).await?;
        let metrics = match config.metrics.bind {
            Some(bind) => {
                let listener = Listener {
                    bind,
                    ..Listener::default()
                };
                Some(listen::bind(&[listener]).await?)
            }
            None => None,
        };
        let app = open(config).await?;
        let claim = app.db.claim().await.map_err(database(&app.config))?;
        let claim = claim.ok_or_else(|| StartError::InUse("this database".to_owned()))?;
        let first_token = accounts::first_token(&app).await?;
        app.files.prepare().map_err(files)?;
        let router = router(&app);
        let tasks = TaskTracker::new();
        tasks.spawn(listen::serve(
            listeners.clone(),
            router,
            app.shutdown.clone(),
        ));
        if let Some(bound) = metrics {
            let metrics = measurements(&app);
            tasks.spawn(listen::serve(bound, metrics, app.shutdown.clone()));
        }
        tasks.spawn(upkeep::run(Arc::clone(&app)));
        tasks.spawn(presence::run(Arc::clone(&app)));
        tasks.spawn(outbound::run(Arc::clone(&app)));
        tasks.spawn(outbound::push::run(Arc::clone(&app)));
        tasks.spawn(server_keys::run(Arc::clone(&app)));
        tasks.spawn(finish(Arc::clone(&app)));
        tasks.close();
        let claim = tokio::spawn(keep_claim(Arc::clone(&app), claim));
        Ok(Self {
            app,
            listeners,
            first_token,
            tasks,
            claim,
            _lock: lock,
        })
    }

    /// Waits until the server has ended: after its `app.shutdown` was cancelled, and all running requests are answered.
    ///
    /// # Errors
    /// If it has ended because another server has taken its database.
    pub async fn ended(self) -> Result<(), StartError> {
        self.tasks.wait().await;
        self.app.db.close().await;
        match self.claim.await {
            Ok(None) => Err(StartError::InUse("this database".to_owned())),
            _ => Ok(()),
        }
    }
}

fn database(config: &Config) -> impl Fn(storage::Error) -> StartError + Copy + use<'_> {
    |error| StartError::Database {
        place: storage::place(&config.database_url()),
        error,
    }
}

/// Opens the database and puts the parts together, without listening.
///
/// # Errors
/// If the data directory or the database cannot be used, or the database is that of a server with another name.
pub async fn open(config: Config) -> Result<Arc<App>, StartError> {
    let opening = wait_for_turn(&config.data_dir.join("homing.opening"))?;
    let own_keys = own_keys(&config.data_dir.join("signing.key"))?;
    let signing_key = own_keys.signing.first().map(Arc::clone);
    let signing_key = signing_key.ok_or_else(|| Error::internal("there is no key to sign with"))?;
    let federation = federation::client(&config, Arc::clone(&signing_key))?;
    let web = Web::new(&config)?;
    let push_gateways = federation::push_gateways(&config)?;
    let connections = config
        .database
        .max_connections
        .unwrap_or(DATABASE_CONNECTIONS);
    let metrics = Arc::new(Metrics::new());
    let url = config.database_url();
    let db = Db::open(&url, connections, Arc::clone(&metrics))
        .await
        .map_err(database(&config))?;
    drop(opening);
    expect_name(&db, &config).await?;
    let (rooms, bus) = (Arc::new(Rooms::default()), Arc::new(Bus::default()));
    let log = Log::start(
        &db,
        on_commit(Arc::clone(&rooms), Arc::clone(&bus), Arc::clone(&metrics)),
    )
    .await
    .map_err(database(&config))?;
    bus.start_at(log.head());
    let services = ApplicationServices::new(&config)?;
    let erased = Erased::new(
        storage::accounts::erased(&db)
            .await
            .map_err(database(&config))?,
    );
    Ok(Arc::new(App {
        server_name: config.server_name.clone(),
        files: Files::new(&config.data_dir),
        config,
        db,
        log,
        names: Names::default(),
        rooms,
        bus,
        txns: Cache::new(CACHED_TXNS),
        bodies: Bodies::default(),
        sessions: Sessions::default(),
        key_stocks: Stocks::default(),
        remote_lists: Turns::default(),
        lazy_members: LazyMembers::default(),
        filters: Filters::default(),
        preferences: KnownPreferences::default(),
        typing: Typing::default(),
        presence: Presence::default(),
        seen: Seen::default(),
        early_receipts: EarlyReceipts::default(),
        staging: Staging::default(),
        transactions: Turns::default(),
        key_backups: Turns::default(),
        dehydrated_devices: Turns::default(),
        passwords: Passwords::default(),
        buckets: Buckets::default(),
        nonces: Nonces::default(),
        services,
        erased,
        uiaa: Uiaa::default(),
        remote: Remote::default(),
        web,
        signing_key,
        own_keys,
        server_keys: ServerKeys::default(),
        origins: Origins::default(),
        server_bodies: Bodies::default(),
        federation,
        push_gateways,
        clock: Clock::default(),
        metrics,
        shutdown: CancellationToken::new(),
    }))
}

/// Of several processes that start at once, one after the other makes the signing key and migrates the database.
fn wait_for_turn(path: &Path) -> Result<File, StartError> {
    let lock = File::create(path).and_then(|file| file.lock().map(|()| file));
    lock.map_err(|error| StartError::Files {
        path: path.display().to_string(),
        error,
    })
}

/// Checks that the accounts in the database are those of this server: their names are signed into every event.
async fn expect_name(db: &Db, config: &Config) -> Result<(), StartError> {
    let any = storage::accounts::any_user_id(db).await;
    let Some(account) = any.map_err(database(config))? else {
        return Ok(());
    };
    let name = config.server_name.clone();
    if account.split_once(':').is_some_and(|(_, own)| own == name) {
        return Ok(());
    }
    Err(StartError::OtherName { account, name })
}

/// Makes an account, also beside a running server. The `name` may also be given as the whole user id; `password` is
/// called when it is known that the name can be used.
///
/// # Errors
/// If the name or the password cannot be used, the name is taken, or the database cannot be used.
pub async fn create_user<E: From<StartError>>(
    config: Config,
    name: &str,
    is_admin: bool,
    password: impl FnOnce() -> Result<String, E>,
) -> Result<OwnedUserId, E> {
    make_data_dir(&config.data_dir)?;
    let app = open(config).await?;
    let localpart = name
        .strip_prefix('@')
        .and_then(|id| id.strip_suffix(app.name().as_str())?.strip_suffix(':'))
        .unwrap_or(name);
    let user_id = accounts::new_user_id(&app, localpart).map_err(refused)?;
    let free = accounts::expect_free(&app, &user_id).await;
    free.map_err(refused)?;
    let hash = app.passwords.hash(password()?).await.map_err(refused)?;
    let new = NewAccount {
        password_hash: Some(hash),
        is_admin,
        ..NewAccount::new(&user_id)
    };
    accounts::create(&app, new).await.map_err(refused)?;
    app.db.close().await;
    Ok(user_id)
}

/// What a client would be told with a status and a code is told with words alone.
fn refused(error: Error) -> StartError {
    match error {
        Error::Matrix { message, .. } => StartError::Account(message),
        error => StartError::Prepare(error),
    }
}

/// Makes the data directory, for the eyes of this user of the system only.
fn make_data_dir(path: &Path) -> Result<(), StartError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|error| StartError::Files {
        path: path.display().to_string(),
        error,
    })
}

/// Sees to it that no other server takes the database meanwhile. If one has, this one stops: each would give away ids
/// that the other gives too. Answers the claim when the server is to stop, since running requests still need it.
async fn keep_claim(app: Arc<App>, mut claim: Claim) -> Option<Claim> {
    while app
        .shutdown
        .run_until_cancelled(tokio::time::sleep(CLAIM_EVERY))
        .await
        .is_some()
    {
        match claim.renew(&app.db).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!("another server uses the database now; stopping");
                app.shutdown.cancel();
                return None;
            }
            Err(error) => tracing::warn!(%error, "cannot claim the database again"),
        }
    }
    Some(claim)
}

fn on_commit(rooms: Arc<Rooms>, bus: Arc<Bus>, metrics: Arc<Metrics>) -> OnCommit {
    Box::new(move |committed: Committed| {
        #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
        metrics.commit_batch.observe(committed.changes.len() as f64);
        metrics
            .commit_duration
            .observe(committed.took.as_secs_f64());
        bus.apply(&rooms, committed)
    })
}

/// All that is answered, with what goes around every answer.
fn router(app: &Arc<App>) -> Router {
    let health = {
        let app = Arc::clone(app);
        operations::health(move || {
            let app = Arc::clone(&app);
            async move {
                storage::commits::head(&app.db)
                    .await
                    .map_err(|error| error.to_string())?;
                if app.log.is_failing() {
                    return Err("the last change could not be written".to_owned());
                }
                Ok(())
            }
        })
    };
    let mut routes = client_server::routes().merge(admin::routes());
    if app.config.federation.enabled {
        routes = routes.merge(server_server::routes());
    }
    let router = routes.into_router(Arc::clone(app)).merge(health);
    around(router, &app.metrics)
}

/// What goes around every answer: a panic becomes a failure of that request alone, then everything is measured, and
/// browsers may read it all.
fn around(router: Router, metrics: &Arc<Metrics>) -> Router {
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(
            Arc::clone(metrics),
            operations::measure,
        ))
        .layer(cors())
}

/// What is measured, for the listener that is only for this.
fn measurements(app: &Arc<App>) -> Router {
    let queue = |queue| Queue { queue };
    let known = Arc::clone(app);
    operations::metrics(Arc::clone(&app.metrics), move |metrics| {
        for (name, length) in [("log", known.log.waiting()), ("feeds", known.bus.feeds())] {
            let length = i64::try_from(length).unwrap_or(i64::MAX);
            metrics.queue_length.get_or_create(&queue(name)).set(length);
        }
    })
}

/// "Web Browser Clients": any page may ask, with any of the methods and headers that the API uses.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::DELETE,
            Method::OPTIONS,
        ])
        .allow_headers([
            HeaderName::from_static("x-requested-with"),
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
            header::DATE,
        ])
        .expose_headers([header::RETRY_AFTER])
        .max_age(Duration::from_hours(24))
}

/// Reads the keys of this server, and makes one at the first start.
fn own_keys(path: &Path) -> Result<OwnKeys, StartError> {
    let name = path.display().to_string();
    let files = |error| StartError::Files {
        path: name.clone(),
        error,
    };
    if !path.exists() {
        let key = SigningKey::generate(&mut rand::rng());
        // Written beside and renamed, so that a crash never leaves half a key.
        let draft = path.with_extension("key.new");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&draft).map_err(files)?;
        file.write_all(key.to_file_line().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(files)?;
        std::fs::rename(&draft, path).map_err(files)?;
    }
    let text = std::fs::read_to_string(path).map_err(files)?;
    OwnKeys::parse(&text).map_err(|error| StartError::SigningKey { path: name, error })
}

/// Finishes what the end of the last run has cut off.
async fn finish(app: Arc<App>) {
    let work = async {
        if let Err(error) = room::remote::clear_unfinished(&app).await {
            tracing::error!(%error, "joins that were cut off have left something behind");
        }
        if let Err(error) = staging::resume(&app).await {
            tracing::error!(%error, "events that wait cannot be gone on with");
        }
        if let Err(error) = membership::finish_deactivations(&app).await {
            tracing::error!(%error, "deactivated users are still in rooms; the next start tries again");
        }
        if let Err(error) = sweep(&app).await {
            tracing::error!(%error, "cannot look for files that belong to nothing");
        }
    };
    app.shutdown.run_until_cancelled(work).await;
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, extract::Request, routing::get};
    use http::StatusCode;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::telemetry;

    async fn broken() -> &'static str {
        panic!("on purpose")
    }

    #[tokio::test]
    async fn a_panic_fails_its_request_alone() {
        let metrics = Arc::new(Metrics::new());
        let router = Router::new().route("/broken", get(broken));
        let router = around(router, &metrics);
        let request = Request::get("/broken").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errcode"], "M_UNKNOWN");
        assert!(!body.to_string().contains("purpose"), "{body}");
        assert_eq!(telemetry::failures(&metrics).len(), 1);
    }
}
