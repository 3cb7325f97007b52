"""`python -m scripts.evaluate_tiny NAME [flags]`: run one evaluation and print its figures as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.cli.bench import Bench, run_bench
from engine.errors import EngineError
from scripts.evaluate_tiny import caches, dubbing, quant, talk, timeline

EVALUATIONS = {
    "talk": Bench(
        "Does the embedded model talk? Lips, binding, lags, colours, seams, turbo, seconds.", lambda: talk.run
    ),
    "quant": Bench("Quantised weights against the plain ones on a CPU: errors, lips, bytes.", lambda: quant.run),
    "table": Bench("Write the measured report of `quant` into its page.", lambda: quant.write_table),
    "caches": Bench("Step caches and guidance intervals: forwards, lips, sharpness.", lambda: caches.run),
    "caches-table": Bench("Write the measured report of `caches` into its page.", lambda: caches.write_table),
    "timeline": Bench("Cuts in pauses against fixed cuts, and moods that change.", lambda: timeline.run),
    "timeline-table": Bench("Write the measured report of `timeline` into its page.", lambda: timeline.write_table),
    "dub": Bench("Dubbed drawn videos: lips, kept pixels, heads that follow, cuts.", lambda: dubbing.run),
    "dub-table": Bench("Write the measured report of `dub` into its page.", lambda: dubbing.write_table),
    "magnitudes": Bench("The magnitudes of a model that cache=magcache needs.", lambda: caches.magnitudes),
}


def main(words: Sequence[str]) -> int:
    """Run the evaluation named in `words`. Returns 0, or 2 for an error, which is printed in one line."""
    try:
        return run_bench(words, EVALUATIONS, "python -m scripts.evaluate_tiny")
    except EngineError as error:
        print(f"evaluate_tiny: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
