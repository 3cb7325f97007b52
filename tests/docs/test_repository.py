"""What surrounds the code holds together: workflows, forms, hooks of commits, and what they name."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
TEXTS = sorted([*GITHUB.rglob("*.yml"), *GITHUB.rglob("*.md"), ROOT / "SECURITY.md", ROOT / "CODE_OF_CONDUCT.md"])


def read(path: Path) -> dict[str, Any]:
    """Return the YAML of `path`, with the key `on`, which YAML 1.1 takes for true, under its name."""
    found = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(found, dict)
    return {"on" if key is True else key: value for key, value in found.items()}


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    named = re.findall(r"(?<![\w./])((?:\.github|docs|tests|engine|scripts)/[\w./-]*\w)", text)
    named += re.findall(r"(?<![\w./])([A-Z_]{5,}\.md|setup\.cfg|constraints\.txt)", text)
    named += [word.replace(".", "/") + ".py" for word in re.findall(r"python -m (scripts\.\w+)", text)]
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read_unless_a_job_says_more_and_end_in_time(path: Path) -> None:
    workflow = read(path)
    assert workflow["on"]
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
        else:
            assert job["timeout-minutes"] <= 60


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_say_their_version(path: Path) -> None:
    used = re.findall(r"uses: ([^.\s].*)$", path.read_text("utf-8"), re.MULTILINE)
    assert len(used) == sum("uses" in step for step in steps(read(path)))
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_no_checkout_leaves_its_token_to_what_runs_after_it() -> None:
    checkouts = [step for path in WORKFLOWS for step in steps(read(path)) if "checkout" in step.get("uses", "")]
    assert len(checkouts) == len(WORKFLOWS)
    for step in checkouts:
        assert step["with"] == {"persist-credentials": False}


def test_pushes_and_pull_requests_are_tested_as_a_developer_tests() -> None:
    workflow = read(GITHUB / "workflows" / "test.yml")
    assert {"push", "pull_request", "workflow_call"} == set(workflow["on"])
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert commands[-1] == "make test"
    assert re.search(r"^test:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    # What .ci/run installs is installed here, too.
    (installed,) = re.findall(r"apt-get install .* ([\w-]+)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert installed in commands[0]


def test_a_release_is_tested_checked_built_and_attested_in_this_order() -> None:
    workflow = read(GITHUB / "workflows" / "release.yml")
    assert workflow["jobs"]["test"]["uses"] == "./.github/workflows/test.yml"
    assert workflow["jobs"]["release"]["needs"] == "test"
    done = [step.get("run", step.get("uses", "")) for step in steps(workflow)]
    order = (
        "scripts.release",
        "python -m build",
        "twine check --strict",
        "attest-build-provenance",
        "gh release create",
    )
    places = [next(place for place, step in enumerate(done) if part in step) for part in order]
    assert places == sorted(set(places))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_asks_each_question_once(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    questions = [part for part in form["body"] if part["type"] != "markdown"]
    identities = [part["id"] for part in questions]
    assert len(set(identities)) == len(identities)
    assert any(part.get("validations", {}).get("required") for part in questions)
    for part in questions:
        assert part["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert part["attributes"]["label"]


def test_dependabot_looks_where_versions_are_stated() -> None:
    updates = read(GITHUB / "dependabot.yml")["updates"]
    found = {update["package-ecosystem"]: update.get("directories") or [update["directory"]] for update in updates}
    assert found == {"github-actions": ["/"], "pip": ["/"], "docker": ["/", "/docker"]}
    assert (ROOT / "Dockerfile").is_file()
    assert (ROOT / "docker" / "Dockerfile.cpu").is_file()


def test_a_commit_is_held_to_what_the_lint_session_holds() -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    (lint,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "lint"]
    session = [
        " ".join(str(word.value) for word in call.args if isinstance(word, ast.Constant)).removesuffix(" .")
        for call in ast.walk(lint)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "session.run"
    ]
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    # Files are named one by one there, and ruff leaves out what ruff.toml excludes only when it is told.
    hooks = [hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]]
    assert sorted(hooks) == sorted(f".venv/bin/python {words}" for words in session)
    assert len(hooks) == 3
