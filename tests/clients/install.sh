#!/usr/bin/env bash
# Puts the scripts of one of the folders here, and the npm packages that they need, into DIR.
#
#   tests/clients/install.sh js-sdk|browser DIR
#
# The packages are installed once, below ~/.cache/homing. matrix-js-sdk wants a newer Node than many systems have, so one
# comes with its packages: `DIR/node_modules/.bin/node`.
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: install.sh js-sdk|browser DIR" >&2; exit 2; }
scripts=$(cd "$(dirname "$0")" && pwd)/$1 dir=$2
packages=${XDG_CACHE_HOME:-$HOME/.cache}/homing/npm-$1

if ! cmp --silent "$scripts/package-lock.json" "$packages/installed"; then
    mkdir -p "$packages"
    cp "$scripts/package.json" "$scripts/package-lock.json" "$packages/"
    npm ci --prefix "$packages" --silent --no-audit --no-fund --ignore-scripts
    cp "$scripts/package-lock.json" "$packages/installed"
fi

mkdir -p "$dir"
cp "$scripts"/*.js "$scripts/package.json" "$dir/"
ln -s "$packages/node_modules" "$dir/node_modules"
