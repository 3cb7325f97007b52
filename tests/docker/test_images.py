"""The images' recipes, RunPod's files and the script that pushes hold together; nothing here builds an image."""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from dockerfiles import DOCKERFILES, ROOT, Instruction, environment, parse, stages, values
from elf_file import library

from engine.planning.gpus import cards

INSTRUCTIONS = {
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "RUN",
    "SHELL",
    "USER",
    "WORKDIR",
}
#: RunPod's pools of cards -> what is in them by the driver's names, by its pages references/gpu-types and
#: flash/configuration/gpu-types and by `runpod.apps.gpu` of its SDK 2.0.0rc2, which disagree about single cards only.
POOLS = {
    "AMPERE_16": {"NVIDIA RTX A4000", "NVIDIA RTX A4500", "NVIDIA RTX 4000 Ada Generation"},
    "AMPERE_24": {"NVIDIA RTX A5000", "NVIDIA L4", "NVIDIA GeForce RTX 3090"},
    "ADA_24": {"NVIDIA GeForce RTX 4090"},
    "ADA_32_PRO": {"NVIDIA GeForce RTX 5090"},
    "AMPERE_48": {"NVIDIA A40", "NVIDIA RTX A6000"},
    "ADA_48_PRO": {"NVIDIA RTX 6000 Ada Generation", "NVIDIA L40", "NVIDIA L40S"},
    "AMPERE_80": {"NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"},
    "ADA_80_PRO": {"NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"},
    "BLACKWELL_96": {"NVIDIA RTX PRO 6000 Blackwell Server Edition"},
    "HOPPER_141": {"NVIDIA H200"},
    "BLACKWELL_180": {"NVIDIA B200"},
}
#: Of drivers, from the image's on. Matching is exact, and hosts with any of them were reported in 2026.
CUDA_VERSIONS = ["13.0", "13.1", "13.2", "13.3", "13.4"]
DEPLOY = (ROOT / "docs" / "deploy.md").read_text("utf-8")
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text("utf-8"))
HUB_TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text("utf-8"))


def ignored(path: str) -> bool:
    """Say whether .dockerignore keeps `path` out: the last pattern that matches it or a folder above it decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            above = [path, *(str(parent) for parent in Path(path).parents)]
            if any(_matches(each, pattern) for each in above):
                out = not line.startswith("!")
    return out


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(Path(path).name, pattern[3:])
    # A star does not reach over a slash.
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatch, parts, wanted))


def test_parser_joins_lines_and_skips_comments() -> None:
    text = "# a\nRUN one \\\n    # b\n    && two\n\nUSER 1\n"
    assert parse(text) == [Instruction("RUN", "one && two"), Instruction("USER", "1")]


@pytest.mark.parametrize("path", DOCKERFILES)
def test_recipe_has_known_instructions_alone(path: str) -> None:
    assert {instruction.name for instruction in parse((ROOT / path).read_text("utf-8"))} <= INSTRUCTIONS


@pytest.mark.parametrize("path", DOCKERFILES)
def test_base_is_a_build_argument_with_a_tag(path: str) -> None:
    first = parse((ROOT / path).read_text("utf-8"))[0]
    assert first.name == "ARG"
    name, _, image = first.value.partition("=")
    assert re.fullmatch(r"[a-z/]+:[\w.-]+", image)
    assert "latest" not in image
    assert all(stage[0].value.split()[0] == f"${{{name}}}" for stage in stages(path))


@pytest.mark.parametrize("path", DOCKERFILES)
def test_last_user_is_a_number_and_not_root(path: str) -> None:
    # Kubernetes' runAsNonRoot cannot judge a name.
    assert int(values(stages(path)[-1], "USER")[-1]) > 0


COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|build-essential|make|cmake|(?:lib)?python3?-dev|cuda-nvcc\S*|git)(?=\s)")


@pytest.mark.parametrize("path", DOCKERFILES)
def test_nothing_is_compiled_while_an_image_is_built(path: str) -> None:
    text = " ".join(values(stages(path)[-1], "RUN"))
    # Without it pip would look for a compiler where a wheel is missing.
    for command in re.findall(r"pip install [^&]*", text):
        assert "--only-binary :all:" in command or "--no-index" in command
    assert "-devel-" not in (ROOT / path).read_text("utf-8")
    assert not COMPILERS.search(" ".join(values(stages(path)[0], "RUN")))


def test_image_for_cards_has_what_triton_compiles_with_and_tries_it() -> None:
    # torch for CUDA brings Triton along, and runs kernels of it without being told to (torch/_native/ops).
    last = stages("Dockerfile")[-1]
    assert set(COMPILERS.findall(" ".join(values(last, "RUN")))) == {"gcc", "libpython3-dev"}
    assert any("check_image.py --compiler" in command for command in values(last, "RUN"))


def test_image_for_cpus_has_no_compiler() -> None:
    assert not COMPILERS.search(" ".join(values(stages("docker/Dockerfile.cpu")[-1], "RUN")))


@pytest.mark.parametrize("path", DOCKERFILES)
def test_image_is_checked_by_the_user_who_will_work_in_it(path: str) -> None:
    last = stages(path)[-1]
    checked = [at for at, each in enumerate(last) if each.name == "RUN" and "check_image.py" in each.value]
    assert checked
    assert min(checked) > [at for at, each in enumerate(last) if each.name == "USER"][-1]
    assert any("docker/check_image.py" in value for value in values(last, "COPY"))


CHECK_IMAGE = runpy.run_path(str(ROOT / "docker" / "check_image.py"))


def test_a_library_for_another_cuda_than_torchs_is_found(tmp_path: Path) -> None:
    library(tmp_path / "xformers" / "_C.so", "libc10.so", "libcudart.so.12")
    library(tmp_path / "torchao" / "_C.so", "libcudart.so.13")
    library(tmp_path / "soxr" / "soxr.so.1", "libc.so.6")
    (tmp_path / "script.so").write_text("INPUT(libc.so.6)")
    (line,) = CHECK_IMAGE["misfits"](tmp_path, "13.0")
    assert line == "xformers/_C.so needs libcudart.so.12, and torch brings CUDA 13.0"


def test_a_compiler_without_headers_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("gcc") is None and shutil.which("clang") is None:
        pytest.skip("no C compiler is installed")
    with pytest.raises(RuntimeError, match=r"Python\.h"):
        CHECK_IMAGE["compile_extension"](str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no C compiler"):
        CHECK_IMAGE["compile_extension"]()


def test_memory_of_the_card_is_set_up_before_cuda_starts() -> None:
    # The name that torch 2.13 reads for all devices; under PYTORCH_CUDA_ALLOC_CONF it is kept for older settings.
    assert environment("Dockerfile")["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize("path", DOCKERFILES)
def test_apt_leaves_no_lists_and_pip_no_cache(path: str) -> None:
    for stage in stages(path):
        for command in values(stage, "RUN"):
            assert ("apt-get install" in command) <= ("rm -rf /var/lib/apt/lists/*" in command)
            assert ("pip install" in command or "pip wheel" in command) <= ("--no-cache-dir" in command)


@pytest.mark.parametrize("path", DOCKERFILES)
def test_worker_is_started_in_exec_form_below_tini(path: str) -> None:
    last = stages(path)[-1]
    assert json.loads(values(last, "ENTRYPOINT")[0]) == ["tini", "--"]
    assert json.loads(values(last, "CMD")[0]) == ["multitalk", "runpod"]
    options, _, check = values(last, "HEALTHCHECK")[0].partition(" CMD ")
    assert json.loads(check) == ["/opt/multitalk/healthcheck.sh"]
    assert "--timeout=" in options
    assert os.access(ROOT / "docker" / "healthcheck.sh", os.X_OK)


@pytest.mark.parametrize("path", DOCKERFILES)
def test_what_is_copied_exists_and_is_not_ignored(path: str) -> None:
    for stage in stages(path):
        for value in values(stage, "COPY"):
            if "--from=" not in value:
                for source in value.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert not ignored(source), source


@pytest.mark.parametrize("path", DOCKERFILES)
def test_what_comes_from_the_builder_was_made_there(path: str) -> None:
    built = " ".join(values(stages(path)[0], "RUN"))
    for value in values(stages(path)[-1], "COPY"):
        if "--from=builder" in value:
            for source in value.split()[1:-1]:
                name = source.removeprefix("/build/")
                assert name in {"heavy.txt", "libraries.txt", "constraints.txt"} or source in built


@pytest.mark.parametrize("path", DOCKERFILES)
def test_big_and_rarely_changed_layers_come_first(path: str) -> None:
    text = " ".join(f"{instruction.name} {instruction.value}" for instruction in stages(path)[-1])
    order = ("apt-get install", "heavy.txt", "libraries.txt", "/wheel/*.whl", "ENV PYTHONUNBUFFERED", "LABEL")
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "tests/docker/test_images.py", "docs/deploy.md", ".env", "models/a.bin"]
)
def test_a_checkouts_other_files_stay_out(path: str) -> None:
    assert ignored(path)


def test_compiled_files_and_other_scripts_stay_out() -> None:
    assert ignored("engine/__pycache__/cli.cpython-311.pyc")
    assert ignored("scripts/make_examples.py")
    assert not ignored("engine/weights/tiny/vae/config.json")


def test_both_images_differ_only_in_base_and_choices() -> None:
    worker, cpu = (environment(path) for path in DOCKERFILES)
    differing = {name for name in worker if cpu.get(name) != worker[name]}
    assert differing == {
        "MULTITALK_OVERRIDES",
        "PYTORCH_ALLOC_CONF",
        "RUNPOD_MIN_CUDA_VERSION",
        "RUNPOD_GPU_BENCHMARK_TIMEOUT",
        "RUNPOD_GPU_TEST_TIMEOUT",
    }
    assert cpu["MULTITALK_OVERRIDES"] == "model=tiny"


def test_images_choose_no_recipe() -> None:
    # It would count as somebody's choice, and overrule what the worker takes for the model.
    for path in DOCKERFILES:
        assert "MULTITALK_RECIPE" not in environment(path)


def test_sdk_does_not_log_answers() -> None:
    for path in DOCKERFILES:
        assert environment(path)["RUNPOD_LOG_LEVEL"] == "INFO"


def test_cuda_of_base_driver_check_and_hub_is_the_same() -> None:
    image = parse((ROOT / "Dockerfile").read_text("utf-8"))[0].value
    version = environment("Dockerfile")["RUNPOD_MIN_CUDA_VERSION"]
    assert f"nvidia/cuda:{version}." in image
    # Matching is exact, so later drivers have to be listed, without a gap.
    assert CUDA_VERSIONS[0] == version
    assert HUB["config"]["allowedCudaVersions"] == HUB_TESTS["config"]["allowedCudaVersions"] == CUDA_VERSIONS
    for page in (DEPLOY, (ROOT / "README.md").read_text("utf-8")):
        assert f"{version} to {CUDA_VERSIONS[-1]}" in page


def test_hub_takes_every_pool_with_a_card_that_plans_know() -> None:
    known = {card.driver for card in cards()}
    assert known <= {name for names in POOLS.values() for name in names}
    assert set(HUB["config"]["gpuIds"].split(",")) == {pool for pool, names in POOLS.items() if names & known}


def test_pools_are_those_of_the_sdk() -> None:
    # Of 2.0, which `nox -s runpod` installs.
    sdk = pytest.importorskip("runpod.apps.gpu")
    assert POOLS.keys() == {group.value for group in sdk.GpuGroup.all()}
    for group in sdk.GpuGroup.all():
        assert POOLS[group.value] & set(group.device_names())


def test_cuda_versions_of_the_sdk_are_among_the_hubs() -> None:
    spec = pytest.importorskip("runpod.apps.spec")
    assert {version for version in spec.CUDA_VERSIONS if version.startswith("13.")} <= set(CUDA_VERSIONS)


def test_image_lists_what_the_engine_requires() -> None:
    made = runpy.run_path(str(ROOT / "docker" / "requirements.py"))
    required = made["requirements"](
        "[options]\ninstall_requires =\n  b >=1\n[options.extras_require]\nx =\n  a\ny=\n  c", ["x"]
    )
    assert required == ["a", "b >=1"]
    assert made["heavy"](["torch >=2", "a"], "# note\na==1\ntorch==2.1\n") == ["torch==2.1"]
    with pytest.raises(ValueError, match="does not pin torchao"):
        made["heavy"](["torchao >=0.1"], "torch==2.1")


@pytest.mark.parametrize("extras", [["worker"], ["quant", "runpod", "s3"]])
def test_image_pins_what_it_installs_first(extras: list[str]) -> None:
    made = runpy.run_path(str(ROOT / "docker" / "requirements.py"))
    required = made["requirements"]((ROOT / "setup.cfg").read_text("utf-8"), extras)
    pins = made["heavy"](required, (ROOT / "constraints.txt").read_text("utf-8"))
    assert [pin.partition("==")[0] for pin in pins] == ["numpy", "torch", "torchao"]
    assert any("runpod" in line for line in required)


def test_hub_builds_the_one_image_that_is_tested() -> None:
    # The Hub takes what stands in the root, or what stands in .runpod in its place.
    assert {path.name for path in (ROOT / ".runpod").iterdir()} == {"hub.json", "tests.json"}
    assert {path.as_posix() for path in (Path("Dockerfile"), Path("handler.py")) if (ROOT / path).is_file()} == {
        "Dockerfile",
        "handler.py",
    }


def test_hub_entry_is_complete() -> None:
    assert HUB.keys() >= {"title", "description", "type", "category", "config"}
    assert HUB["type"] == "serverless"
    assert HUB["category"] == "video"
    config = HUB["config"]
    assert config["runsOn"] == "GPU"
    assert config["containerDiskInGb"] > 0
    for entry in config["env"]:
        assert entry.keys() == {"key", "input"}
        assert entry["input"].keys() >= {"name", "type", "description"}
        assert entry["input"]["type"] in {"string", "number", "boolean", "huggingface"}


def test_hub_asks_for_documented_variables() -> None:
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", DEPLOY.partition("### Environment")[2].partition("## 5.")[0]))
    asked = {entry["key"] for entry in HUB["config"]["env"]}
    preset = {name for preset in HUB["config"]["presets"] for name in preset["defaults"]}
    assert asked <= documented
    assert preset <= asked
    for path in DOCKERFILES:
        assert environment(path).keys() - {"PATH", "PYTHONUNBUFFERED", "PIP_DISABLE_PIP_VERSION_CHECK"} <= documented


def test_documented_values_are_the_images() -> None:
    rows = dict(re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \| `([^`]+)` \|", DEPLOY, re.MULTILINE))
    chosen = environment("Dockerfile")
    assert {name: chosen[name] for name in rows} == rows


def test_hub_defaults_are_the_images() -> None:
    chosen = environment("Dockerfile")
    for entry in HUB["config"]["env"]:
        default = entry["input"].get("default")
        # An empty default would reach the worker as an empty variable; for the image's own that is the same.
        assert default is None or chosen.get(entry["key"], "") == str(default)


def test_hub_test_needs_no_weights() -> None:
    (test,) = HUB_TESTS["tests"]
    assert test["input"] == {"action": "selftest"}
    assert test["timeout"] >= 60_000
    given = {entry["key"]: entry["value"] for entry in HUB_TESTS["config"]["env"]}
    assert given["MULTITALK_OVERRIDES"] == "model=tiny"
    assert {"gpuTypeId", "gpuCount"} <= HUB_TESTS["config"].keys()


def test_handler_starts_the_worker() -> None:
    tree = ast.parse((ROOT / "handler.py").read_text("utf-8"))
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "main"]
    assert ast.literal_eval(call.args[0]) == ["runpod"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean git checkout with the script and what it reads."""
    folder = tmp_path / "checkout"
    for name in ("scripts/build_and_push.sh", "Dockerfile", "setup.cfg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "Begin")
    git(folder, "remote", "add", "origin", "https://someone:s3cret@example.org/engine.git")
    return folder


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def push(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(folder / "scripts" / "build_and_push.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)


@pytest.mark.parametrize(
    ("words", "image"),
    [(["anna"], "anna/multitalk-runpod:latest"), (["ghcr.io/anna", "v1"], "ghcr.io/anna/multitalk-runpod:v1")],
)
def test_dry_run_prints_what_would_be_built(checkout: Path, words: list[str], image: str) -> None:
    ended = push(checkout, "--dry-run", *words)
    assert ended.returncode == 0, ended.stderr
    command = shlex.split(ended.stdout)
    assert command[:3] == ["docker", "buildx", "build"]
    assert command[command.index("--tag") + 1] == image
    assert f"REVISION={git(checkout, 'rev-parse', 'HEAD').strip()}" in command
    assert command[-2:] == ["--push", "."]


def test_dry_run_shows_no_password_of_the_remote(checkout: Path) -> None:
    assert "SOURCE=https://example.org/engine.git" in push(checkout, "--dry-run", "anna").stdout


def test_further_build_arguments_are_handed_on(checkout: Path) -> None:
    ended = push(checkout, "--dry-run", "anna", BUILD_ARGS="--build-arg CUDA_IMAGE=nvidia/cuda:1")
    assert "CUDA_IMAGE=nvidia/cuda:1" in shlex.split(ended.stdout)


@pytest.mark.parametrize("name", ["setup.cfg", "new.txt"])
def test_push_refuses_a_checkout_with_changes(checkout: Path, name: str) -> None:
    with (checkout / name).open("a") as file:
        file.write("\n")
    ended = push(checkout, "--dry-run", "anna")
    assert ended.returncode == 2
    assert name in ended.stderr
    assert not ended.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no USER"),
        (["Anna"], "'Anna' cannot be an account"),
        (["anna", "a b"], "'a b' cannot be a tag"),
        (["anna", ""], "'' cannot be a tag"),
        (["anna", "v1", "more"], "more than USER and TAG given: more"),
        (["--puhs", "anna"], "unknown flag --puhs"),
    ],
)
def test_push_says_what_is_wrong_with_its_words(checkout: Path, words: list[str], told: str) -> None:
    ended = push(checkout, *words)
    assert ended.returncode == 2
    assert told in ended.stderr


CHECK = ["sh", str(ROOT / "docker" / "healthcheck.sh")]


def test_a_running_worker_is_healthy(tmp_path: Path) -> None:
    worker = tmp_path / "bin" / "multitalk"
    worker.parent.mkdir()
    worker.write_text("#!/bin/sh\nread -r line\n")
    worker.chmod(0o755)
    with subprocess.Popen([worker, "runpod"], stdin=subprocess.PIPE) as running:
        assert subprocess.run(CHECK, check=False).returncode == 0
        running.communicate()


@pytest.mark.parametrize(
    ("process", "words", "state", "healthy"),
    [
        (7, "/opt/venv/bin/python3 /opt/venv/bin/multitalk runpod", "S (sleeping)", True),
        (7, "/opt/venv/bin/python3 /opt/venv/bin/multitalk runpod", "Z (zombie)", False),
        (7, "/opt/venv/bin/python3 /opt/venv/bin/multitalk runpod", "T (stopped)", False),
        (1, "tini -- /opt/venv/bin/multitalk runpod", "S (sleeping)", False),
        (7, "/bin/sh /opt/multitalk/healthcheck.sh", "R (running)", False),
    ],
)
def test_health_is_the_life_of_the_worker(tmp_path: Path, process: int, words: str, state: str, healthy: bool) -> None:
    folder = tmp_path / str(process)
    folder.mkdir()
    (folder / "cmdline").write_text(words.replace(" ", "\0") + "\0")
    (folder / "status").write_text(f"Name:\tpython3\nState:\t{state}\n")
    assert (subprocess.run([*CHECK, str(tmp_path)], check=False).returncode == 0) == healthy
