"""What many tests share: the folder of recordings and the models that stand in it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import longcat_recordings
import pytest
from recordings import HOME, Recordings, TinyNetwork

# The time an example takes is the machine's, not the code's; and a red test must be red again.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

# What is tested is the engine, not the settings, recipes and colours of whoever runs the tests.
os.environ["MULTITALK_CONFIG"] = ""
for _name in ("OVERRIDES", "RECIPE", "RECIPES", "CONFIG_DIR", "LOG_FORMAT", "LOG_LEVEL"):
    os.environ.pop(f"MULTITALK_{_name}", None)
for _name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR"):
    os.environ.pop(_name, None)

#: Test argument -> the files of the golden folder it takes its cases from.
PATTERNS = {
    "forward_recording": "forward_*",
    "quant_recording": "quant_*_forward",
    "loop_recording": "loop_*",
    "infinite_loop_recording": "infinite_loop_*",
    "flashtalk_loop_recording": "flashtalk_[los]*",
    "flashtalk_audio_recording": "flashtalk_audio*",
    "flashtalk_timesteps_recording": "flashtalk_timesteps*",
    "flashtalk_color_recording": "flashtalk_color*",
}


@pytest.fixture(scope="session")
def tiny() -> TinyNetwork:
    """The tiny network's recipe; every test builds its own model from it."""
    return TinyNetwork()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", default=str(HOME), help="folder of golden recordings to run")
    longcat = str(longcat_recordings.HOME)
    parser.addoption("--golden-longcat", metavar="DIR", default=longcat, help="folder of LongCat's recordings to run")


@pytest.fixture(scope="module", autouse=True)
def only_the_files_own_objects_are_collected() -> None:
    """Take what is there before a file's tests out of the garbage collector's sight.

    The collected tests, a million objects, and the imported modules live as long as the session. Engines collect
    garbage when they let go of weights: that took up to four seconds each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def recordings(pytestconfig: pytest.Config) -> Recordings:
    """The folder given with --golden."""
    return Recordings(Path(pytestconfig.getoption("--golden")))


@pytest.fixture(scope="session")
def longcat(pytestconfig: pytest.Config) -> longcat_recordings.LongcatRecordings:
    """The folder given with --golden-longcat."""
    return longcat_recordings.LongcatRecordings(Path(pytestconfig.getoption("--golden-longcat")))


@pytest.fixture(scope="session")
def longcat_home() -> longcat_recordings.LongcatRecordings:
    """LongCat's recordings that stand in the repository, whatever --golden-longcat says."""
    return longcat_recordings.LongcatRecordings(longcat_recordings.HOME)


@pytest.fixture(scope="session")
def home_recordings() -> Recordings:
    """The recordings that stand in the repository, whatever --golden says."""
    return Recordings(HOME)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a golden folder without a recording: every golden test would be skipped and the run be green."""
    folder = Path(config.getoption("--golden"))
    if not any(Recordings(folder).names(pattern) for pattern in PATTERNS.values()):
        raise pytest.UsageError(f"--golden {folder} holds no recording: {', '.join(PATTERNS.values())}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test with an argument `<kind>_recording` one case per matching file of the golden folder."""
    for argument, pattern in PATTERNS.items():
        if argument in metafunc.fixturenames:
            folder = Path(metafunc.config.getoption("--golden"))
            metafunc.parametrize(argument, Recordings(folder).names(pattern))
    for argument, pattern in longcat_recordings.PATTERNS.items():
        if argument in metafunc.fixturenames:
            folder = Path(metafunc.config.getoption("--golden-longcat"))
            metafunc.parametrize(argument, Recordings(folder).names(pattern))
