"""Homeservers that a script plays: their keys, the rooms they host, and the requests that they answer and send."""

import asyncio
import hashlib
import http.client
import json
import ssl
import threading
import time
from urllib.parse import quote, unquote, urlsplit

from canonicaljson import encode_canonical_json
from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from unpaddedbase64 import encode_base64

ROOM_VERSION = "11"
# What stays of an event and of its content when it is redacted, in this room version; of a creation everything stays.
KEPT = {"type", "room_id", "sender", "state_key", "content", "hashes", "depth", "prev_events", "auth_events", "origin_server_ts"}
KEPT_CONTENT = {
    "m.room.member": {"membership"},
    "m.room.join_rules": {"join_rule", "allow"},
    "m.room.power_levels": {"ban", "events", "events_default", "invite", "kick", "redact", "state_default", "users", "users_default"},
    "m.room.history_visibility": {"history_visibility"},
}


def part(text):
    """A part of a path."""
    return quote(text, safe="")


class Connection:
    """A connection to a server that is kept open: what is measured are not handshakes."""

    def __init__(self, address, context=None):
        if context:
            self.http = http.client.HTTPSConnection(address, context=context, timeout=900)
        else:
            self.http = http.client.HTTPConnection(address, timeout=900)

    def exchange(self, method, path, body, headers):
        """The JSON of an answer, which must be a good one."""
        try:
            self.http.request(method, path, body, headers)
            answer = self.http.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError):  # it has been idle for too long
            self.http.close()
            self.http.request(method, path, body, headers)
            answer = self.http.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise Refused(answer.status, f"{method} {path}: {answer.status} {data[:1000].decode(errors='replace')}")
        return json.loads(data)


class Refused(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Players:
    """All played servers of a run. They share a thread."""

    def __init__(self, authority):
        self.serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.serving.load_cert_chain(authority.server_certificate, authority.server_key)
        self.trusting = ssl.create_default_context(cafile=authority.certificate)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.unanswered = set()

    def add(self):
        played = Played(self)
        start = asyncio.start_server(played.connection, "127.0.0.1", 0, ssl=self.serving, backlog=1000)
        listener = asyncio.run_coroutine_threadsafe(start, self.loop).result(10)
        played.introduce(listener.sockets[0].getsockname()[1])
        return played

    def close(self):
        async def end():
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


class Played:
    """One server. `received` are the bodies of the messages that it was sent."""

    def __init__(self, players):
        self.players = players
        self.key = generate_signing_key("1")
        self.rooms, self.received = {}, set()
        self.name = self.keys = None

    def introduce(self, port):
        self.name = f"localhost:{port}"
        keys = {
            "server_name": self.name,
            "valid_until_ts": int(time.time() + 86400) * 1000,
            "verify_keys": {"ed25519:1": {"key": encode_verify_key_base64(get_verify_key(self.key))}},
            "old_verify_keys": {},
        }
        self.keys = encode_canonical_json(sign_json(keys, self.name, self.key))

    # -- what it sends

    def connect(self, server_name):
        return Connection(server_name, self.players.trusting)

    def signed_request(self, destination, method, path, content=None):
        """What `Connection.exchange` takes."""
        request = {"method": method, "uri": path, "origin": self.name, "destination": destination}
        if content is not None:
            request["content"] = content
        signature = sign_json(request, self.name, self.key)["signatures"][self.name]["ed25519:1"]
        header = f'X-Matrix origin="{self.name}",destination="{destination}",key="ed25519:1",sig="{signature}"'
        body = None if content is None else encode_canonical_json(content)
        return method, path, body, {"Authorization": header, "Content-Type": "application/json"}

    def signed_transaction(self, destination, number, pdus):
        content = {"origin": self.name, "origin_server_ts": int(time.time() * 1000), "pdus": pdus}
        return self.signed_request(destination, "PUT", f"/_matrix/federation/v1/send/{number}", content)

    def join(self, destination, room_id, user):
        """Lets a user of this server join a room of the other one."""
        connection = self.connect(destination)
        path = f"/_matrix/federation/v1/make_join/{part(room_id)}/{part(user)}?ver={ROOM_VERSION}"
        event = connection.exchange(*self.signed_request(destination, "GET", path))["event"]
        for field in ("hashes", "signatures", "unsigned"):
            event.pop(field, None)
        event_id = sign_event(event, self)
        path = f"/_matrix/federation/v2/send_join/{part(room_id)}/{part(event_id)}"
        connection.exchange(*self.signed_request(destination, "PUT", path, event))

    # -- what it answers

    async def connection(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, target, _ = head[0].split(" ", 2)
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, answer = self.answer(method, target, body)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
                )
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other server has closed it, or the run is over
        finally:
            writer.transport.abort()

    def answer(self, method, target, body):
        match [method, *map(unquote, urlsplit(target).path.split("/")[2:])]:
            case ["GET", "key", "v2", "server", *_]:
                return "200 OK", self.keys
            case ["GET", "federation", "v1", "version"]:
                return "200 OK", b'{"server": {"name": "played", "version": "1"}}'
            case ["PUT", "federation", "v1", "send", _]:
                for pdu in json.loads(body)["pdus"]:
                    if pdu["type"] == "m.room.message":
                        self.received.add(pdu["content"]["body"])
                return "200 OK", b'{"pdus": {}}'
            case ["GET", "federation", "v1", "make_join", room, user] if room in self.rooms:
                event = self.rooms[room].draft(user, "m.room.member", {"membership": "join"}, user)
                return "200 OK", json.dumps({"room_version": ROOM_VERSION, "event": event}).encode()
            case ["PUT", "federation", "v2", "send_join", room, event_id] if room in self.rooms:
                return "200 OK", self.rooms[room].join_answer(event_id, body)
        self.players.unanswered.add(f"{method} {'/'.join(target.split('/')[2:6]).split('?')[0]}")
        return "404 Not Found", b'{"errcode": "M_UNRECOGNIZED", "error": "This server is only played."}'


class Room:
    """A public room that a played server hosts, with its creator in it. Its events follow each other in one line."""

    def __init__(self, host, name, powers=()):
        """`powers` are users who may do what the creator may."""
        self.id = f"!{name}:{host.name}"
        self.host, self.creator = host, f"@creator:{host.name}"
        self.state, self.last, self.depth = {}, [], 0
        self.prepared = None
        host.rooms[self.id] = self
        users = {user: 100 for user in [self.creator, *powers]}
        self.add("m.room.create", {"room_version": ROOM_VERSION})
        self.add("m.room.member", {"membership": "join"}, self.creator)
        self.add("m.room.power_levels", {"users": users, "state_default": 50, "users_default": 0})
        self.add("m.room.join_rules", {"join_rule": "public"})

    def draft(self, sender, kind, content, state_key=None):
        """The next event, but for its hash and signature."""
        keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", sender)]
        if kind == "m.room.member":
            keys.append(("m.room.join_rules", ""))
        event = {
            "room_id": self.id, "sender": sender, "type": kind, "content": content, "depth": self.depth + 1,
            "prev_events": self.last, "auth_events": [self.state[key][0] for key in keys if key in self.state],
            "origin_server_ts": int(time.time() * 1000),
        }  # fmt: skip
        if state_key is not None:
            event["state_key"] = state_key
        return event

    def add(self, kind, content, state_key="", sender=None, server=None):
        """Adds an event, by the creator if nobody else is named. Answers its id and the event."""
        event = self.draft(sender or self.creator, kind, content, state_key)
        event_id = sign_event(event, server or self.host)
        self.took(event_id, event)
        return event_id, event

    def took(self, event_id, event):
        self.last, self.depth = [event_id], event["depth"]
        if "state_key" in event:
            self.state[event["type"], event["state_key"]] = (event_id, event)

    def prepare(self):
        """Makes the answer to who joins next. Only what stands at the room's beginning is an auth event here."""
        chain = [event for _, event in list(self.state.values())[:4]]
        state = [event for _, event in self.state.values()]
        self.prepared = json.dumps(
            {"origin": self.host.name, "members_omitted": False, "auth_chain": chain, "state": state}
        ).encode()

    def join_answer(self, event_id, body):
        self.took(event_id, json.loads(body))
        return self.prepared[:-1] + b', "event": ' + body + b"}"


def sign_event(event, server):
    """Adds the hash and the signature to an event. Answers its id."""
    event["hashes"] = {"sha256": encode_base64(hashlib.sha256(encode_canonical_json(event)).digest())}
    redacted = {key: value for key, value in event.items() if key in KEPT}
    if event["type"] != "m.room.create":
        kept = KEPT_CONTENT.get(event["type"], set())
        redacted["content"] = {key: value for key, value in event["content"].items() if key in kept}
    event_id = "$" + encode_base64(hashlib.sha256(encode_canonical_json(redacted)).digest(), urlsafe=True)
    event["signatures"] = sign_json(redacted, server.name, server.key)["signatures"]
    return event_id
