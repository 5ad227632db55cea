"""The choices a caller has, the result, and the checks that every call passes through.

Nothing here computes attention. The definitions are those of residual self-attention (Sharma & Verma,
arXiv 2306.01594) as README.md states them; `rsattn.reference` implements them in plain PyTorch.
"""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Norm = Literal["induced", "entrywise", "confidence"]
Scope = Literal["sample", "batch"]
Merge = Literal["tile", "slot"]

NORMS: tuple[str, ...] = get_args(Norm)
SCOPES: tuple[str, ...] = get_args(Scope)
MERGES: tuple[str, ...] = get_args(Merge)
MASK_DTYPES = (torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ResidualAttention(NamedTuple):
    """The result of `rsattn.residual_attention`, a named tuple.

    Attributes:
        output: (B, H, N, E) in the inputs' dtype: the output of every head. A view of a (B, N, H, E) buffer, so
            `output.transpose(1, 2).flatten(2)` joins the heads without a copy. Differentiable.
        norms: (B, H) float32, the norm of every head's attention probabilities. No gradient.
        best_head: (B,) int64, the head with the largest norm, the lowest index among equals. No gradient. A NaN counts
            as the largest, as in `torch.argmax`.
        received: (B, H, M) float32, the attention that each key receives, sum_i P_ij, before dropout; None unless
            `return_received=True` asked for it. No gradient.

    Example:
        >>> import torch
        >>> import rsattn
        >>> query, key, value = torch.randn(3, 2, 4, 5, 6)  # 2 samples, 4 heads, 5 tokens, 6 channels
        >>> attention = rsattn.residual_attention(query, key, value)
        >>> attention.output.shape, attention.norms.shape, attention.best_head.shape
        (torch.Size([2, 4, 5, 6]), torch.Size([2, 4]), torch.Size([2]))
        >>> torch.equal(attention.norms.argmax(dim=1), attention.best_head)
        True
        >>> joined = attention.output.transpose(1, 2).flatten(2)  # (2, 5, 24), for the output projection
        >>> joined.data_ptr() == attention.output.data_ptr()
        True
    """

    output: Tensor
    norms: Tensor
    best_head: Tensor
    received: Tensor | None = None


def brief(value: object) -> str:
    """What a caller passed, short enough for a message: not the numbers of a tensor, nor the layers of a model."""
    kind = type(value).__name__
    if not isinstance(value, type) and hasattr(value, "shape"):
        return f"{kind} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 80 and "\n" not in text else kind


def check_tensor(name: str, value: object, expected: str = "a torch tensor") -> None:
    if isinstance(value, Tensor):
        return
    advice = ""
    if isinstance(value, list | tuple):
        advice = ". Convert it with torch.tensor(...)"
    elif isinstance(value, nn.Module):
        advice = ". Call the module and pass what it returns"
    elif hasattr(value, "__array__"):
        advice = ". Convert it with torch.from_numpy(array)"
    raise TypeError(f"{name} must be {expected}; got {brief(value)}{advice}")


def check_inputs_are_tensors(inputs: tuple[object, ...]) -> None:
    """Check query, key and value, or the one packed tensor."""
    for name, value in zip(("query", "key", "value") if len(inputs) == 3 else ("qkv",), inputs, strict=True):
        check_tensor(name, value)


def check_module(value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {brief(value)}")


def check_integer(name: str, value: object) -> int:
    """An integer of any type as a Python int."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {brief(value)}") from None


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={brief(value)} is not a choice; use one of {', '.join(map(repr, allowed))}")


def check_dropout(dropout_p: float | Tensor, name: str = "dropout_p") -> float:
    """The probability as a Python float."""
    if isinstance(dropout_p, Tensor) and dropout_p.requires_grad:
        raise TypeError(f"{name} is a plain number and gets no gradient; pass {name}.item()")
    if type(dropout_p) is not float and not _is_number(dropout_p):
        raise TypeError(f"{name} must be a number from 0 to 1; got {brief(dropout_p)}")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"{name}={dropout_p} is not a probability; use a number from 0 to 1")
    return float(dropout_p)


def _is_number(value: object) -> bool:
    """Whether it is one number, that of a tensor or an array included."""
    return hasattr(value, "__float__") and not isinstance(value, str) and math.prod(getattr(value, "shape", ())) == 1


def check_scale(scale: float | Tensor) -> float:
    """The scale as a Python float."""
    if isinstance(scale, Tensor) and scale.requires_grad:
        raise TypeError(
            "scale is a plain number and gets no gradient; for a learned scale multiply query by it and pass scale=1.0"
        )
    if type(scale) is not float and not _is_number(scale):
        raise TypeError(f"scale must be a number, or None for 1 / sqrt(head_dim); got {brief(scale)}")
    return float(scale)


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Shapes, then dtypes, then devices of query, key and value."""
    size, keys = query.shape, key.shape
    if len(size) != 4 or len(keys) != 4 or value.dim() != 4:
        raise ValueError(
            "query, key and value must be (batch, heads, length, head_dim); got "
            f"{tuple(size)}, {tuple(keys)} and {tuple(value.shape)}. "
            "Split the heads first, as for torch.nn.functional.scaled_dot_product_attention"
        )
    batch, heads, length, width = size
    if keys != value.shape or keys[0] != batch or keys[1] != heads or keys[3] != width:
        raise ValueError(
            "key and value must share one shape and query's batch, heads and head_dim; got query "
            f"{tuple(size)}, key {tuple(keys)}, value {tuple(value.shape)}"
        )
    if heads == 0 or width == 0 or length == 0 or keys[2] == 0:
        raise ValueError(
            f"heads, length and head_dim must be at least 1; got query {tuple(size)} "
            f"and key {tuple(keys)} (an empty batch is fine)"
        )
    dtype = query.dtype
    if not dtype.is_floating_point or not dtype == key.dtype == value.dtype:
        raise TypeError(
            f"query, key and value must share one floating-point dtype; got {dtype}, {key.dtype} and "
            f"{value.dtype}. Cast them, or run under torch.autocast"
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"query, key and value must be on one device; got {query.device}, {key.device} and {value.device}. Move "
            "them with tensor.to(device)"
        )


def check_packed(qkv: Tensor) -> None:
    """Check that `rsattn.call.unpacked` can split it; `check_tensors` checks the rest."""
    check_tensor("qkv", qkv)
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(
            f"qkv must be (batch, length, 3, heads, head_dim), query before key before value; got {tuple(qkv.shape)}. "
            "A projection (batch, length, 3 * heads * head_dim) becomes qkv.unflatten(-1, (3, heads, -1))"
        )


def check_mask(attn_mask: Tensor, query: Tensor, key: Tensor) -> None:
    check_tensor("attn_mask", attn_mask)
    dtype = attn_mask.dtype
    if dtype not in MASK_DTYPES:
        advice = "Cast it" if dtype.is_floating_point else "For a 0/1 mask pass attn_mask.bool()"
        raise TypeError(
            "attn_mask must be bool (True = take part) or float16, bfloat16, float32 or float64 (added to the scores); "
            f"got {dtype}. {advice}"
        )
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask is on {attn_mask.device}, query on {query.device}; move one of them")
    target = (*query.shape[:3], key.shape[2])
    shape = tuple(attn_mask.shape)
    # Not `in`: it does not compare two symbolic sizes under torch.compile.
    last = zip(reversed(shape[-3:]), reversed(target), strict=False)
    fits = len(shape) <= 4 and all(have == 1 or have == want for have, want in last)
    if len(shape) == 4 and shape[0] != 1 and shape[0] != target[0]:  # it repeats
        fits = fits and shape[0] > 0 and target[0] % shape[0] == 0
    if not fits:
        raise ValueError(
            f"attn_mask {shape} does not broadcast to (batch, heads, queries, keys) = {tuple(target)}. "
            "A key-padding mask (batch, keys) becomes mask[:, None, None, :], a mask of each sample (batch, queries, "
            "keys) mask[:, None]. The batch axis may also have a length that divides the batch: it repeats"
        )


def check_merge(projected: Tensor, output: Tensor, merge: str) -> None:
    """Check that `merge` can join the best head of `output` (B, H, N, E) to `projected` (B, N, D)."""
    check_choice("merge", merge, MERGES)
    tokens, size = projected.shape, output.shape
    if len(size) != 4 or len(tokens) != 3:
        raise ValueError(
            "projected must be (batch, length, dim) and attention.output (batch, heads, length, head_dim); "
            f"got {tuple(tokens)} and {tuple(size)}"
        )
    batch, heads, length, width = size
    if tokens[0] != batch or tokens[1] != length:
        raise ValueError(f"projected {tuple(tokens)} and attention.output {tuple(size)} must share batch and length")
    if not projected.dtype.is_floating_point:
        raise TypeError(f"projected must be floating point; got {projected.dtype}")
    if projected.device != output.device:
        raise ValueError(f"projected is on {projected.device}, attention.output on {output.device}; move one of them")
    check_merge_widths(tokens[2], heads, width, merge)


def check_best_head(best_head: Tensor, output: Tensor) -> None:
    """Check that `best_head` has a head for each sample of `output` (B, H, N, E)."""
    if best_head.dtype != torch.int64 or best_head.shape != output.shape[:1]:
        raise ValueError(
            f"best_head must be int64, one for each of the {len(output)} samples; got {best_head.dtype}, "
            f"{tuple(best_head.shape)}"
        )
    if best_head.device != output.device:
        raise ValueError(f"best_head is on {best_head.device}, attention.output on {output.device}; move one of them")


def check_gamma(gamma: Tensor, projected: Tensor) -> None:
    """Check that `gamma` is one number for each channel of `projected` (B, N, D)."""
    check_tensor("gamma", gamma, "a torch tensor of one number per channel")
    dim = projected.shape[2]
    if gamma.layout != torch.strided:
        raise ValueError(f"gamma must be a dense tensor; got layout {gamma.layout}")
    if gamma.dim() != 1 or gamma.shape[0] != dim:
        raise ValueError(f"gamma must have one number for each of the {dim} channels; got shape {tuple(gamma.shape)}")
    if not gamma.dtype.is_floating_point:
        raise TypeError(f"gamma must be floating point; got {gamma.dtype}")
    if gamma.device != projected.device:
        raise ValueError(f"gamma is on {gamma.device}, projected on {projected.device}; move one of them")


def check_init_values(init_values: float | None) -> None:
    """Check the initial value of a gate; None is no gate."""
    number = isinstance(init_values, Real) and not isinstance(init_values, bool)
    if init_values is not None and not (number and -math.inf < init_values < math.inf):
        raise ValueError(
            f"init_values={brief(init_values)} must be the finite number that a learnable gate starts at, or None for "
            "no gate: the paper's residual"
        )


def check_merge_widths(dim: int, heads: int, width: int, merge: str) -> None:
    if dim < 1 or heads < 1 or width < 1:
        raise ValueError(f"dim, num_heads and head_dim must be at least 1; got {dim}, {heads} and {width}")
    if merge == "tile" and dim % width:
        raise ValueError(
            f"merge='tile' repeats the best head's {width} channels along {dim}, and {dim} is not a multiple "
            f"of {width}; choose a head_dim that divides dim"
        )
    if merge == "slot" and dim != heads * width:
        raise ValueError(
            f"merge='slot' needs dim = num_heads * head_dim; got {dim} and {heads} * {width}. Use merge='tile'"
        )
