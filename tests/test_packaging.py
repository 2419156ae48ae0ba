"""shardlang as an ordinary package: built, installed in a clean environment, run elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.broad import broad

ROOT = Path(__file__).parent.parent
pytestmark = broad
SOURCES = ("shardlang", "grammar", "passes", "runtime")
FILES = ("pyproject.toml", "README.md", "LICENSE")
MUST_HOLD = (
    "shardlang/__init__.py",
    "shardlang/py.typed",
    "shardlang/grammar/shard.lark",
    "shardlang/ir/graph.lark",
    "shardlang/grammar/parser.py",
    "shardlang/passes/pipeline.py",
    "shardlang/runtime/simulate.py",
    "shardlang/rules/registry.py",
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command without our own environment's PYTHONPATH; its standard output."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=tree)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel, and our dependencies on its path."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    wheel = next(built.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=home)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def wheel_names(built: Path) -> set[str]:
    """The files in the wheel."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_linked_folders(built: Path) -> None:
    names = wheel_names(built)
    assert names >= set(MUST_HOLD)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"shardlang"}


def test_the_sdist_holds_what_the_wheel_needs(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {*MUST_HOLD, "LICENSE", "README.md", "pyproject.toml"}


def test_every_module_is_in_the_wheel(built: Path) -> None:
    names = wheel_names(built)
    ours = {
        path.relative_to(ROOT).as_posix()
        for part in ("", "grammar", "passes", "runtime")
        for path in (ROOT / "shardlang" / part).rglob("*.py")
    }
    assert ours <= names


def test_it_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(installed, "-c", "import shardlang; print(shardlang.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent.parent)
    script = run(installed.parent / "shardlang", "--version", cwd=tmp_path)
    module = run(installed, "-m", "shardlang", "--version", cwd=tmp_path)
    assert script == module
    assert "0.1.0" in module


WITHOUT_TRANSFORMERS = """
import sys
sys.modules["transformers"] = None
from shardlang.cli import execute
sys.exit(execute(sys.argv[1:]))
"""


def test_it_works_without_the_extras(installed: Path, tmp_path: Path) -> None:
    """Hugging Face models alone need transformers, and say so."""
    command = [str(installed), "-c", WITHOUT_TRANSFORMERS, "verify"]
    plain, hugging = (ROOT / "examples" / name for name in ("matmul/inner.shard", "llama/sp.shard"))
    assert "proven equal" in run(*command, plain, cwd=tmp_path)
    done = subprocess.run([*command, str(hugging)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Hugging Face models need the transformers package" in done.stderr
    assert "pip install shardlang[hf]" in done.stderr
