"""Why an op that DTensor has a rule for has none here."""

from __future__ import annotations

_KERNEL = "the kernel that `{}` becomes below autograd; a traced graph holds `{}` itself"
_PYTHON = "its result is a Python value that depends on the data, not a tensor"

_KERNELS = {
    "_batch_norm_with_update_functional.default": "batch_norm",
    "_fused_rms_norm.default": "rms_norm",
    "_scaled_dot_product_cudnn_attention.default": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention.default": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention.default": "scaled_dot_product_attention",
    "nll_loss2d_forward.default": "nll_loss2d",
    "nll_loss_forward.default": "nll_loss",
}

REASONS: dict[str, str] = {
    **{f"aten.{name}": _KERNEL.format(op, op) for name, op in _KERNELS.items()},
    "aten._local_scalar_dense.default": _PYTHON,
    "aten.equal.default": _PYTHON,
    "aten.is_same_size.default": "its result is a Python value, known when the model is traced",
    "aten._linalg_check_errors.default": "it has no result, only an error that depends on data",
    "aten._scaled_mm.default": "8-bit floats have no float64 form to prove a program by",
    "aten._grouped_mm.default": "when it is traced, it is written as `shardlang::grouped_mm`",
    "prims.fma.default": "inductor's own op for code that it compiles, known once it is loaded",
}
"""Reasons by overload."""
