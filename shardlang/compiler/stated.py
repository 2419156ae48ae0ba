"""What a spec states of the steps that train a model, against what the model is."""

from __future__ import annotations

from shardlang.compiler.driver import Compiled, CompileError
from shardlang.compiler.pipelined import check_pipeline
from shardlang.grammar.diagnostics import Diagnostic, error


def check_stated(compiled: Compiled) -> None:
    """Look for statements that cannot be carried out, as far as the whole model shows it.

    Raises:
        CompileError: SH0514, a statement needs a loss, and no output is known to be it; or the
            model cannot be trained in stages as stated.
    """
    found = [] if compiled.statements.loss is not None else _without_loss(compiled)
    if found:
        raise CompileError(found)
    check_pipeline(compiled)


def _without_loss(compiled: Compiled) -> list[Diagnostic]:
    """An error for each statement that speaks of the loss."""
    spec = compiled.spec
    several = spec.accumulate is not None and spec.accumulate.count > 1 and spec.pipeline is None
    stated = {
        "accumulate": (spec.accumulate if several else None, "adds up the gradients of the loss"),
        "evaluate": (spec.evaluate, "computes the loss of other batches"),
    }
    return [
        error(
            "SH0514",
            f"`{name}` {does}, and no output of the model is known to be the loss",
            decl.span,
            help=f"name the output that is the loss with `loss`, or leave `{name}` out",
        )
        for name, (decl, does) in stated.items()
        if decl is not None
    ]
