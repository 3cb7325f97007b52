"""Train the embedded model: every part in order, resuming where it stopped.

    python -m scripts.train_tiny --run RUN                    # from nothing
    python -m scripts.train_tiny --run RUN --from-shipped     # further, from the weights in the package

Finished parts in RUN are skipped, stopped ones are resumed. The model is written to RUN/model/tiny; try it with
`python -m scripts.evaluate_tiny talk --override source=volume --override source.path=RUN/model`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "engine" / "weights" / "tiny"
PROCESSES = 2


def run(*words: str | Path, processes: int = 1) -> None:
    """Run a module of this package, in one torch.distributed group if `processes` is more than 1."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    # After "--", otherwise the launcher would treat --run as its own option.
    arguments = ["--"] * bool(launch) + [str(word) for word in words[1:]]
    command = [sys.executable, *launch, "-m", f"scripts.train_tiny.{words[0]}", *arguments]
    print("$", *command[1:], flush=True)
    # The threads of two processes would compete for the cores.
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1" if processes > 1 else "2"})


def encode(vae: Path, audio: Path, out: Path, clips: int, held_out: int) -> None:
    """Encode the clips of both splits, divided among processes."""
    encoders: list[str | Path] = ["latents", "--vae", vae, "--audio", audio, "--out", out]
    # Copies the encoders first, before several processes would do it.
    run(*encoders, "--seeds", "0", "0")
    share = clips // PROCESSES // 20 * 20
    ranges = [(n * share, clips if n == PROCESSES - 1 else (n + 1) * share) for n in range(PROCESSES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"scripts.train_tiny.{encoders[0]}", *map(str, encoders[1:]), "--seeds"]
    running = [subprocess.Popen([*command, str(first), str(end)], env=environment) for first, end in ranges]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"encoding ended with exit status {max(codes, key=abs)}; run this again to resume")
    run(*encoders, "--seeds", "0", str(held_out), "--split", "held_out")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--from-shipped", action="store_true", help="keep the audio encoder, train the others further")
    parser.add_argument("--clips", type=int, default=3400)
    parser.add_argument("--steps", type=int, default=7000, help="of the transformer")
    parser.add_argument("--settle-steps", type=int, default=850, help="of it on whole windows, then")
    parser.add_argument("--turbo-steps", type=int, default=600)
    arguments = parser.parse_args()
    folder: Path = arguments.run
    latents, start = folder / "latents", []
    vae, audio = folder / "vae", folder / "audio_encoder"
    if arguments.from_shipped:
        audio, start = SHIPPED / "audio_encoder", ["--start", str(SHIPPED)]
    if not audio.exists():
        run("audio", "--run", folder)
    if not vae.exists():
        # First short pieces, from which it learns quickly; then long ones, over which it must not drift.
        finished = (SHIPPED if arguments.from_shipped else folder / "short") / "vae"
        if not finished.exists():
            run("vae", "--run", finished.parent, "--threads", "2")
        run("vae", "--run", folder, "--start", finished, "--seed", "11", "--threads", "2")
    encode(vae, audio, latents, arguments.clips, held_out=20)
    learning: list[str | Path] = ["--run", folder, "--data", latents]
    run("transformer", *learning, "--steps", str(arguments.steps), *start, processes=PROCESSES)
    settled = folder / "settled"
    learning = ["--run", settled, "--data", latents]
    steady = ["--settle", "--rate", "0.001", "--steps", str(arguments.settle_steps)]
    run("transformer", *learning, "--start", folder, *steady, processes=PROCESSES)
    run("turbo", *learning, "--steps", str(arguments.turbo_steps), processes=PROCESSES)
    model = folder / "model" / "tiny"
    run("assemble", model, *learning, "--loras", settled / "loras")


if __name__ == "__main__":
    main()
