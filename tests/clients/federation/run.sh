#!/usr/bin/env bash
# Lets a Homing and a Synapse hold a conversation with each other, over TLS on loopback.
#
#   tests/clients/federation/run.sh [--postgres URL] [--keep] [CHECK…]
#   tests/clients/federation/run.sh --synapse [CHECK…]     two Synapses: is it the check or the server?
#
# Homing is taken from ${CARGO_TARGET_DIR:-target}/debug. See README.md in the folder above.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
homing=${CARGO_TARGET_DIR:-$root/target}/debug/homing
if [ "${1:-}" = --synapse ]; then
    homing=synapse
    shift
elif [ ! -x "$homing" ]; then
    echo "run.sh: cargo build comes first" >&2
    exit 2
fi
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/conversation.py" "$homing" "$@"
