"""Decision 017: the package is imported as `engine` and `plugins`, and both are ours alone."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING

import engine
import plugins
from engine.doctor.checks import CheckContext, check_imports

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parent.parent
NAMES = {"engine", "plugins"}


def test_the_wheel_takes_these_two_names_and_no_third() -> None:
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", "utf-8")
    packages = setup["options"]["packages"].split()
    assert {package.partition(".")[0] for package in packages} == NAMES
    assert {package for package in packages if "." not in package} == NAMES
    assert "py_modules" not in setup["options"]


def test_both_come_from_one_place_which_is_ours() -> None:
    assert Path(engine.__file__) == ROOT / "engine" / "__init__.py"
    assert Path(plugins.__file__ or "") == ROOT / "plugins" / "__init__.py"


def test_nothing_that_is_installed_here_has_either_name() -> None:
    owners = packages_distributions()
    assert {owner for name in NAMES for owner in owners[name]} == {"multitalk-engine"}
    # Also no single files, which are not listed above if a distribution names its packages itself.
    for distribution in distributions():
        if distribution.name != "multitalk-engine":
            taken = {str(file) for file in distribution.files or () if re.match(r"(engine|plugins)(/|\.py)", str(file))}
            assert not taken, distribution.name


def test_the_doctor_finds_both_names_well() -> None:
    (found,) = check_imports(CheckContext(["model=tiny", "device=cpu"]))
    assert found.state == "ok"
    assert set(found.details) == NAMES


def test_the_doctor_names_another_distribution_that_installs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "wardrobe-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: wardrobe\nVersion: 1.0\n", "utf-8")
    (information / "top_level.txt").write_text("plugins\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = check_imports(CheckContext(["model=tiny", "device=cpu"]))
    assert found.state == "broken"
    assert "wardrobe" in found.what
    assert "environment of its own" in found.hint


def test_the_doctor_names_a_folder_that_hides_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "__init__.py").touch()
    context = CheckContext(["model=tiny", "device=cpu"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugins"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = check_imports(context)
    assert found.state == "broken"
    assert str(tmp_path / "plugins") in found.what
    assert "PYTHONPATH" in found.hint


def test_a_checkout_beside_an_installed_package_finds_its_presets() -> None:
    # After `pip install .`, Python takes `engine` from the folder it is started in, where no finder maps engine.conf.
    script = (
        "import sys; sys.meta_path = [one for one in sys.meta_path if 'editable' not in repr(one)]; "
        "from importlib.resources import files; print(files('engine.conf') / 'config.yaml')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve() == ROOT / "conf" / "config.yaml"
