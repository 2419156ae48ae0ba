"""The program of one stage: a step program that gets values from other stages and gives some."""

from __future__ import annotations

from dataclasses import dataclass

from shardlang.ir.step import StepProgram


@dataclass(frozen=True, slots=True)
class StageProgram:
    """Forward and backward of one stage, for one microbatch.

    Attributes:
        number: which stage it is.
        step: its leaves are those of the stage, then values from other stages; its results those of
            the stage, then values for others; its cotangents likewise, then gradients from others;
            its gradients those of its leaves, then gradients for others.
        values: of a value from another stage, the stage, by name.
        gives: of a value for other stages, these, by name.
        gradients: of a gradient from another stage, the stage, by name.
        returns: of a gradient for other stages, these, by name.
    """

    number: int
    step: StepProgram
    values: dict[str, int]
    gives: dict[str, tuple[int, ...]]
    gradients: dict[str, int]
    returns: dict[str, tuple[int, ...]]
