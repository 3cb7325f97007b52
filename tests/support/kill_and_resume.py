"""Kill a download at random points and start it again: `python tests/support/kill_and_resume.py [ROUNDS] [SEED]`.

Prints one JSON object with what each round found; exits with 1 where one lost or falsified anything.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hub_server import HubServer, hub_server, write_manifest

SCRIPT = Path(__file__).parents[2] / "scripts" / "download_models.py"
COMPLETE = "download_complete.txt"
#: Its large files, which come from the content network.
LARGE = {"one.safetensors": 900_000, "below/two.safetensors": 600_000, "three.safetensors": 300_000}


@dataclass
class Round:
    """What happened to one download."""

    seed: int
    #: Where it was killed: bytes sent by then, and seconds after that.
    bytes: int
    seconds: float
    #: Files that stood in their place when it was killed, all of them whole.
    whole_then: int
    killed: bool
    #: Bytes on its disk then, and those that were sent to it afterwards: together each byte once.
    kept: int
    sent_after: int
    problems: list[str]


def run_round(seed: int, home: Path) -> Round:
    """Kill one download at a point that `seed` chooses, look at what it left, start it again and look at the end."""
    chance = random.Random(seed)
    contents = {place: chance.randbytes(size) for place, size in LARGE.items()} | {"config.json": b"{}"}
    total = sum(LARGE.values())
    with hub_server({"acme/talk": contents}, rate=600_000) as server:
        manifest = write_manifest(home / "manifest.yaml", server.manifest(one=["talk"]))
        # A third each: at its start, while bytes come, and while the last are hashed, renamed and marked.
        point = chance.choice((0, chance.randrange(1, total), total))
        seconds = chance.uniform(0, 0.4) if point == total else chance.uniform(0, 1.5) if point == 0 else 0.0
        found = Round(seed, point, round(seconds, 3), 0, False, 0, 0, [])
        process = _start(server, manifest, home)
        while server.sent() < point and process.poll() is None:
            time.sleep(0.002)
        time.sleep(seconds)
        found.killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        folder = home / "models" / "one"
        found.whole_then = _look(folder, contents, found.problems)
        found.kept = sum(path.stat().st_size for path in folder.glob(".multitalk/parts/*") if path.stat().st_size > 10)
        found.kept += sum((folder / place).stat().st_size for place in LARGE if (folder / place).exists())
        before = _settled(server)
        process = _start(server, manifest, home)
        _, errors = process.communicate(timeout=120)
        if process.returncode:
            found.problems.append(f"did not go on: {errors.decode().strip()}")
        if _look(folder, contents, found.problems) != len(contents):
            found.problems.append("not all files are there in the end")
        if not (folder / COMPLETE).exists():
            found.problems.append("not marked complete in the end")
        found.sent_after = server.sent() - before
        if found.sent_after != total - found.kept:
            found.problems.append(f"{found.sent_after} bytes were sent to one that kept {found.kept} of {total}")
    return found


def _settled(server: HubServer) -> int:
    """Return the bytes sent once no thread of the server sends to a dead process any longer."""
    while True:
        sent = server.sent()
        time.sleep(0.3)
        if server.sent() == sent:
            return sent


def _start(server: HubServer, manifest: Path, home: Path) -> subprocess.Popen[bytes]:
    words = (SCRIPT, "--manifest", manifest, "--model-path", home / "models", "--quiet")
    return subprocess.Popen(
        [sys.executable, "-I", *map(str, words)],
        env=os.environ | {"HF_ENDPOINT": server.hub},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _look(folder: Path, contents: dict[str, bytes], problems: list[str]) -> int:
    """Return how many files stand in their place; each must be whole, and a mark must mean all."""
    there = {place: (folder / place).read_bytes() for place in contents if (folder / place).exists()}
    problems += [f"{place} is not what it should be" for place, content in there.items() if content != contents[place]]
    if (folder / COMPLETE).exists() and len(there) < len(contents):
        problems.append("marked complete while files are missing")
    return len(there)


def main(rounds: int = 20, seed: int = 1) -> int:
    """Run so many rounds and print what they found."""
    found = []
    for number in range(seed, seed + rounds):
        with tempfile.TemporaryDirectory(prefix="multitalk-kill-") as home:
            found.append(run_round(number, Path(home)))
    wrong = [asdict(one) for one in found if one.problems]
    print(
        json.dumps(
            {
                "rounds": rounds,
                "killed": sum(one.killed for one in found),
                "with_part_of_it": sum(one.kept > 0 and bool(one.sent_after) for one in found),
                "with_all_of_it": sum(not one.sent_after for one in found),
                "problems": wrong,
                "found": [asdict(one) for one in found],
            }
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
