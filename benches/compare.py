#!/usr/bin/env python3
"""Runs the load generator against Homing and Synapse, on SQLite and on PostgreSQL.

The servers take turns, scenario by scenario, in one session on one machine, so that whatever else
the machine does falls on all of them. Prints Markdown tables. The figures to compare are the CPU
seconds (PostgreSQL's included): they depend least on what else runs.

Needs the release builds of Homing and of `benches/load`, and what `tests/postgres.sh` and
`tests/clients/synapse.sh` need.
"""

import argparse
import json
import os
import pathlib
import resource
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "homing"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

# Scenario: how many times cheaper than Synapse on SQLite we expect to be, in CPU time. Beside our own
# goals for dm_send, keys_claim and to_device these are the ratios of Tuwunel 1.4.6, which never syncs to disk.
GOALS = {
    "dm_send": 20.0,
    "dm_latency": 8.8,
    "room_fanout": 6.6,
    "sync_initial": 4.4,
    "sync_idle": 10.2,
    "messages_walk": 7.4,
    "register": 8.3,
    "login": 8.8,
    "create_room": 9.1,
    "state_send": 25.2,
    "people": 14.7,
    "large_room_join": 2.3,
    "keys_claim": 20.0,
    "to_device": 20.0,
}
MEMORY_GOALS = {"memory_idle": 40, "memory_sleeping": 300}
DEFAULT = [
    "memory_idle",
    "dm_send",
    "dm_latency",
    "room_fanout",
    "sync_initial",
    "sync_idle",
    "messages_walk",
    "create_room",
    "state_send",
    "people",
    "large_room_join",
    "keys_claim",
    "to_device",
    "memory_sleeping",
]
# Hashing passwords is meant to be expensive; these measure nothing else.
HASHING = {"register", "login"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A homeserver with a folder, and perhaps a PostgreSQL, of its own."""

    def __init__(self, name, folder, arguments):
        self.name = name
        self.kind, self.database = name.split("-")
        self.folder = folder / name
        self.folder.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.postgres = self.postgres_url = None
        if self.database == "postgres":
            self.postgres = str(self.folder / "postgres")
            self.postgres_url = self.run_postgres("start")
        if self.kind == "homing":
            self.command = [str(arguments.homing), "serve", "--config", str(self.homing_config())]
        else:
            self.command = [str(ROOT / "tests/clients/synapse.sh"), str(self.folder), str(self.port)]
            if self.postgres_url:
                self.command.append(self.postgres_url)
        self.environment = dict(os.environ)
        if not HASHING & set(arguments.scenarios):
            # Else preparing thousands of accounts takes longer than all that is measured.
            self.environment["SYNAPSE_BCRYPT_ROUNDS"] = "4"

    def run_postgres(self, what):
        return subprocess.check_output([ROOT / "tests/postgres.sh", what, self.postgres], text=True).strip()

    def homing_config(self):
        database = f"sqlite:{self.folder}/data/homing.db"
        if self.postgres_url:
            subprocess.check_call(["psql", "--quiet", self.postgres_url, "--command", "CREATE DATABASE homing"])
            database = self.postgres_url.rsplit("/", 1)[0] + "/homing"
        (self.folder / "data").mkdir()
        path = self.folder / "homing.toml"
        path.write_text(
            f"""server_name = "localhost"
data_dir = "{self.folder}/data"

[[listeners]]
bind = "127.0.0.1:{self.port}"

[database]
url = "{database}"

[registration]
mode = "open"

[rate_limits]
enabled = false
"""
        )
        return path

    def start(self):
        with open(self.folder / "output.log", "ab") as output:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment
            )
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"{self.url}/_matrix/client/versions", timeout=5):
                    return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        sys.exit(f"{self.name} did not start: see {self.folder}/output.log")

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)
            self.process = None

    def remove(self):
        self.stop()
        if self.postgres:
            self.run_postgres("stop")

    def pids(self):
        pids = [str(self.process.pid)]
        if self.postgres:
            pids.append(self.run_postgres("pid"))
        return ",".join(pids)

    def measure(self, scenario, arguments):
        """The result of one run; none if it failed."""
        if scenario in MEMORY_GOALS:
            # Not what earlier scenarios have left in the caches, but what this one takes.
            self.stop()
            self.start()
        command = [
            str(arguments.load), scenario, "--url", self.url, "--name", self.name, "--pid", self.pids(),
            "--state", str(self.folder / "load.json"), "--seconds", str(arguments.seconds),
            *shlex.split(arguments.options),
        ]  # fmt: skip
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode != 0 or not run.stdout.strip():
            print(f"{self.name}: {scenario} failed", file=sys.stderr)
            return None
        result = json.loads(run.stdout)
        if result["errors"]:
            print(f"{self.name}: {scenario}: {result['errors']} errors", file=sys.stderr)
        if result.get("missed_in_a_walk"):
            print(f"{self.name}: {result['missed_in_a_walk']} messages are missing in a walk", file=sys.stderr)
        return result


class Results:
    def __init__(self):
        self.runs = {}

    def add(self, server, scenario, result):
        self.runs.setdefault((server, scenario), []).append(result)

    def median(self, server, scenario, field):
        values = [run[field] for run in self.runs.get((server, scenario), []) if field in run]
        return statistics.median(values) if values else None


def shown(number):
    if number is None:
        return "–"
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def ratio(above, below):
    return f"{above / below:.1f}" if above and below else "–"


def table(title, head, rows):
    print(f"\n{title}\n")
    print("| " + " | ".join(head) + " |")
    print("|---" + "|--:" * (len(head) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def report(results, servers, scenarios):
    timed = [scenario for scenario in scenarios if scenario in GOALS]
    pairs = [(f"homing-{d}", f"synapse-{d}", d) for d in ("sqlite", "postgres")]
    pairs = [pair for pair in pairs if pair[0] in servers and pair[1] in servers]

    def rows(field, better):
        for scenario in timed:
            values = {server: results.median(server, scenario, field) for server in servers}
            cells = [scenario, *(shown(values[server]) for server in servers)]
            for ours, theirs, _ in pairs:
                more, less = (theirs, ours) if better == "less" else (ours, theirs)
                cells.append(ratio(values[more], values[less]))
            yield cells

    gains = [f"gain on {database}" for _, _, database in pairs]
    cpu = [[*row, shown(GOALS[row[0]])] for row in rows("cpu_ms_per_operation", "less")]
    table("CPU milliseconds per operation, the database's included", ["scenario", *servers, *gains, "goal on sqlite"], cpu)
    table("Operations per second", ["scenario", *servers, *gains], rows("per_second", "more"))
    table("Median latency in milliseconds", ["scenario", *servers, *gains], rows("p50_ms", "less"))
    table(
        "Resident memory in megabytes, the database's not included",
        ["scenario", *servers, "goal"],
        [
            [scenario, *(shown(results.median(server, scenario, "rss_mb")) for server in servers), str(goal)]
            for scenario, goal in MEMORY_GOALS.items()
            if scenario in scenarios
        ],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=DEFAULT, help="as the load generator names them")
    parser.add_argument(
        "--servers",
        default="homing-sqlite,homing-postgres,synapse-sqlite,synapse-postgres",
        help="which of them, separated by commas",
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of each scenario; the medians are shown")
    parser.add_argument("--seconds", type=int, default=10, help="length of a scenario that measures a rate")
    parser.add_argument("--options", default="", help="further options of the load generator, in one argument")
    parser.add_argument("--homing", type=pathlib.Path, default=TARGET / "release/homing")
    parser.add_argument("--load", type=pathlib.Path, default=CACHE / "clients-target/release/load")
    parser.add_argument("--results", type=pathlib.Path, help="a file that gets the JSON line of every run")
    arguments = parser.parse_args()

    # Thousands of sleeping syncs are as many connections, on both sides.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    folder = pathlib.Path(tempfile.mkdtemp(prefix="homing-compare-"))
    folder.chmod(0o711)  # PostgreSQL runs as another user below it
    servers, results = [], Results()
    try:
        for name in arguments.servers.split(","):
            servers.append(Server(name, folder, arguments))
            servers[-1].start()
        for scenario in arguments.scenarios:
            # Memory is taken once: it is the same every time.
            for _ in range(1 if scenario in MEMORY_GOALS else arguments.repeat):
                for server in servers:
                    result = server.measure(scenario, arguments)
                    if result:
                        results.add(server.name, scenario, result)
                        if arguments.results:
                            with open(arguments.results, "a", encoding="utf-8") as file:
                                file.write(json.dumps(result) + "\n")
    finally:
        for server in servers:
            server.remove()
    shutil.rmtree(folder)
    report(results, [server.name for server in servers], arguments.scenarios)


if __name__ == "__main__":
    main()
