"""The encrypted conversations of `js-sdk/` and `rust-sdk/`, with their two people on different servers."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from checks import check
from person import Failure
from servers import HERE

CLIENTS = HERE.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "homing"
MINUTES = 3


@check(alone=True)
def js_sdk(here, there):
    with tempfile.TemporaryDirectory(dir=here.folder) as program:
        program = Path(program)
        subprocess.run([CLIENTS / "install.sh", "js-sdk", program], check=True)
        hold(here, there, [program / "node_modules" / ".bin" / "node", program / "conversation.js"])


@check(alone=True)
def rust_sdk(here, there):
    target = CACHE / "clients-target"
    manifest = CLIENTS / "rust-sdk" / "Cargo.toml"
    subprocess.run(["cargo", "build", "--quiet", "--locked", "--manifest-path", manifest],
                   env={**os.environ, "CARGO_TARGET_DIR": str(target)}, check=True)
    hold(here, there, [target / "debug" / "conversation"])


def hold(here, there, program):
    """Alice is `here` and Bob `there`. Homing is restarted in the middle, so the program is the one that runs it."""
    homing = here if here.kind == "homing" else there
    environment = {
        "HOMESERVER_URL": homing.url,
        "HOMESERVER_COMMAND": shlex.join(homing.command),
        "ALICE_URL": here.url,
        "BOB_URL": there.url,
        **homing.environment,
    }
    homing.stop()
    try:
        with homing.output.open("ab") as log:
            done = subprocess.run(program, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
                                  env={**os.environ, **environment}, timeout=MINUTES * 60)
    finally:
        homing.start()
    if done.returncode:
        raise Failure(f"the program ended with status {done.returncode}, and wrote:\n{homing.output.read_text()[-20000:]}")
