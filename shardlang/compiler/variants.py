"""Programs for other calls than the declared one: another size, mode, argument or gradient.

The same spec is compiled again for them, with the parameters and buffers where they lie in the
first program. A dim of an input with fewer indices than shards is whole on every device instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from shardlang.capture import InputSpec
from shardlang.capture.caches import fill, with_caches
from shardlang.capture.generators import generators_kept
from shardlang.capture.index_bounds import REMEDY, Limit, limits
from shardlang.capture.nest import nest
from shardlang.capture.setting import Setting, evaluated, trained
from shardlang.capture.state import Snapshot
from shardlang.compiler.calling import (
    bound,
    check_inputs,
    check_lists,
    check_names,
    defaults_of,
)
from shardlang.compiler.driver import Compiled, CompileError, compile_spec, input_names
from shardlang.compiler.in_stages import in_stages
from shardlang.compiler.pinned import layouts_of, pinned
from shardlang.grammar.diagnostics import join_words, quote
from shardlang.grammar.patterns import literal_pattern
from shardlang.ir.graph import ShardError
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Mesh
from shardlang.ir.printed_type import dtype_name
from shardlang.passes.step.write_step import write_step
from shardlang.passes.step.write_update import write_update
from shardlang.runtime.calls import Argument, Call, Given, Made
from shardlang.runtime.errors import RunError
from shardlang.spec.types import Axes, InputDecl, LayoutExpr, Rest, Whole


class Programs:
    """Makes the programs of one compiled spec (see `runtime.variants.Compiler`)."""

    def __init__(self, compiled: Compiled, seed: int = 0) -> None:
        self._compiled, self._seed = compiled, seed
        self._names, self._defaults = compiled.source.forward_names, defaults_of(compiled.source)
        self.model = compiled.source.deferred.module
        self._setting = compiled.source.setting
        with self._setting.applied(self.model):
            modes, params = evaluated(self.model), trained(self.model)
        inputs = (Given(s.name, s.dtype, s.shape, s.differentiable) for s in compiled.inputs)
        self.declared = Call(tuple(sorted(inputs, key=lambda x: x.name)), (), modes, params)

    def __deepcopy__(self, memo: dict[int, object]) -> Programs:
        """A copy of the loaded module shares what makes its programs."""
        return self

    def flatten(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[dict[str, Tensor], tuple[Argument, ...]]:
        """Tensors, and arguments that are not what the model's defaults say, by dotted name.

        Raises:
            RunError: SH0613, an argument is neither a tensor nor a plain value, or given twice; a
                cache was passed before to a call that gave none back, or filled since
                it was cut; a call says that it has no past, and not whether it keeps a cache; a
                cache has other layers than the model's own.
        """
        return bound(self._compiled.source, self._defaults, args, kwargs)

    def build_inputs(
        self, flat: Mapping[str, object], args: Sequence[object], kwargs: Mapping[str, object]
    ) -> dict[str, object]:
        """Keyword arguments from dotted names; what was given as a cache is one."""
        named = dict(zip(self._names, args, strict=False))
        return with_caches(nest(flat), {**named, **kwargs})

    def fill(self, given: object, made: object) -> None:
        """Let the caches of a call's arguments be those that it gave back, as the model does."""
        fill(given, made)

    def check(self, call: Call, strict: bool) -> None:
        """Look for what the model does not take, the spec does not declare, or the call lacks.

        Raises:
            RunError: SH0605 or SH0613.
        """
        if call.inputs == self.declared.inputs and not call.arguments:
            return
        check_names(self._compiled.source, call)
        check_lists(self._compiled, call)
        check_inputs(self._compiled, call, strict)

    def make(self, call: Call, inputs: Mapping[str, Layout]) -> Made:
        """Compile the spec for a call.

        Raises:
            RunError: SH0605, it cannot be compiled for it.
        """
        if call == self.declared:
            return made(self._compiled, self._seed)
        try:
            with generators_kept():
                return made(compiled_for(self._compiled, call, inputs), self._seed)
        except (CompileError, ShardError) as failure:
            left = _left_out(call, self.declared)
            without = f" and without {left}" if left else ""
            raise RunError(
                "SH0605",
                f"the model cannot be compiled for a call with {call}{without}: {failure}",
                help=_remedy(left),
            ) from failure

    def modes_after(self, evaluated_: frozenset[str], mode: bool) -> frozenset[str]:
        """The modules in evaluation mode after the model's own `train(mode)`.

        Raises:
            RunError: SH0613, it changes more than modes.
        """
        with Setting(evaluated_, None).applied(self.model):
            before = Snapshot.of(self.model)
            self.model.train(mode)
            if any(before.remarks(Snapshot.of(self.model))):
                raise _own_train(mode)
            return evaluated(self.model)


def _left_out(call: Call, declared: Call) -> str:
    """The arguments in which a call lacks inputs that the spec declares."""
    given = {one.name for one in call.inputs}
    left = [one.name.partition(".")[0] for one in declared.inputs if one.name not in given]
    return join_words(quote(dict.fromkeys(left)), "and")


def _remedy(left: str) -> str:
    """What helps a call that no program can be made for; inputs that are left out come first."""
    help = "call it as the spec declares it, or declare in another spec what it is called with"
    if not left:
        return help
    return (
        "pass all inputs of the call through one `shard_inputs`, what another call has returned"
        f" among them; or {help}"
    )


def _own_train(mode: bool) -> RunError:
    name = "train" if mode else "eval"
    return RunError(
        "SH0613",
        f"the model's own `{name}()` changes more than modes, which a program does not follow",
        help="do what it does to the weights before the spec is compiled, or in the training loop",
    )


def made(compiled: Compiled, seed: int) -> Made:
    """What is loaded of a compiled spec."""
    captured, staged = compiled.captured, compiled.spec.pipeline is not None
    return Made(
        in_stages(compiled).program if staged else compiled.program,
        write_step,
        functools.partial(write_update, compiled.program),
        captured.rebuild_output,
        captured.constant_values(compiled.source.deferred, seed),
        captured.replaced,
        check=functools.partial(_check_numbers, limits(captured)),
        whole=not staged,
    )


def _check_numbers(taken: Sequence[Limit], inputs: Mapping[str, Tensor]) -> None:
    """Raise SH0614 for an input that holds a number which an op of the model does not take."""
    for limit in taken:
        fault = limit.fault(inputs[limit.input]) if limit.input in inputs else ""
        if fault:
            raise RunError("SH0614", fault, help=REMEDY)


def compiled_for(
    compiled: Compiled, call: Call, inputs: Mapping[str, Layout] | None = None
) -> Compiled:
    """The spec compiled for a call, with every parameter and buffer where it was.

    Args:
        inputs: layouts of inputs that are to lie as they do for other calls of the same size.

    Raises:
        CompileError: it cannot be compiled for this call.
        ShardError: nor with its parameters where they were.
    """
    arguments = {argument.name: argument.value for argument in call.arguments}
    source = compiled.source.in_setting(Setting(call.evaluated, call.trained, arguments))
    given = {one.name: one for one in call.inputs}
    spec = replace(compiled.spec, inputs=_declared(compiled, given))
    mesh = compiled.program.mesh
    other = compile_spec(spec, source, inputs=_specs(compiled, given), mesh=mesh)
    after = layouts_of(other, "param", "buffer", "input")
    before = {**layouts_of(compiled, "param", "buffer"), **(inputs or {})}
    kept = {name: layout for name, layout in before.items() if name in after}
    if all(after[name] == layout for name, layout in kept.items()):
        return other
    return pinned(other, kept)


def _specs(compiled: Compiled, given: Mapping[str, Given]) -> tuple[InputSpec, ...]:
    """The inputs in the order of their declaration."""
    return tuple(
        InputSpec(
            spec.name, one.dtype, one.shape,
            spec.below if not one.dtype.is_floating_point else None, one.differentiable,
        )
        for spec in compiled.inputs
        if (one := given.get(spec.name)) is not None
    )  # fmt: skip


def _declared(compiled: Compiled, given: Mapping[str, Given]) -> tuple[InputDecl, ...]:
    """The declarations of the inputs, one by one, with other types and shapes."""
    return tuple(
        replace(
            decl,
            pattern=literal_pattern(name),
            dtype=dtype_name(given[name].dtype),
            shape=given[name].shape,
            layout=_fitting(decl.layout, given[name].shape, compiled.spec.mesh),
        )
        for decl in compiled.spec.inputs
        for name in input_names(decl, compiled.source)
        if name in given
    )


def _fitting(layout: LayoutExpr, shape: tuple[int, ...], mesh: Mesh) -> LayoutExpr:
    """The layout without the axes that a dim is too small for."""
    entries = list(layout.entries)
    for dim, entry in enumerate(entries[: len(shape)]):
        if isinstance(entry, Rest):
            break
        if isinstance(entry, Axes) and _shards(entry, mesh) > shape[dim]:
            entries[dim] = Whole(entry.span)
    return replace(layout, entries=tuple(entries))


def _shards(entry: Axes, mesh: Mesh) -> int:
    return math.prod(axis.size for axis in mesh.named(entry.axes))
