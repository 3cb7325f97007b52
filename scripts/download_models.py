"""Download a model's published weights: `multitalk models pull` for a machine that has only huggingface-hub.

    python scripts/download_models.py [--model-path FOLDER] [--preset NAME]

Neither torch nor the engine's other dependencies must be installed: of the engine this uses only `engine/hub`, from
this checkout or from an installed engine. docs/models.md says what is downloaded and where it is stored.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def main() -> int:
    """Read the command line and download."""
    if "engine" not in sys.modules:
        # The package without its __init__, which imports what may not be installed here.
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
        print("download_models.py: stopped; run the same command again to resume", file=sys.stderr)
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
