#!/usr/bin/env bash
# Lets real clients hold a conversation against a server that is started for them.
#
#   tests/clients/run.sh [nio|rust-sdk|js-sdk|browser|all] [homing|synapse] [POSTGRES_URL]
#   tests/clients/run.sh --browser-is-there     says whether what `browser` needs, which is not in `all`, is on this machine
#
# Homing is taken from ${CARGO_TARGET_DIR:-target}/debug. See README.md beside this.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/homing
clients=${1:-all} server=${2:-homing} postgres=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

homing_config() {
    local url=sqlite:$2/data/homing.db
    if [ -n "$postgres" ]; then
        local name=clients_$1
        psql --quiet "$postgres" --command "CREATE DATABASE $name"
        url=${postgres%/*}/$name
    fi
    cat >"$2/homing.toml" <<-TOML
	server_name = "localhost"
	data_dir = "$2/data"

	[[listeners]]
	bind = "127.0.0.1:$1"

	[database]
	url = "$url"

	[registration]
	mode = "open"

	[rate_limits]
	enabled = false
	TOML
}

hold() {
    local client=$1 dir=$work/$1 port
    port=$(free_port)
    mkdir -p "$dir/data"
    case $server in
    homing)
        [ -x "${CARGO_TARGET_DIR:-$root/target}/debug/homing" ] || { echo "run.sh: cargo build comes first" >&2; exit 2; }
        homing_config "$port" "$dir"
        HOMESERVER_COMMAND="${CARGO_TARGET_DIR:-$root/target}/debug/homing serve --config $dir/homing.toml"
        ;;
    synapse) HOMESERVER_COMMAND="$here/synapse.sh $dir $port $postgres" ;;
    *) echo "run.sh: no server $server" >&2; exit 2 ;;
    esac
    export HOMESERVER_COMMAND HOMESERVER_URL=http://127.0.0.1:$port
    "prepare_${client//-/_}"
    echo "$client talks to $server"
    if ! "${conversation[@]}" >"$dir/out" 2>&1; then
        cat "$dir/out"
        echo "run.sh: $client failed against $server" >&2
        return 1
    fi
    if [ "$server" = homing ] && grep ' ERROR \|panicked' "$dir/out"; then
        echo "run.sh: $client was served, but the server logged errors" >&2
        return 1
    fi
    grep '^  [a-z ]*: [0-9]\|conversation was held' "$dir/out"
}

# The preparations set `conversation` to the command that holds it.
prepare_nio() {
    local venv=$cache/nio-venv
    if ! cmp --silent "$here/nio/requirements.txt" "$venv/requirements.txt"; then
        python3 -m venv --clear "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/nio/requirements.txt"
        cp "$here/nio/requirements.txt" "$venv/"
    fi
    conversation=("$venv/bin/python" "$here/nio/conversation.py")
}

prepare_rust_sdk() {
    local target=$cache/clients-target
    CARGO_TARGET_DIR=$target cargo build --quiet --locked --manifest-path "$here/rust-sdk/Cargo.toml"
    conversation=("$target/debug/conversation")
}

# The scripts are run from where the packages are found, not from the clone.
prepare_js_sdk() {
    "$here/install.sh" js-sdk "$work/js-sdk"
    conversation=("$work/js-sdk/node_modules/.bin/node" "$work/js-sdk/conversation.js")
}

prepare_browser() {
    prepare_js_sdk
    "$here/install.sh" browser "$work/browser"
    export CINNY=${CINNY:-$cache/cinny} CHROMIUM=${CHROMIUM:-$(command -v chromium)}
    conversation=("${conversation[0]}" "$work/browser/conversation.js")
}

browser_is_there() {
    [ -e "${CINNY:-$cache/cinny}/index.html" ] && command -v "${CHROMIUM:-chromium}" >/dev/null
}

case $clients in
all) hold nio; hold rust-sdk; hold js-sdk ;;
nio | rust-sdk | js-sdk | browser) hold "$clients" ;;
--browser-is-there) browser_is_there ;;
*) echo "usage: run.sh [nio|rust-sdk|js-sdk|browser|all] [homing|synapse] [POSTGRES_URL]" >&2; exit 2 ;;
esac
