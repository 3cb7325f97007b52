"""Get a model's published weights: `multitalk models pull` for a machine that has huggingface-hub and nothing else.

    python scripts/download_models.py [--model-path FOLDER] [--preset NAME]

Neither torch nor what the engine needs has to be installed: of the engine this reads `engine/hub`, from the checkout
it lies in or from where the engine is installed. docs/models.md says what it gets and where it puts it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def main() -> int:
    """Read the command line and download."""
    if "engine" not in sys.modules:
        # The package without its door, which asks for what is not installed here.
        package = ModuleType("engine")
        package.__path__ = [str(_engine())]
        sys.modules["engine"] = package
    from engine.cli.models import download
    from engine.errors import EngineError

    try:
        return download(sys.argv[1:], "download_models.py")
    except EngineError as error:
        print(f"download_models.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("download_models.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _engine() -> Path:
    beside = Path(__file__).resolve().parent.parent / "engine"
    if beside.is_dir():
        return beside
    spec = importlib.util.find_spec("engine")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("download_models.py: run it from a checkout of the engine, or with the engine installed")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    sys.exit(main())
