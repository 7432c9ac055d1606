"""A Homing and a Synapse that reach each other by TLS on loopback, and the link between them that can be cut.

Each server's name is `localhost:PORT`, where PORT is that of its `Link`: what one server sends the other goes through it.
A server that is not `linked` is reached without one.
"""

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_SECONDS = 90
STOP_SECONDS = 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Authority:
    """A certificate authority for this run, and one certificate for `localhost` that it has signed."""

    def __init__(self, folder):
        self.certificate = folder / "ca.crt"
        self.server_certificate, self.server_key = folder / "tls.crt", folder / "tls.key"
        ca_key, request, names = folder / "ca.key", folder / "tls.csr", folder / "names"
        names.write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._openssl("req", "-x509", *key, "-subj", "/CN=Test authority", "-days", "2",
                      "-keyout", ca_key, "-out", self.certificate)
        self._openssl("req", *key, "-subj", "/CN=localhost", "-keyout", self.server_key, "-out", request)
        self._openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", ca_key,
                      "-CAcreateserial", "-days", "2", "-extfile", names, "-out", self.server_certificate)

    @staticmethod
    def _openssl(*arguments):
        command = ["openssl", *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}")


class Link:
    """A port that hands connections on to another one, unless it is cut."""

    loop = None

    def __init__(self, upstream):
        self.upstream = upstream
        self.is_cut = False
        self.writers = set()
        if Link.loop is None:
            Link.loop = asyncio.new_event_loop()
            threading.Thread(target=Link.loop.run_forever, daemon=True).start()
        self.server = self._run(asyncio.start_server(self._connection, "127.0.0.1", 0))
        self.port = self.server.sockets[0].getsockname()[1]

    @staticmethod
    def _run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, Link.loop).result(10)

    async def _connection(self, reader, writer):
        self.writers.add(writer)
        far = None
        try:
            if self.is_cut:
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.upstream)
            self.writers.add(far)
            await asyncio.gather(self._pour(reader, far), self._pour(far_reader, writer))
        except OSError:
            pass
        finally:
            for end in filter(None, (writer, far)):
                self.writers.discard(end)
                end.transport.abort()

    @staticmethod
    async def _pour(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def cut(self):
        """Ends all connections and lets no new ones through."""

        async def end():
            self.is_cut = True
            for writer in list(self.writers):
                writer.transport.abort()

        self._run(end())

    def mend(self):
        self.is_cut = False


class Server:
    """What both servers have in common: a process, an address for clients, and a link for the other server."""

    kind = None

    def __init__(self, folder, authority, linked=True):
        self.folder = folder / self.kind
        self.folder.mkdir()
        self.authority = authority
        self.client_port, self.federation_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.client_port}"
        self.link = Link(self.federation_port) if linked else None
        self.name = f"localhost:{self.link.port if linked else self.federation_port}"
        self.database = None  # the URL of its database on PostgreSQL
        self.output = self.folder / "output"
        self.process = None
        self.command, self.environment = [], {}

    def __repr__(self):
        return self.kind

    def start(self):
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                            env={**os.environ, **self.environment})
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} did not start:\n{self.output.read_text()[-4000:]}")
            time.sleep(0.05)

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.url}/_matrix/client/versions", timeout=5):
                return True
        except OSError:
            return False

    def kill(self):
        """Ends the process as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def errors(self):
        """The lines of the log that should not be there."""
        raise NotImplementedError


class Homing(Server):
    kind = "homing"

    def __init__(self, folder, authority, binary, postgres=None, linked=True):
        super().__init__(folder, authority, linked)
        database = f"sqlite:{self.folder}/homing.db"
        if postgres:
            name = f"federation_{self.client_port}"
            subprocess.run(["psql", "--quiet", postgres, "--command", f"CREATE DATABASE {name}"], check=True)
            database = self.database = f"{postgres.rsplit('/', 1)[0]}/{name}"
        config = self.folder / "homing.toml"
        config.write_text(f"""\
server_name = "{self.name}"
data_dir = "{self.folder}/data"

[[listeners]]
bind = "127.0.0.1:{self.client_port}"

[[listeners]]
bind = "127.0.0.1:{self.federation_port}"
tls = true
cert = "{authority.server_certificate}"
key = "{authority.server_key}"

[database]
url = "{database}"

[registration]
mode = "open"

[rate_limits]
enabled = false

[federation]
allow_addresses = ["127.0.0.0/8", "::1/128"]
ca_file = "{authority.certificate}"
""")
        self.command = [str(binary), "serve", "--config", str(config)]

    def errors(self):
        lines = self.output.read_text(errors="replace").splitlines()
        return [line for line in lines if " ERROR " in line or "panicked" in line]


class Synapse(Server):
    """Synapse from PyPI. It comes back to a server that did not answer within a second or two, not after ten minutes."""

    kind = "synapse"

    def __init__(self, folder, authority, kind="synapse", postgres=None, linked=True):
        self.kind = kind
        super().__init__(folder, authority, linked)
        overrides = self.folder / "overrides.yaml"
        overrides.write_text(f"""\
server_name: "{self.name}"
listeners:
  - {{port: {self.client_port}, bind_addresses: [127.0.0.1], type: http, tls: false, resources: [{{names: [client]}}]}}
  - {{port: {self.federation_port}, bind_addresses: [127.0.0.1], type: http, tls: true, resources: [{{names: [federation]}}]}}
tls_certificate_path: "{authority.server_certificate}"
tls_private_key_path: "{authority.server_key}"
federation_custom_ca_list: ["{authority.certificate}"]
federation_domain_whitelist: null
federation_ip_range_blacklist: []
ip_range_blacklist: []
allow_public_rooms_over_federation: true
room_list_publication_rules: [{{action: allow}}]
bcrypt_rounds: 4
rc_federation: {{window_size: 1000, sleep_limit: 100000, sleep_delay: 1, reject_limit: 100000, concurrent: 100}}
federation:
  client_timeout: 10000
  max_short_retries: 1
  max_short_retry_delay: 500
  max_long_retries: 1
  max_long_retry_delay: 1000
  destination_min_retry_interval: 500
  destination_max_retry_interval: 1000
""")
        self.command = [str(HERE.parent / "synapse.sh"), str(self.folder), str(self.client_port)]
        self.environment = {"SYNAPSE_OVERRIDES": str(overrides)}
        if postgres:
            self.command.append(postgres)
            self.database = f"{postgres.rsplit('/', 1)[0]}/synapse_{self.client_port}"

    def errors(self):
        return []
