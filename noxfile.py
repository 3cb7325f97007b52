"""The checks: nox -s tests types lint wheel. All run in the environment nox itself runs in, so torch is there once.

What takes longer runs only when it is asked for: `nox -s slow` runs the tests that are marked so, `nox -s talk`
measures the embedded model, `nox -s long` its long videos, `nox -s kills` kills downloads and generations, `nox -s
resume` kills jobs and lets them continue, `nox -s soak` tells what the memory of a worker does over 200 jobs, `nox -s
show` shows clients, endpoint, worker and store at work together, `nox -s complete` reads checkpoints of full size, `nox
-s diffusers` runs diffusers' own tests of models, `nox -s runpod` runs the worker's tests with the next release of
RunPod's SDK, `nox -s studio` runs the studio's tests with Gradio, `nox -s extras` those of found people and voices,
`nox -s triton` runs our kernels in Triton's interpreter, `nox -s device` measures a card, `nox -s site` builds the site
of docs/, and `nox -s blocks` runs the command blocks of README and docs.
"""

from __future__ import annotations

import configparser
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import nox

nox.options.sessions = ["tests", "types", "lint", "wheel"]
nox.options.error_on_external_run = False

ROOT = Path(__file__).parent


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run pytest in two processes of one thread; arguments after -- are handed on, `-n 0` for one process."""
    # Faster than one process of two threads: much of the suite waits, or computes what threads cannot share. A file's
    # tests stay together, as they share what its fixtures made.
    # In the order of their names: files with few tests, which may be the longest, would come last otherwise.
    order = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    command = (sys.executable, "-m", "pytest", *order, "-m", "not slow", *session.posargs)
    # Compiled modules are kept, whatever the shell says: a hundred processes of tests read them, and the next run.
    session.run(*command, env={"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": None})


@nox.session(venv_backend="none")
def slow(session: nox.Session) -> None:
    """Run the tests that are marked as slow, which `nox -s tests` leaves out."""
    command = (sys.executable, "-m", "pytest", "-n", "2", "-m", "slow", *session.posargs)
    session.run(*command, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Run mypy, strict as setup.cfg says."""
    # Two processes: half a minute instead of one where nothing is cached.
    session.run(sys.executable, "-m", "mypy", "--num-workers", "2", *session.posargs)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Run ruff, as linter and as formatter, and codespell."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(sys.executable, "-m", "ruff", "format", "--check", ".")
    session.run(sys.executable, "-m", "codespell_lib")


@nox.session(venv_backend="none")
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it where the checkout is out of sight, compose every preset and run the demo there."""
    # setuptools would put into the wheel what an earlier build left here.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="multitalk-wheel-") as folder:
        _try_wheel(session, Path(folder).resolve())


@nox.session(venv_backend="none")
def kills(session: nox.Session) -> None:
    """Kill a download at twenty random points and `generate` at thirty, and start each again.

    Arguments after -- are rounds and first seed, of both.
    """
    session.run(sys.executable, "tests/support/kill_and_resume.py", *session.posargs)
    session.run(sys.executable, "tests/support/kill_generate.py", *session.posargs)


@nox.session(venv_backend="none")
def resume(session: nox.Session) -> None:
    """Kill jobs of five windows at sixty random points in four ways, and let each continue.

    Arguments after -- are rounds, first seed, and ways: generate, worker, batch, ulysses.
    """
    session.run(sys.executable, "tests/support/kill_windows.py", *session.posargs)


#: Kinds of `evaluate_tiny talk` for processes side by side, shares of equal work; what is timed comes alone, last.
SIDE_BY_SIDE = ("detector,vae,one,two,swapped,boxes,turbo,real", "silent,fps,long")
ALONE = "speed"


@nox.session(venv_backend="none")
def talk(session: nox.Session) -> None:
    """Run `python -m scripts.evaluate_tiny talk`, keep its report in docs/measured and hold it to its bars.

    Two processes of one thread share the kinds: faster than one of two threads. Arguments after -- are handed on.
    Nothing is written unless every kind was measured.
    """
    kept = ROOT / "docs" / "measured" / "talk.json"
    command = [sys.executable, "-m", "scripts.evaluate_tiny", "talk", *session.posargs, "--kinds"]
    running = [
        subprocess.Popen([*command, kinds], stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for kinds in SIDE_BY_SIDE
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        session.error("a share of the kinds could not be measured")
    outputs.append(subprocess.run([*command, ALONE], stdout=subprocess.PIPE, check=True).stdout)
    reports = [json.loads(output.decode().splitlines()[-1]) for output in outputs]
    report = {key: value for part in reports for key, value in part.items()}
    report["settings"] = [part["settings"] for part in reports]
    report["bars"] = [bar for part in reports for bar in part["bars"]]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    missed = [f"{bar['name']}: {bar['value']}, not {bar['bar']}" for bar in report["bars"] if not bar["holds"]]
    if missed:
        session.error("; ".join(missed))


#: Seconds of the long voices of `nox -s long`.
LONG_VOICES = (60, 180)


@nox.session(venv_backend="none")
def long(session: nox.Session) -> None:
    """Run `evaluate_tiny talk --long-voice` for 60 and 180 s, keep its report and hold it to its bars.

    20 clips each of one person and of two, side by side in two processes of one thread: hours on two quiet cores.
    Arguments after -- are handed on. What was measured stays in .nox/long: a run that is stopped, or that `-- --minutes
    N` ends early, is resumed by the next one. The report says how many clips it is of.
    """
    kept = ROOT / "docs" / "measured" / "long.json"
    figures = ROOT / ".nox" / "long"
    figures.mkdir(parents=True, exist_ok=True)
    overrides = [word for flag, word in itertools.pairwise(session.posargs) if flag == "--override"]
    report: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    missed = []
    for seconds in LONG_VOICES:
        name = ", ".join((f"{seconds} s", *overrides))
        command = [sys.executable, "-m", "scripts.evaluate_tiny", "talk", "--clips", "20", "--long-voice", str(seconds)]
        running = []
        for kind in ("long_one", "long_two"):
            details = figures / (re.sub(r"[^\w=.]+", "-", f"{name}-{kind}") + ".json")
            running.append(
                subprocess.Popen(
                    [*command, "--resume", "--details", str(details), *session.posargs, "--kinds", kind],
                    stdout=subprocess.PIPE,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            )
        outputs = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            session.error(f"voices of {seconds} s could not be measured")
        parts = [json.loads(output.decode().splitlines()[-1]) for output in outputs]
        bars = [bar for part in parts for bar in part["bars"]]
        report[name] = {key: value for part in parts for key, value in part.items()} | {
            "settings": [part["settings"] for part in parts],
            "bars": bars,
        }
        kept.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        missed += [f"{name}, {bar['name']}: {bar['value']}, not {bar['bar']}" for bar in bars if not bar["holds"]]
    if missed:
        session.error("; ".join(missed))


@nox.session(venv_backend="none")
def rehearse(session: nox.Session) -> None:
    """Rehearse every recipe for cards in full, and other choices with few blocks; keep the report in docs/measured.

    Two processes of one thread share the work. Fails where a rehearsal finds a fault. `-- 4` runs each fourth alone, of
    which nothing is kept.
    """
    every = int(session.posargs[0]) if session.posargs else 1
    command = (sys.executable, "-m", "engine.rehearsal.recipes")
    with tempfile.TemporaryDirectory() as folder:
        # Files, for a pipe that nobody reads yet would hold the second process up.
        files = [Path(folder) / f"{share}.jsonl" for share in range(2)]
        running = [
            subprocess.Popen(
                [*command, str(share * every), str(2 * every)],
                stdout=file.open("w"),
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for share, file in enumerate(files)
        ]
        statuses = [process.wait() for process in running]
        if any(statuses):
            session.error("a share of the rehearsals could not be run")
        outputs = [file.read_text("utf-8") for file in files]
    reports = sorted((json.loads(line) for part in outputs for line in part.splitlines()), key=_order)
    if every == 1:
        kept = ROOT / "docs" / "measured" / "rehearsal.json"
        kept.write_text("[\n" + ",\n".join(map(json.dumps, reports)) + "\n]\n", "utf-8")
    faults = [
        f"{' '.join(report['overrides'])}: {fault['where']} {fault['what']}"
        for report in reports
        for fault in report["faults"]
    ]
    if faults:
        session.error("; ".join(faults))


@nox.session(venv_backend="none")
def triton(session: nox.Session) -> None:
    """Hold the Triton kernels to torch's operators on a CPU, by Triton's interpreter; arguments after -- go to pytest.

    Installs Triton into a temporary folder: the CPU build of torch comes without it.
    """
    with tempfile.TemporaryDirectory(prefix="multitalk-triton-") as folder:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
        session.run(*pip, "install", "--quiet", "--no-deps", "--target", folder, "triton")
        tests = session.posargs or ["tests/network/test_fused.py", "tests/network/test_eight_bit.py"]
        env = {"PYTHONPATH": folder, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        session.run(sys.executable, "-m", "pytest", "-q", *tests, env=env)


@nox.session(venv_backend="none")
def diffusers(session: nox.Session) -> None:
    """Run diffusers' own tests of models on MultiTalk's network, forced to run on a CPU where there is no accelerator.

    `-- CHECKOUT` (or MULTITALK_DIFFUSERS) is a checkout of diffusers at the installed version's tag: its packages come
    without these tests. Further arguments go to pytest. MULTITALK_MIXINS=wan runs them on diffusers' Wan, and
    MULTITALK_MIXINS=both on each, prints the counts as JSON, and fails if a test fails on MultiTalk's network only.
    """
    checkout, *rest = [*session.posargs] or [os.environ.get("MULTITALK_DIFFUSERS", "")]
    if not (Path(checkout) / "tests" / "models" / "testing_utils").is_dir():
        session.error("give a checkout of diffusers: git clone https://github.com/huggingface/diffusers")
    # diffusers marks its tests with names of its own.
    pytest = (sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider")
    command = (*pytest, "tests/support/diffusers_mixins.py", *rest)
    env = {"MULTITALK_DIFFUSERS": str(Path(checkout).resolve()), "MULTITALK_MIXINS_FORCE": "1", "OMP_NUM_THREADS": "1"}
    if os.environ.get("MULTITALK_MIXINS") != "both":
        session.run(*command, env=env)
        return
    with tempfile.TemporaryDirectory(prefix="multitalk-mixins-") as folder:
        for kind in ("ours", "wan"):
            file = f"--junitxml={folder}/{kind}.xml"
            session.run(*command, file, env=env | {"MULTITALK_MIXINS": kind}, success_codes=[0, 1])
        git = ("git", "-C", checkout, "describe", "--always", "--tags")
        tests = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        session.run(sys.executable, "tests/support/mixin_counts.py", folder, tests or Path(checkout).name)


@nox.session(venv_backend="none")
def site(session: nox.Session) -> None:
    """Build the site of docs/ into site/, with every warning an error; `-- serve` shows it while pages are written.

    Needs the extra `docs`.
    """
    words = session.posargs or ("build", "--strict")
    # The theme's makers announce their next program on each build.
    session.run(sys.executable, "-m", "mkdocs", *words, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend="none")
def blocks(session: nox.Session) -> None:
    """Run every block of README and docs that can run, as a reader would; arguments after -- are pages."""
    session.run(sys.executable, "tests/support/doc_runs.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="none")
def device(session: nox.Session) -> None:
    """Measure this machine's card, keep its report and shares, and write docs/speed.md; arguments after -- go on."""
    from engine.planning.rates import file_of

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "device.json"
        command = (sys.executable, "-m", "engine", "bench", "device", "--keep", "--output", str(report))
        session.run(*command, *session.posargs, silent=True)
        name = json.loads(report.read_text("utf-8"))["parts"]["machine"]["rows"]["card"].get("name")
        if name is None:
            session.error("no card was measured")
        shutil.copyfile(report, ROOT / "docs" / "measured" / f"device-{file_of(name)}")
    session.run(sys.executable, "-m", "scripts.speed_tables", "--write")


def _order(report: dict[str, Any]) -> tuple[bool, list[str], int]:
    return bool(report["reckoned"]), report["overrides"], report["settings"]["speakers"]


@nox.session(venv_backend="none")
def soak(session: nox.Session) -> None:
    """Run `multitalk bench soak` and hold it to its bars; the report is kept in docs/measured once they are reached.

    Arguments after -- are handed on; a report of fewer jobs than the bench's own is not kept.
    """
    command = [sys.executable, "-m", "engine", "bench", "soak", *session.posargs]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if not report["holds"]:
        session.error(json.dumps(report))
    if report["jobs"] >= 200:
        kept = ROOT / "docs" / "measured" / "soak.json"
        kept.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


@nox.session(venv_backend="none")
def show(session: nox.Session) -> None:
    """Send jobs through both clients to an endpoint, cancel one, kill the worker of one, and fetch what was made."""
    session.run(sys.executable, "tests/support/show.py", *session.posargs)


@nox.session(venv_backend="none")
def complete(session: nox.Session) -> None:
    """Read sparse checkpoints of full size through the real reader; arguments after -- are handed on."""
    session.run(sys.executable, "-m", "pytest", "-s", "tests/support/full_size.py", *session.posargs)


#: Of RunPod's SDK, beside the one of constraints.txt: a candidate of 2.0. What in the tests asks the SDK for something.
SDK = "2.0.0rc2"
OF_THE_SDK = ("serving/worker", "serving/endpoint", "client", "docker")


#: A compiled stand-in for webrtcvad, which Resemblyzer needs and which has no wheels, for `nox -s extras`.
WEBRTCVAD = "webrtcvad-wheels>=2.0.14"
#: The checks of accessibility for `nox -s studio`.
AXE = "axe-core@4.14.1"


@nox.session(venv_backend="none")
def runpod(session: nox.Session) -> None:
    """Run the worker's tests with RunPod's SDK 2.0 in an environment of its own; arguments after -- go to pytest.

    The libraries are those of this environment, but for the SDK and what it newly needs.
    """
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    tests = [f"tests/{folder}" for folder in OF_THE_SDK]
    with tempfile.TemporaryDirectory(prefix="multitalk-sdk-") as folder:
        python = Path(folder).resolve() / "venv" / "bin" / "python"
        session.run(sys.executable, "-m", "venv", "--without-pip", str(python.parent.parent))
        _share_libraries(python)
        session.run(*pip, "--python", str(python), "install", "--quiet", f"runpod=={SDK}")
        session.run(str(python), "-c", f"import runpod; assert runpod.__version__ == {SDK!r}, runpod.__version__")
        # The checkout's editable install stays out with the other .pth files, and its configs with it.
        editable = ("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        session.run(*pip, "--python", str(python), "install", "--quiet", *editable)
        session.run(str(python), "-m", "pytest", "-q", *(session.posargs or tests), env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="none")
def studio(session: nox.Session) -> None:
    """Run the tests of the studio with Gradio in an environment of its own; arguments after -- go to pytest.

    axe-core comes from npm, where there is npm. Without Chromium the tests of the page are skipped.
    """
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    with tempfile.TemporaryDirectory(prefix="multitalk-studio-") as folder:
        python = Path(folder).resolve() / "venv" / "bin" / "python"
        session.run(sys.executable, "-m", "venv", "--without-pip", str(python.parent.parent))
        _share_libraries(python)
        constraints = ("--constraint", str(ROOT / "constraints.txt"))
        # Gradio's own packages lie before those of this environment, of which tomlkit is another release.
        editable = ("--no-build-isolation", "--editable", f"{ROOT}[ui]")
        session.run(*pip, "--python", str(python), "install", "--quiet", *constraints, *editable)
        env = {"OMP_NUM_THREADS": "1"}
        if shutil.which("npm"):
            session.run("npm", "install", "--silent", "--prefix", folder, AXE, external=True)
            env["AXE_JS"] = str(Path(folder) / "node_modules" / "axe-core" / "axe.min.js")
        session.run(str(python), "-m", "pytest", "-q", *(session.posargs or ["tests/serving/studio"]), env=env)


#: What `nox -s extras` runs: finders of people, who speaks when, and filters, all of it, also what is slow.
OF_THE_EXTRAS = (
    "tests/people",
    "tests/assembly/test_find_regions.py",
    "tests/stages/test_divide.py",
    "tests/plugins/test_vocals.py",
    "tests/cli/test_provenance_voices.py",
)


@nox.session(venv_backend="none")
def extras(session: nox.Session) -> None:
    """Run the tests that need [people], [diarise] and [vocals] in an environment of its own; after -- come tests.

    They are skipped elsewhere: OpenCV and numba are not installed by [dev].
    """
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    with tempfile.TemporaryDirectory(prefix="multitalk-extras-") as folder:
        python = Path(folder).resolve() / "venv" / "bin" / "python"
        session.run(sys.executable, "-m", "venv", "--without-pip", str(python.parent.parent))
        _share_libraries(python)
        install = (*pip, "--python", str(python), "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"))
        needs = [*_needs("people"), *_needs("diarise"), *_needs("vocals")]
        compiled = [need for need in needs if need.startswith("resemblyzer")]
        session.run(*install, "--no-deps", *compiled)
        session.run(*install, WEBRTCVAD, *(need for need in needs if need not in compiled))
        editable = ("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        session.run(*install, *editable)
        tests = session.posargs or OF_THE_EXTRAS
        every = ("-m", "slow or not slow")
        session.run(str(python), "-m", "pytest", "-q", *every, *tests, env={"OMP_NUM_THREADS": "1"})


def _needs(extra: str) -> list[str]:
    """Return the requirements of an extra in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    return [line.replace(" ", "") for line in setup["options.extras_require"][extra].splitlines() if line]


def _try_wheel(session: nox.Session, outside: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    session.run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(outside), str(ROOT))
    (built,) = outside.glob("*.whl")

    python = outside / "venv" / "bin" / "python"
    session.run(sys.executable, "-m", "venv", "--without-pip", str(outside / "venv"))
    session.run(*pip, "--python", str(python), "install", "--quiet", "--no-deps", str(built))
    site = _share_libraries(python)

    examples = site / "engine" / "examples"
    script = outside / "compose_every_preset.py"
    script.write_text(_COMPOSE_EVERY_PRESET, "utf-8")
    work = outside / "work"
    work.mkdir()
    # A PYTHONPATH of the caller could let the checkout in by the back door.
    clean = dict.fromkeys(("PYTHONPATH", "PYTHONHOME"))
    with session.chdir(work):
        session.run(str(python), str(script), str(outside / "venv"), env=clean)
        session.run(
            *(str(python.with_name("multitalk")), "generate", "--prompt", "Two people talk.", "--seed", "7"),
            *("--image", str(examples / "two.png")),
            *("--audio", str(examples / "left.flac"), "--audio", str(examples / "right.flac")),
            *("--frames", "9", "model=tiny", "source=packaged", "sampler=turbo", "sink.folder=videos"),
            env=clean,
        )
    if not list((work / "videos").glob("*.mp4")):
        session.error("the installed package made no video")


def _share_libraries(python: Path) -> Path:
    # A .pth inside a shared folder is not read, so the editable install of the checkout stays out.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = python.parent.parent / "lib" / version / "site-packages"
    # Those of this environment, and of one that it shares libraries with itself.
    shared = dict.fromkeys(path for path in sys.path if Path(path).name == "site-packages")
    (site / "shared.pth").write_text("".join(f"{path}{os.linesep}" for path in shared), "utf-8")
    return site


_COMPOSE_EVERY_PRESET = textwrap.dedent(
    """
    import sys
    from pathlib import Path

    import engine
    import plugins

    for package in (engine, plugins):
        assert Path(package.__file__).is_relative_to(sys.argv[1]), package.__file__

    from importlib.resources import files

    from engine.assembly.compose import compose
    from engine.plugin.manager import installed

    assert not installed().broken, installed().broken
    presets = [
        f"{folder.name}={preset.name.removesuffix('.yaml')}"
        for folder in files("engine.conf").iterdir() if folder.is_dir()
        for preset in folder.iterdir() if preset.name.endswith(".yaml")
    ]
    assert presets, "no preset is in the wheel"
    for preset in sorted(presets):
        # The embedded model, which is the default, has no bundle for every sampler.
        compose([preset, *(["model=multitalk"] if preset.startswith("sampler=") else [])])
    print(f"composed {len(presets)} presets from {Path(engine.__file__).parent}")
    """
)
