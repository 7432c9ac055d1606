#!/usr/bin/env python3
"""Measures how a homeserver federates: Homing beside Synapse, in one session on one machine.

    ~/.cache/homing/synapse-venv/bin/python benches/federation.py

The interpreter is that of Synapse's virtual environment (`tests/clients/synapse.sh` makes it), for its signing. The other
servers are played by this script, over TLS on loopback (`played.py`). What they send is signed before the clock starts, but they
run on the same machine: where `CPU seconds of this script` come near to the time that a scenario took, it is the limit, not
the server. Each scenario begins with a new server on an empty database, which has come to rest; the servers take turns.

- `receive`: a played server hosts 100 rooms, each with a user of the measured server in it, and sends 5,000 messages, in
  transactions of 50 spread over the rooms, one transaction at a time. The clock stops when a client can read the last message of
  each room (to within 0.2 s); a server may answer transactions before it has worked on them. Synapse drops what waits for a room
  when that comes to 100 events, and asks for it again later, which this script does not answer: no room gets so many.
- `send_to_50`: 50 played servers are in a room, and a local user sends 200 messages, four at once. The clock stops when each server
  has each of them; rates are per delivery (a message to one server).
- `join_5000`: a local user joins a room of 5,000 members of 20 played servers, which is the first that the measured server hears of
  any of them. The played server answers with all members, though Synapse asks for them to be left out, and could then let its
  user in sooner. CPU time is that until the user's sync shows the room; memory is the largest resident set of the server
  alone.
- `state_change_5000`: in this room, 50 changes of the topic and of one's display name by the local user (each goes to 20 servers,
  and what a server notes about sending counts), then as many by the creator, received in a transaction each. Rows are those that
  PostgreSQL counts as inserted, updated and deleted in all tables; bytes are those of its write-ahead log, indexes included, with
  `full_page_writes` and `autovacuum` off. Synapse writes the room's whole state anew with every 100th change or so, so one of the
  two ways has that in its mean with 50 changes, and both have it with `--changes 100`. Latency is until
  the answer, and for received ones until a client can read them (to within 10 ms).

CPU times include PostgreSQL's. Rate limits are off in both servers (in Synapse those for messages, joins, invites and
federation are raised out of reach), presence is on, PostgreSQL has default settings but for those above. Each run prints a
line of JSON; a Markdown table comes at the end.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compare import ROOT, TARGET, Results, ratio, shown, table
from played import ROOM_VERSION, Connection, Players, Refused, Room, part

sys.path.insert(0, str(ROOT / "tests/clients/federation"))
from servers import Authority, Homing, Synapse  # noqa: E402

SENDERS = 4  # messages on their way at once in `send_to_50`
PATIENCE = 900  # seconds until something that should arrive counts as lost
STILL = 12  # PostgreSQL's idle connections may keep their counts to themselves for ten seconds
TICKS = os.sysconf("SC_CLK_TCK")

# Field of a result: how the table calls it, and whether more or less of it is better.
FIELDS = {
    "receive": {
        "pdus_per_second": ("PDUs received per second", "more"),
        "answered_per_second": ("PDUs per second until the last answer", "more"),
        "cpu_s_per_1000": ("CPU seconds per 1,000 PDUs", "less"),
    },
    "send_to_50": {
        "deliveries_per_second": ("deliveries per second", "more"),
        "cpu_s_per_1000": ("CPU seconds per 1,000 deliveries", "less"),
    },
    "join_5000": {
        "answered_s": ("seconds until /join is answered", "less"),
        "synced_s": ("seconds until /sync shows the room", "less"),
        "cpu_s": ("CPU seconds", "less"),
        "peak_mb": ("peak memory in megabytes", "less"),
    },
    "state_change_5000": {
        f"{way}_{field}": (f"{what} per {way} change", "less")
        for way in ("local", "received")
        for field, what in [("rows", "rows"), ("wal_kb", "kilobytes of WAL"), ("p50_ms", "median milliseconds")]
    },
}
for fields in FIELDS.values():
    fields["script_cpu_s"] = ("CPU seconds of this script", None)


class Measured:
    """A homeserver on an empty database of its own. Must be closed."""

    def __init__(self, name, folder, authority, homing):
        kind, database = name.split("-")
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
        self.folder.chmod(0o711)  # PostgreSQL runs as another user below it
        self.server, self.postgres = None, database == "postgres"
        try:
            postgres = self.run_postgres("start") if self.postgres else None
            if kind == "homing":
                self.server = Homing(self.folder, authority, homing, postgres, linked=False)
            else:
                self.server = Synapse(self.folder, authority, postgres=postgres, linked=False)
            self.server.start()
            self.pids = [self.server.process.pid]
            if self.postgres:
                self.pids.append(int(self.run_postgres("pid")))
            self.rest()
        except BaseException:
            self.close()
            raise

    def close(self):
        if self.server:
            self.server.stop()
        if self.postgres:
            self.run_postgres("stop")
        shutil.rmtree(self.folder)

    def run_postgres(self, what):
        return subprocess.check_output([ROOT / "tests/postgres.sh", what, self.folder / "postgres"], text=True).strip()

    def query(self, sql):
        command = ["psql", "-XAtq", self.server.database, "--command", sql]
        return int(subprocess.check_output(command, text=True).strip() or 0)

    def cpu_seconds(self):
        """Of the server, PostgreSQL, and all that these have started, what has ended included."""
        parents, used = {}, {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            pid = int(entry.parent.name)
            parents[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:15]))
        ours = [pid for pid in used if {pid, parents[pid]} & set(self.pids)]
        return sum(used[pid] for pid in ours) / TICKS

    def rest(self):
        """Waits until the server has done what it does after its start."""
        for _ in range(30):
            before = self.cpu_seconds()
            time.sleep(1)
            if self.cpu_seconds() - before < 0.05:
                return

    def forget_peak(self):
        Path(f"/proc/{self.pids[0]}/clear_refs").write_text("5")

    def peak_mb(self):
        lines = Path(f"/proc/{self.pids[0]}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Meter:
    """What has been used since it was made."""

    def __init__(self, measured):
        self.measured, self.cpu, self.script = measured, measured.cpu_seconds(), time.process_time()
        self.start = time.monotonic()

    def seconds(self):
        return time.monotonic() - self.start

    def cpu_seconds(self):
        return self.measured.cpu_seconds() - self.cpu

    def script_seconds(self):
        return time.process_time() - self.script


class User:
    """A local user of the measured server."""

    def __init__(self, measured, name):
        self.measured = measured
        self.connection = self.connect()
        self.headers = {"Content-Type": "application/json"}
        body = {"username": name, "password": "correct horse battery staple", "auth": {"type": "m.login.dummy"}}
        made = self.request("POST", "/register", body)
        self.id = made["user_id"]
        self.headers["Authorization"] = f"Bearer {made['access_token']}"

    def connect(self):
        return Connection(f"127.0.0.1:{self.measured.server.client_port}")

    def request(self, method, path, content=None, connection=None):
        body = None if content is None else json.dumps(content).encode()
        return (connection or self.connection).exchange(method, f"/_matrix/client/v3{path}", body, self.headers)

    def join(self, room):
        self.request("POST", f"/join/{part(room.id)}?server_name={room.host.name}&via={room.host.name}", {})

    def until_readable(self, room_id, event_id, pause):
        """Asks for an event with so many seconds between. The server works for each answer, so they should not be few."""
        path = f"/rooms/{part(room_id)}/event/{part(event_id)}"
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.request("GET", path)
            except Refused as refused:
                if refused.status not in (403, 404) or time.monotonic() > deadline:
                    raise
            time.sleep(pause)


# -- scenarios


def receive(measured, players, sizes):
    host, user = players.add(), User(measured, "reader")
    rooms = [Room(host, f"room{number}") for number in range(sizes.rooms)]
    for room in rooms:
        room.prepare()
        user.join(room)
    content = [{"msgtype": "m.text", "body": f"message {number}"} for number in range(sizes.pdus)]
    pdus = [
        rooms[number % len(rooms)].add("m.room.message", content[number], state_key=None)[1] for number in range(sizes.pdus)
    ]
    name = measured.server.name
    transactions = [
        host.signed_transaction(name, number, pdus[number : number + 50]) for number in range(0, len(pdus), 50)
    ]
    connection = host.connect(name)
    measured.rest()
    meter = Meter(measured)
    for transaction in transactions:
        refused = [told for told in connection.exchange(*transaction)["pdus"].values() if "error" in told]
        if refused:
            raise RuntimeError(f"{name} refuses PDUs: {refused[0]}")
    answered = meter.seconds()
    for room in rooms:
        user.until_readable(room.id, room.last[0], 0.2)
    arrived, cpu, script = meter.seconds(), meter.cpu_seconds(), meter.script_seconds()
    yield "receive", {
        "pdus_per_second": sizes.pdus / arrived,
        "answered_per_second": sizes.pdus / answered,
        "cpu_s_per_1000": cpu * 1000 / sizes.pdus,
        "seconds": arrived,
        "script_cpu_s": script,
    }


def send_to_50(measured, players, sizes):
    user = User(measured, "writer")
    room = user.request("POST", "/createRoom", {"preset": "public_chat", "room_version": ROOM_VERSION})["room_id"]
    others = [players.add() for _ in range(sizes.destinations)]
    for other in others:
        other.join(measured.server.name, room, f"@reader:{other.name}")
    connections = [user.connect() for _ in range(SENDERS)]

    def send(sender):
        for number in range(sender, sizes.messages, SENDERS):
            content = {"msgtype": "m.text", "body": f"message {number}"}
            path = f"/rooms/{part(room)}/send/m.room.message/{number}"
            user.request("PUT", path, content, connections[sender])

    measured.rest()
    meter = Meter(measured)
    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(send, range(SENDERS)))
    sent = meter.seconds()
    while any(len(other.received) < sizes.messages for other in others):
        if meter.seconds() > PATIENCE:
            raise RuntimeError(f"servers got {sorted(len(other.received) for other in others)} messages")
        time.sleep(0.005)
    arrived, cpu, script = meter.seconds(), meter.cpu_seconds(), meter.script_seconds()
    deliveries = sizes.messages * len(others)
    yield "send_to_50", {
        "deliveries_per_second": deliveries / arrived,
        "cpu_s_per_1000": cpu * 1000 / deliveries,
        "sent_s": sent,
        "seconds": arrived,
        "script_cpu_s": script,
    }


def large_room(measured, players, sizes):
    """`join_5000`, and `state_change_5000` if that is asked for."""
    host, *more = [players.add() for _ in range(sizes.signers)]
    user = User(measured, "joiner")
    room = Room(host, "large", [user.id])
    for number in range(sizes.members - 1):
        server = [host, *more][number % sizes.signers]
        member = f"@member{number}:{server.name}"
        room.add("m.room.member", {"membership": "join"}, member, sender=member, server=server)
    room.prepare()
    yield "join_5000", join_and_sync(measured, user, room, sizes.members + 1)
    if "state_change_5000" in sizes.only:
        measured.rest()
        if measured.postgres:
            for setting in ["full_page_writes", "autovacuum"]:
                measured.query(f"ALTER SYSTEM SET {setting} = off")
            measured.query("SELECT pg_reload_conf()::int")
        script = time.process_time()
        result = {}
        for way, change in [("local", local_changes), ("received", received_changes)]:
            before = writes(measured)
            times = change(measured, user, room, sizes.changes)
            after = writes(measured)
            result[f"{way}_p50_ms"] = statistics.median(times) * 1000
            for field in after:
                result[f"{way}_{field}"] = (after[field] - before[field]) / sizes.changes
        yield "state_change_5000", {**result, "script_cpu_s": time.process_time() - script}


def join_and_sync(measured, user, room, members):
    wanted = part(json.dumps({"room": {"state": {"lazy_load_members": True}}}))
    since = user.request("GET", f"/sync?filter={wanted}")["next_batch"]
    measured.rest()
    measured.forget_peak()
    meter = Meter(measured)
    user.join(room)
    answered, count = meter.seconds(), None
    while count != members:
        if meter.seconds() > PATIENCE:
            raise RuntimeError(f"the sync tells of {count} members instead of {members}")
        sync = user.request("GET", f"/sync?filter={wanted}&since={since}&timeout=1000")
        since = sync["next_batch"]
        summary = sync.get("rooms", {}).get("join", {}).get(room.id, {}).get("summary", {})
        count = summary.get("m.joined_member_count", count)
    return {
        "answered_s": answered,
        "synced_s": meter.seconds(),
        "cpu_s": meter.cpu_seconds(),
        "peak_mb": measured.peak_mb(),
        "script_cpu_s": meter.script_seconds(),
    }


def writes(measured):
    """What PostgreSQL has written so far, once that has stopped to grow (or a minute is over)."""
    if not measured.postgres:
        return {}
    rows, since, start = None, None, time.monotonic()
    while time.monotonic() < start + 60 and (rows is None or time.monotonic() < since + STILL):
        now = measured.query("SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables")
        if now != rows:
            rows, since = now, time.monotonic()
        time.sleep(0.5)
    return {"rows": rows, "wal_kb": measured.query("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint") / 1024}


def state_changes(user, count):
    """Changes of the topic and of a display name by turns: type, state key and content."""
    for number in range(count):
        if number % 2:
            yield "m.room.member", user, {"membership": "join", "displayname": f"Name {number}"}
        else:
            yield "m.room.topic", "", {"topic": f"Topic {number}"}


def local_changes(_measured, user, room, count):
    """The seconds that each took."""
    times = []
    for kind, key, content in state_changes(user.id, count):
        start = time.monotonic()
        event_id = user.request("PUT", f"/rooms/{part(room.id)}/state/{kind}/{part(key)}", content)["event_id"]
        times.append(time.monotonic() - start)
        room.last, room.depth = [event_id], room.depth + 1
    return times


def received_changes(measured, user, room, count):
    """The seconds that each took."""
    events = [room.add(kind, content, key) for kind, key, content in state_changes(room.creator, count)]
    name = measured.server.name
    requests = [
        (event_id, room.host.signed_transaction(name, number, [event])) for number, (event_id, event) in enumerate(events)
    ]
    connection = room.host.connect(name)
    times = []
    for event_id, request in requests:
        start = time.monotonic()
        connection.exchange(*request)
        user.until_readable(room.id, event_id, 0.01)
        times.append(time.monotonic() - start)
    return times


# -- the run


def run(scenario, name, arguments, folder, authority, results):
    """Whether all went well."""
    measured = players = None
    try:
        players = Players(authority)
        measured = Measured(name, folder, authority, arguments.homing)
        for part_name, result in scenario(measured, players, arguments):
            if part_name in arguments.only:
                results.add(name, part_name, result)
                rounded = {field: round(value, 3) for field, value in result.items()}
                print(json.dumps({"scenario": part_name, "server": name, **rounded}), flush=True)
        return True
    except Exception:  # noqa: BLE001
        print(f"{name}: {scenario.__name__} failed:\n{traceback.format_exc()}", file=sys.stderr)
        if measured:
            print(measured.server.output.read_text(errors="replace")[-3000:], file=sys.stderr)
        if players:
            print(f"played servers did not answer {sorted(players.unanswered)}", file=sys.stderr)
        return False
    finally:
        if measured:
            measured.close()
        if players:
            players.close()


def report(results, servers, only):
    gains = [(server, "synapse-postgres") for server in servers if server.startswith("homing-")]
    gains = [pair for pair in gains if pair[1] in servers]
    rows = []
    for scenario in only:
        for field, (label, better) in FIELDS[scenario].items():
            values = {server: results.median(server, scenario, field) for server in servers}
            row = [f"`{scenario}`: {label}", *(shown(values[server]) for server in servers)]
            for ours, theirs in gains:
                more, less = (ours, theirs) if better == "more" else (theirs, ours)
                row.append(ratio(values[more], values[less]) if better else "")
            rows.append(row)
    table("Federation", ["", *servers, *(f"gain of {ours}" for ours, _ in gains)], rows)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=FIELDS, help="a scenario; can be given more than once")
    parser.add_argument("--servers", default="homing-sqlite,homing-postgres,synapse-postgres", help="also synapse-sqlite")
    parser.add_argument("--homing", type=Path, default=TARGET / "release/homing")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each scenario; the table has the medians")
    parser.add_argument("--rooms", type=int, default=100, help="of `receive`")
    parser.add_argument("--pdus", type=int, default=5000, help="of `receive`")
    parser.add_argument("--destinations", type=int, default=50, help="servers of `send_to_50`")
    parser.add_argument("--messages", type=int, default=200, help="of `send_to_50`")
    parser.add_argument("--members", type=int, default=5000, help="of the large room")
    parser.add_argument("--signers", type=int, default=20, help="servers in the large room")
    parser.add_argument("--changes", type=int, default=50, help="of `state_change_5000`, each way")
    arguments = parser.parse_args()
    if arguments.pdus / arguments.rooms >= 100:
        parser.error("a room must get fewer than 100 PDUs: see above")
    arguments.only = [name for name in FIELDS if name in (arguments.only or FIELDS)]
    arguments.homing = arguments.homing.resolve()
    return arguments


def main():
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    servers, results = arguments.servers.split(","), Results()
    wanted = [
        scenario
        for scenario, names in [
            (receive, {"receive"}), (send_to_50, {"send_to_50"}), (large_room, {"join_5000", "state_change_5000"}),
        ]
        if names & set(arguments.only)
    ]  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="homing-federation-"))
    folder.chmod(0o711)
    try:
        authority = Authority(folder)
        went_well = [
            run(scenario, name, arguments, folder, authority, results)
            for scenario in wanted
            for _ in range(arguments.repeat)
            for name in servers
        ]
    finally:
        shutil.rmtree(folder)
    report(results, servers, arguments.only)
    sys.exit(not all(went_well))


if __name__ == "__main__":
    main()
