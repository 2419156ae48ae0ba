"""Rules of decompositions and solvers: batch dims outer, the dims of a matrix whole."""

from __future__ import annotations

import torch

from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, broadcast_shape, names

aten = torch.ops.aten

_TAILS = {
    "pivots": 1, "LU_pivots": 1, "tau": 1, "atol": 0, "rtol": 0, "tol": 0, "rcond": 0,
}  # fmt: skip
"""Own dims of the operands that are not matrices."""


def _tail(call: Call, index: int) -> int:
    """Own dims of an operand; a solver's right side may be a batch of vectors."""
    name, shapes = call.slots[index].name, call.shapes
    if name == "input2" and call.target is not aten.cholesky_solve.default:
        return 1
    if name == "B" and call.slots[0].name == "A":
        vector = len(shapes[index]) == 1 or shapes[index] == shapes[0][:-1]
        return 1 if vector else 2
    return _TAILS.get(name, 2)


def _everything(call: Call) -> str:
    """What a backward may read: derivatives of decompositions are written in both sides."""
    return " ".join([*(slot.name for slot in call.slots), "result"])


def _batched(call: Call) -> str:
    tails = [_tail(call, i) for i in range(len(call.shapes))]
    heads = [shape[: len(shape) - tail] for shape, tail in zip(call.shapes, tails, strict=True)]
    joint = broadcast_shape(heads)
    batch = names(len(joint), "b")
    operands = []
    for k, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        skip = len(joint) - len(head)
        own = [
            "1" if size == 1 != joint[skip + i] else batch[skip + i] for i, size in enumerate(head)
        ]
        operands.append([*own, *(f"x{k}d{i}!" for i in range(tail))])
    results = [_result(shape, joint, batch, k) for k, shape in enumerate(call.result_shapes)]
    return arrow(operands, results)


def _result(shape: tuple[int, ...], joint: tuple[int, ...], batch: list[str], k: int) -> list[str]:
    """The batch dims, then the result's own; results left empty have none of the batch."""
    if shape[: len(joint)] != joint:
        return [f"y{k}d{i}!" for i in range(len(shape))]
    return [*batch, *(f"y{k}d{i}!" for i in range(len(shape) - len(joint)))]


rule(
    aten._linalg_det.default, aten._linalg_eigh.default, aten._linalg_slogdet.default,
    aten._linalg_solve_ex.default, aten._linalg_svd.default, aten._lu_with_info.default,
    aten.cholesky.default, aten.cholesky_inverse.default, aten.det.default, aten.geqrf.default,
    aten.inverse.default, aten.linalg_cholesky.default, aten.linalg_cholesky_ex.default,
    aten.linalg_cond.default, aten.linalg_cond.p_str, aten.linalg_det.default,
    aten.linalg_eig.default, aten.linalg_eigh.default, aten.linalg_eigvals.default,
    aten.linalg_eigvalsh.default, aten.linalg_householder_product.default, aten.linalg_inv.default,
    aten.linalg_inv_ex.default, aten.linalg_ldl_factor.default, aten.linalg_ldl_factor_ex.default,
    aten.linalg_ldl_solve.default, aten.linalg_lstsq.default, aten.linalg_lu.default,
    aten.linalg_lu_factor.default, aten.linalg_lu_factor_ex.default, aten.linalg_lu_solve.default,
   
    aten.linalg_matrix_rank.default, aten.linalg_matrix_rank.atol_rtol_float,
    aten.linalg_matrix_rank.atol_rtol_tensor, aten.linalg_matrix_rank.tol_tensor,
    aten.linalg_pinv.default, aten.linalg_pinv.atol_rtol_float, aten.linalg_pinv.atol_rtol_tensor,
    aten.linalg_pinv.rcond_tensor, aten.linalg_qr.default, aten.linalg_slogdet.default,
    aten.linalg_solve.default, aten.linalg_solve_ex.default, aten.linalg_svd.default,
    aten.linalg_svdvals.default, aten.logdet.default, aten.lu_unpack.default,
    aten.orgqr.default, aten.ormqr.default,
    aten.pinverse.default, aten.qr.default, aten.slogdet.default, aten.svd.default,
    spec=_batched, passes=False, keeps=_everything,
)  # fmt: skip
rule(
    aten.linalg_solve_triangular.default, aten.triangular_solve.default,
    spec=_batched, linear=lambda call: ["B"] if call.has("B") else [], passes=False,
    keeps=_everything,
)  # fmt: skip
rule(
    aten.lu_solve.default, aten.cholesky_solve.default,
    spec=_batched, linear=["self"], passes=False, keeps=_everything,
)  # fmt: skip


def _tensor_inverse(call: Call) -> str:
    """All dims of a square operator take part."""
    operands = [[f"x{k}d{i}!" for i in range(len(s))] for k, s in enumerate(call.shapes)]
    return arrow(operands, [[f"y{i}!" for i in range(len(call.out))]])


rule(
    aten.linalg_tensorinv.default, aten.linalg_tensorsolve.default,
    spec=_tensor_inverse, passes=False, keeps=_everything,
)  # fmt: skip


def _powers(call: Call, sharding: Sharding) -> LocalCall:
    """The number of powers is that of the global elements where it is not given."""
    return call.replace(N=call.out[-1])


def _vander(call: Call) -> str:
    dims = names(len(call.shapes[0]))
    return arrow([dims], [[*(dims or ["1"]), "n!"]])


rule(aten.linalg_vander.default, spec=_vander, localize=_powers)
rule(aten.vander.default, spec="n -> n m!", localize=_powers)
