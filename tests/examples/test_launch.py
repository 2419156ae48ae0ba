"""The launch files: each is read by its tool or by its schema, and run where it can be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import tomllib
import yaml

from shardlang.cli.run import command as run_command
from tests.runtime.forking import completed, python

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "examples" / "launch"
SPEC = str(ROOT / "tests" / "runtime" / "tiny.shard")
STEPS = ("--steps", "2", "--set", "copies=1")
KUBERNETES = "1.34"

SRUN = """#!/usr/bin/env bash
shift
pids=()
for node in 0 1; do
  SLURM_NODEID=$node "$@" > "$LAUNCHED/$node" 2> "$LAUNCHED/$node.errors" & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""


@pytest.fixture(scope="module")
def alone() -> list[float]:
    """The losses where `run` starts the processes itself."""
    arguments = [sys.executable, "-m", "shardlang", "run", SPEC, *STEPS]
    return losses(completed(arguments, dict(os.environ, PYTHONPATH=str(ROOT)), timeout=120).stdout)


def losses(output: str) -> list[float]:
    """Those of the lines that `run` prints."""
    lines = [json.loads(line) for line in output.splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def tools(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which these programs are found first, and `shardlang` is this one.

    It and the processes that torchrun starts are forked.
    """
    forked = python(folder)
    own = f'#!/usr/bin/env bash\nexec {forked} -m shardlang "$@"\n'
    for name, text in {"shardlang": own, **scripts}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHON_EXEC": forked}


def ran(script: str, *arguments: str, env: dict[str, str]) -> str:
    """What a script prints."""
    done = subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchrun(tmp_path: Path, alone: list[float]) -> None:
    assert losses(ran("torchrun.sh", SPEC, "2", *STEPS, env=tools(tmp_path))) == alone


def test_slurm_on_two_nodes(tmp_path: Path, alone: list[float]) -> None:
    """The list of hosts is longer than a pipe holds: who stops reading ends its writer."""
    hosts = "#!/usr/bin/env bash\necho 127.0.0.1\nseq 20000\n"
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1-2]"}
    job |= {"SLURM_JOB_NUM_NODES": "2", "LAUNCHED": str(tmp_path)}
    ran("slurm.sbatch", SPEC, *STEPS, env=tools(tmp_path, srun=SRUN, scontrol=hosts) | job)
    assert losses((tmp_path / "0").read_text()) == alone
    assert (tmp_path / "1").read_text() == ""


def test_options_of_slurm_are_whole() -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    options = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", option) for option in options)
    assert text.index("#SBATCH") < text.index("set -euo")


def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    return found


def test_the_job_of_kubernetes_is_valid() -> None:
    (node,) = job()["spec"]["replicatedJobs"]
    inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}}
    kubernetes_validate.validate({**inner, **node["template"]}, KUBERNETES, strict=True)


def test_the_nodes_of_kubernetes_meet() -> None:
    name = job()["metadata"]["name"]
    (node,) = job()["spec"]["replicatedJobs"]
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    arguments = [x.replace("$(JOB_COMPLETION_INDEX)", "1") for x in container["args"][1:]]
    given = run_command.make_context("run", arguments, parent=click.Context(run_command)).params
    assert given["nnodes"] == node["template"]["spec"]["completions"]
    assert given["node_rank"] == 1
    assert given["rdzv_endpoint"] == f"{name}-{node['name']}-0-0.{name}:29500"


def test_the_container_installs_what_there_is() -> None:
    text = (LAUNCH / "Containerfile").read_text()
    (extras,) = re.findall(r'"/opt/shardlang\[(.*)\]"', text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(known["optional-dependencies"])
    steps = re.findall(r"^(ARG|FROM|COPY|RUN|WORKDIR|ENTRYPOINT) ", text, re.MULTILINE)
    assert steps == ["ARG", "FROM", "COPY", "RUN", "WORKDIR", "ENTRYPOINT"]
