"""A Homing and a Synapse hold a whole conversation: `conversation.py HOMING_BINARY [CHECK…]`.

Every check is held twice, with people of either server beginning, and makes its own people and rooms. It can be run alone:
`direct_room` runs both ways of it, `direct_room:synapse` the one in which Synapse's people begin.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import access  # noqa: F401
import encrypted  # noqa: F401
import people  # noqa: F401
import rooms  # noqa: F401
import trouble  # noqa: F401
from checks import ALL
from person import Failure
from servers import Authority, Homing, Synapse

AT_A_TIME = 4


def hold(check, here, there):
    """Runs a check in one direction. Answers what went wrong, if anything, and how long it took."""
    started = time.monotonic()
    try:
        check.run(here, there)
        wrong = None
    except Failure as failure:
        wrong = str(failure)
    except Exception:  # noqa: BLE001
        wrong = traceback.format_exc()
    seconds = time.monotonic() - started
    name = f"{check.name}:{here}"
    print(f"  {'FAILED' if wrong else 'ok':6} {name} ({seconds:.1f} s)", flush=True)
    if wrong:
        print("         " + wrong.replace("\n", "\n         "), flush=True)
    return name if wrong else None


def chosen(names, homing, synapse):
    known = {check.name for check in ALL}
    for name in names:
        check, _, server = name.partition(":")
        if check not in known or server not in ("", "homing", "synapse"):
            sys.exit(f"there is no check {name}; there are {' '.join(sorted(known))}")
    for check in ALL:
        for here, there in [(homing, synapse), (synapse, homing)]:
            if not names or check.name in names or f"{check.name}:{here}" in names:
                yield check, here, there


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("homing", type=Path, help="Homing's binary; or `synapse` for a second Synapse in its place")
    parser.add_argument("checks", nargs="*")
    parser.add_argument("--postgres", help="the URL of a PostgreSQL on which Homing gets a database")
    parser.add_argument("--keep", action="store_true", help="keep the servers' files and say where they are")
    arguments = parser.parse_intermixed_args()
    folder = Path(tempfile.mkdtemp(prefix="federation-"))
    authority = Authority(folder)
    if str(arguments.homing) == "synapse":
        homing = Synapse(folder, authority, "homing")
    else:
        homing = Homing(folder, authority, arguments.homing.resolve(), arguments.postgres)
    synapse = Synapse(folder, authority)
    failed = []
    try:
        work = list(chosen(arguments.checks, homing, synapse))
        with ThreadPoolExecutor(2) as starting:
            list(starting.map(lambda server: server.start(), [homing, synapse]))
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            failed += pool.map(lambda item: hold(*item), [item for item in work if not item[0].alone])
        failed += [hold(*item) for item in work if item[0].alone]
        failed = [name for name in failed if name]
    finally:
        homing.stop()
        synapse.stop()
        if arguments.keep:
            print(f"everything is kept in {folder}")
        else:
            errors = homing.errors()
            shutil.rmtree(folder)
    if not arguments.keep and errors:
        print("Homing logged errors:", *errors[:20], sep="\n  ")
        failed.append("no errors in the log")
    if failed:
        print(f"{len(failed)} of {len(work)} failed: {' '.join(failed)}")
        sys.exit(1)
    print(f"the conversation was held: {len(work)} checks")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
