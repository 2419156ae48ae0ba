"""Processes that wait for others which never come."""

from __future__ import annotations

import pytest

from shardlang.ir.mesh import Axis, Mesh
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import join
from tests.checkpoint.test_nodes import endpoint


def test_a_process_that_never_comes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that the run has for it, in words of ours."""
    host, port = endpoint().split(":")
    around = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": port}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="other nodes have not come within 2 s") as caught:
        join(Mesh((Axis("dp", 2),)), timeout_s=2.0)
    assert caught.value.code == "SH0610"
