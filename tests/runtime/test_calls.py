"""The loaded module is called as the plain model is: right, or refused with one message."""

from __future__ import annotations

from pathlib import Path

from spawn import spawn

TOLERANCE = 1e-10


def wrong(gaps: dict[str, float]) -> dict[str, float]:
    return {name: gap for name, gap in gaps.items() if not gap <= TOLERANCE}


def test_calls_on_four_devices(tmp_path: Path) -> None:
    """Modes and gradients on a mesh of two axes, with storage."""
    for found in spawn("called:on_a_grid", 4, tmp_path, 300):
        assert wrong(found) == {}
        assert len(found) > 15


def test_calls_on_two_devices(tmp_path: Path) -> None:
    """Modes, sizes, arguments, gradients, buffers and draws; then ranks that differ."""
    for found in spawn("called:everything", 2, tmp_path, 300):
        assert wrong(found["gaps"]) == {}
        assert len(found["gaps"]) > 60
        refused = found["refused"]
        codes = {name: code for name, (code, _) in refused.items()}
        assert codes == {
            "values": "SH0612",
            "sizes": "SH0612",
            "replicas": "SH0611",
            "modes": "SH0612",
            "arguments": "SH0612",
            "unmarked": "SH0605",
            "twice": "SH0613",
        }, refused
        assert "`x` has other values on rank 1 than on rank 0" in refused["values"][1]
        assert "rank 0 with x : f64[5, 6], rank 1 with x : f64[6, 6]" in refused["sizes"][1]
        assert "`w` has other values on rank 1 than on rank 0" in refused["replicas"][1]
        assert "rank 1 with the model in evaluation mode" in refused["modes"][1]
        assert "cut whole inputs with `shard_inputs`" in refused["unmarked"][1]
