#!/usr/bin/env bash
# Runs Complement, the conformance suite of the Matrix ecosystem, against Homing, and compares with `passing.txt`.
#
#   tests/complement/run.sh [--add] [tests|csapi|all] [REGEX]
#   tests/complement/run.sh --there     says whether what it needs is on this machine
#
# A test of the list that does not pass fails the run; passing tests that are not in the list are named, and
# written into it with --add. REGEX picks tests by the name of the outermost, as in `^TestLogin$`. A test of `races.txt`
# is run again if it fails, at most twice.
#
# Nothing of Complement is kept or built here. COMPLEMENT (~/.cache/homing/complement) is a folder with its source, the
# test binaries `tests.test` and `csapi.test`, and, in `engine`, what starts the servers without Docker: README.md
# beside this. Homing is taken from ${CARGO_TARGET_DIR:-target}/debug, or HOMING. The servers' logs and the
# suite's output are left in OUT (~/.cache/homing/complement-out).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/homing
suite=${COMPLEMENT:-$cache/complement}
out=${OUT:-$cache/complement-out}
list=$here/passing.txt
add='' there=''
case ${1:-} in
--add) add=1; shift ;;
--there) there=1; shift ;;
esac
packages=${1:-all} regex=${2:-.}
case $packages in
all) packages="csapi tests" ;;
tests | csapi) ;;
*) echo "usage: run.sh [--add] [tests|csapi|all] [REGEX]" >&2; exit 2 ;;
esac

for needed in "$suite/engine/isolated.sh" "$suite/tests.test" "$suite/csapi.test"; do
    [ -e "$needed" ] || { echo "run.sh: there is no $needed" >&2; exit 2; }
done
[ -z "$there" ] || exit 0
homing=${HOMING:-${CARGO_TARGET_DIR:-$root/target}/debug/homing}
[ -x "$homing" ] || { echo "run.sh: cargo build comes first" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$homing" "$work/homing" # a build that runs meanwhile would take it away
touch "$work/listed" "$work/passed"

# run PACKAGE REGEX LOGS: the tests of a package that REGEX picks, their outcomes as lines "PACKAGE OUTCOME TEST".
run() {
    local package=$1 regex=$2 logs=$3 started=$SECONDS folder=tests
    [ "$package" = tests ] || folder=tests/$package
    rm -rf "$logs" "${work:?}/$package"
    mkdir -p "$logs" "$work/$package"
    WORK=$work/$package SHIM_LOG=$logs/engine SHIM_ARGS="--keep-logs $logs/servers" \
        "$suite/engine/isolated.sh" "homing=$here/start.sh" -- \
        env COMPLEMENT_BASE_IMAGE=homing COMPLEMENT_ENABLE_DIRTY_RUNS=1 COMPLEMENT_SHARE_ENV_PREFIX=PASS_ \
        PASS_HOMING="$work/homing" ${LOG_FILTER:+PASS_LOG_FILTER="$LOG_FILTER"} \
        "$suite/engine/run-package.sh" "$suite/$package.test" "$suite/$folder" "$regex" >"$logs/output" 2>&1 || true
    sed -nE "s/^.*--- (PASS|FAIL|SKIP): (.*) \([0-9.]+s\)$/$package \1 \2/p" "$logs/output" | sort -u >"$logs/outcomes"
    echo "$package: $(count PASS) pass, $(count FAIL) fail, $(count SKIP) are skipped; $((SECONDS - started)) s"
    if ! grep -q '^\(PASS\|FAIL\)$' "$logs/output"; then
        tail -n 40 "$logs/output" "$logs/engine"
        echo "run.sh: $package did not end by itself" >&2
        exit 1
    fi
}

# The outermost tests of a package with one outcome.
count() {
    awk -v outcome="$1" '$2 == outcome && $3 !~ "/"' "$logs/outcomes" | wc -l
}

# What passed of a run, by its logs.
passed() {
    sed -n 's/ PASS / /p' "$1/outcomes"
}

# The lines of one file that are not in another.
missing() {
    comm -23 <(sort -u "$1") <(sort -u "$2")
}

export LC_ALL=C
for package in $packages; do
    run "$package" "$regex" "$out/$package"
    passed "$out/$package" >>"$work/passed"
    # A regular expression is of the outermost test's name alone.
    awk -v package="$package" -v regex="$regex" \
        '$1 == package { name = $2; sub("/.*", "", name); if (name ~ regex) print }' "$list" >>"$work/listed"
done

for _ in 1 2; do
    missing "$work/listed" "$work/passed" >"$work/lost"
    { grep -Fx -f "$work/lost" "$here/races.txt" || true; } >"$work/again"
    while read -r package test; do
        echo "again: $package $test"
        run "$package" "^${test%%/*}\$" "$out/again" </dev/null
        passed "$out/again" | { grep -Fx "$package $test" || true; } >>"$work/passed"
    done <"$work/again"
done

new=$(missing "$work/passed" "$work/listed")
lost=$(missing "$work/listed" "$work/passed")
if [ -n "$new" ] && [ -n "$add" ]; then
    sort -u -o "$list" "$list" - <<<"$new"
    echo "$(wc -l <<<"$new") more are in the list now"
elif [ -n "$new" ]; then
    echo "$(wc -l <<<"$new") pass that are not in the list"
fi
if [ -n "$lost" ]; then
    echo "$lost"
    echo "run.sh: these $(wc -l <<<"$lost") are in the list and do not pass; see $out" >&2
    exit 1
fi
