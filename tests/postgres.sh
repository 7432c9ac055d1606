#!/usr/bin/env bash
# A throw-away PostgreSQL for tests and benchmarks, on a free loopback port.
#
#   tests/postgres.sh start [DIR]   starts one and prints its URL: export TEST_POSTGRES=$(tests/postgres.sh start)
#   tests/postgres.sh url [DIR]     prints the URL of the running one
#   tests/postgres.sh pid [DIR]     prints the process id of the running one
#   tests/postgres.sh stop [DIR]    stops it and deletes its data
#
# DIR is /tmp/homing-postgres-UID where it is not given. Durability settings (fsync,
# synchronous_commit) are PostgreSQL's own: the crash tests depend on them. PostgreSQL refuses to
# run as root, so root runs it as the user `postgres` (or as `nobody` where there is none).
set -euo pipefail

command=${1:-}
dir=${2:-/tmp/homing-postgres-$(id -u)}
data=$dir/data

die() {
    echo "postgres.sh: $*" >&2
    exit 1
}

# Debian keeps the server's programs out of PATH, below the version's folder.
find_bin() {
    local found
    found=$(find /usr/lib/postgresql /usr/pgsql-* /opt/homebrew/opt/postgresql* \
        -name initdb 2>/dev/null | sort -V | tail -n 1) || true
    [ -n "$found" ] || found=$(command -v initdb) || die "no initdb: install the package postgresql"
    dirname "$(readlink -f "$found")"
}

# Runs a program as a user that PostgreSQL accepts.
unprivileged() {
    if [ "$(id -u)" -ne 0 ]; then
        "$@"
    else
        (cd / && setpriv --reuid="$owner" --regid="$(id -g "$owner")" --clear-groups "$@")
    fi
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

running() {
    [ -s "$data/postmaster.pid" ] && unprivileged "$bin/pg_ctl" --pgdata="$data" status >/dev/null
}

start() {
    if running; then
        cat "$dir/url"
        return
    fi
    rm -rf "$dir"
    mkdir -p "$dir"
    if [ "$(id -u)" -eq 0 ]; then
        chown "$owner" "$dir"
    fi
    unprivileged "$bin/initdb" --pgdata="$data" --username=homing --auth=trust \
        --encoding=UTF8 --locale=C --no-instructions >"$dir/initdb.log" 2>&1 ||
        { cat "$dir/initdb.log" >&2; die "initdb failed"; }
    local port
    port=$(free_port)
    # Each test has a database and a pool of its own, hence the many connections.
    cat >>"$data/postgresql.conf" <<-CONF
	listen_addresses = '127.0.0.1'
	port = $port
	unix_socket_directories = ''
	max_connections = ${POSTGRES_MAX_CONNECTIONS:-500}
	CONF
    unprivileged "$bin/pg_ctl" --pgdata="$data" --log="$data/server.log" --wait --timeout=60 start \
        >"$dir/start.log" 2>&1 </dev/null ||
        { cat "$data/server.log" "$dir/start.log" >&2; die "the server did not start"; }
    echo "postgres://homing@127.0.0.1:$port/postgres" >"$dir/url"
    cat "$dir/url"
}

stop() {
    if running; then
        unprivileged "$bin/pg_ctl" --pgdata="$data" --mode=immediate --wait stop >/dev/null
    fi
    rm -rf "$dir"
}

bin=$(find_bin)
owner=postgres
id "$owner" >/dev/null 2>&1 || owner=nobody

case $command in
start) start ;;
stop) stop ;;
url) running && cat "$dir/url" ;;
pid) running && head -n 1 "$data/postmaster.pid" ;;
*) die "usage: postgres.sh start|stop|url|pid [DIR]" ;;
esac
