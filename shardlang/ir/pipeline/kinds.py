"""The schedules that a spec can name."""

from __future__ import annotations

STAGES_OF_RANK = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved_1f1b": 2,
    "zb_h1": 1,
    "zbv": 2,
    "v_half": 2,
    "dualpipe_v": 2,
}
"""By name, the stages of each rank where the spec does not say how many."""

INTERLEAVED = "interleaved_1f1b"
"""The one of which a spec may say how many."""
