#!/usr/bin/env bash
# Runs a Synapse in the foreground: open registration, presence, no rate limits, no federation.
#
#   tests/clients/synapse.sh DIR PORT [POSTGRES_URL]
#
# DIR keeps its configuration and, without POSTGRES_URL, its SQLite database, so a second start
# continues with the same data. With POSTGRES_URL (as tests/postgres.sh prints it) Synapse gets a
# database of its own on that server, named after PORT. The Python environment is made once, below
# ~/.cache/homing; SYNAPSE_VENV names another one. SYNAPSE_BCRYPT_ROUNDS makes accounts cheaper than
# the usual 12. SYNAPSE_OVERRIDES is a YAML file whose settings win over those below.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: synapse.sh DIR PORT [POSTGRES_URL]" >&2; exit 2; }
dir=$1 port=$2 postgres=${3:-}
venv=${SYNAPSE_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/homing/synapse-venv}

if [ ! -e "$venv/ready" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check matrix-synapse psycopg2-binary
    touch "$venv/ready"
fi

config=(--config-path "$dir/homeserver.yaml")
[ -z "${SYNAPSE_OVERRIDES:-}" ] || config+=(--config-path "$SYNAPSE_OVERRIDES")

if [ ! -e "$dir/homeserver.yaml" ]; then
    mkdir -p "$dir"
    database="{name: sqlite3, args: {database: $dir/homeserver.db}}"
    if [ -n "$postgres" ]; then
        # Synapse wants the collation C, which template0 lets it have.
        "$venv/bin/python" - "$postgres" "synapse_$port" <<-'PYTHON'
	import sys, psycopg2
	connection = psycopg2.connect(sys.argv[1])
	connection.autocommit = True
	cursor = connection.cursor()
	cursor.execute(f"DROP DATABASE IF EXISTS {sys.argv[2]}")
	cursor.execute(f"CREATE DATABASE {sys.argv[2]} LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
	PYTHON
        database="{name: psycopg2, args: {dsn: '${postgres%/*}/synapse_$port', cp_min: 5, cp_max: 10}}"
    fi
    cat >"$dir/homeserver.yaml" <<-YAML
	server_name: localhost
	pid_file: $dir/homeserver.pid
	signing_key_path: $dir/signing.key
	media_store_path: $dir/media
	log_config: $dir/log.yaml
	report_stats: false
	macaroon_secret_key: conversation
	bcrypt_rounds: ${SYNAPSE_BCRYPT_ROUNDS:-12}
	database: $database
	listeners:
	  - {port: $port, bind_addresses: [127.0.0.1], type: http, tls: false, resources: [{names: [client]}]}
	enable_registration: true
	enable_registration_without_verification: true
	presence: {enabled: true}
	experimental_features: {msc3814_enabled: true}
	federation_domain_whitelist: []
	trusted_key_servers: []
	suppress_key_server_warning: true
	YAML
    cat >>"$dir/homeserver.yaml" <<-'YAML'
	rc_message: &unlimited {per_second: 100000, burst_count: 100000}
	rc_registration: *unlimited
	rc_registration_token_validity: *unlimited
	rc_login: {address: *unlimited, account: *unlimited, failed_attempts: *unlimited}
	rc_admin_redaction: *unlimited
	rc_joins: {local: *unlimited, remote: *unlimited}
	rc_joins_per_room: *unlimited
	rc_invites: {per_room: *unlimited, per_user: *unlimited, per_issuer: *unlimited}
	rc_presence: {per_user: *unlimited}
	rc_room_creation: *unlimited
	YAML
    cat >"$dir/log.yaml" <<-YAML
	version: 1
	formatters: {plain: {format: '%(asctime)s %(levelname)s %(name)s %(message)s'}}
	handlers: {file: {class: logging.FileHandler, formatter: plain, filename: $dir/homeserver.log}}
	root: {level: WARNING, handlers: [file]}
	YAML
    "$venv/bin/python" -m synapse.app.homeserver "${config[@]}" --generate-keys 2>/dev/null
fi

cd "$dir"
exec "$venv/bin/python" -m synapse.app.homeserver "${config[@]}"
