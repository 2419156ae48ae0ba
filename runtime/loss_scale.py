"""The factor of the loss from step to step, by the rule of torch's `GradScaler`.

The factor is among the settings of the optimizer, as its learning rate is: a state dict holds it,
and the ranks compare it. A step whose gradients are not all finite changes nothing but the factor.
"""

from __future__ import annotations

from typing import Any

from shardlang.ir.precision import LARGEST_SCALE, LossScale

SCALE, FINITE_STEPS = "loss_scale", "finite_steps"
"""The settings: the factor, and the steps with finite gradients since it changed."""

GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000


def first_settings(stated: LossScale | None) -> dict[str, Any]:
    """What the settings of an optimizer begin with."""
    return {} if stated is None else {SCALE: stated.first, FINITE_STEPS: 0}


def scale_of(settings: dict[str, Any], stated: LossScale | None) -> float:
    """The factor of the next loss; 1 where none is stated."""
    return 1.0 if stated is None else float(settings.get(SCALE, stated.first))


def is_mended(settings: dict[str, Any], stated: LossScale | None) -> bool:
    """Whether a smaller factor may make gradients finite that are not."""
    return stated is not None and stated.dynamic and scale_of(settings, stated) > 1


def note_step(settings: dict[str, Any], stated: LossScale, finite: bool) -> None:
    """Change the factor after a step."""
    if not stated.dynamic:
        return
    scale, steps = scale_of(settings, stated), int(settings.get(FINITE_STEPS, 0)) + 1
    if not finite:
        scale, steps = scale * BACKOFF, 0
    elif steps >= INTERVAL:
        scale, steps = min(scale * GROWTH, LARGEST_SCALE), 0
    settings[SCALE], settings[FINITE_STEPS] = scale, steps
