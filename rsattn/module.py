"""`ResidualSelfAttention`: the attention module of a vision transformer, with its best head added back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attended, attend
from .backends.dispatch import check_backend
from .call import Call
from .contract import (
    MERGES,
    NORMS,
    SCOPES,
    Merge,
    Norm,
    ResidualAttention,
    Scope,
    check_choice,
    check_dropout,
    check_init_values,
    check_merge_widths,
)
from .epilogue import join, run_projection
from .received import attention_received

Recorder = Callable[[ResidualAttention, Callable[[], Tensor]], None]
"""Called with the attention, and with a function that computes what each key receives, (B, H, M)."""


class ResidualOptions:
    """How a module ranks its heads and joins the best one; shared by our module and the patched ones.

    Args:
        norm, scope, backend: as in `rsattn.residual_attention`.
        merge: as in `rsattn.add_best_head`.
        init_values: what the learnable gate `gamma` of every module starts at, or None for no gate.
    """

    def __init__(
        self,
        norm: Norm = "induced",
        scope: Scope = "sample",
        merge: Merge = "tile",
        backend: str | None = None,
        init_values: float | None = None,
    ) -> None:
        check_choice("norm", norm, NORMS)
        check_choice("scope", scope, SCOPES)
        check_choice("merge", merge, MERGES)
        check_backend(backend)
        check_init_values(init_values)
        self.norm, self.scope, self.merge, self.backend = norm, scope, merge, backend
        self.init_values = None if init_values is None else float(init_values)

    def gate(
        self, dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> nn.Parameter | None:
        """A new `gamma` (dim,), or None where there is no gate.

        Raises:
            ValueError: `init_values` does not fit the dtype.
        """
        if self.init_values is None:
            return None
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if abs(self.init_values) > torch.finfo(dtype).max:
            raise ValueError(f"init_values={self.init_values!r} is too large for {dtype}, the gate's dtype")
        with torch.inference_mode(False):  # or it could never be trained
            return nn.Parameter(torch.full((dim,), self.init_values, device=device, dtype=dtype))

    def call(
        self, *inputs: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, scale: float | None = None
    ) -> Call:
        """A call with these options; `inputs` are query, key and value, or the three packed (`rsattn.call.Call`)."""
        return Call(inputs, attn_mask, None, dropout_p, scale, self.norm, self.scope)

    def join(self, projected: Tensor, attended: Attended, gamma: Tensor | None) -> Tensor:
        """projected (B, N, D), from `run_projection`, plus the best head; a subclass may add something else."""
        return join(projected, attended, self.merge, gamma)

    def __repr__(self) -> str:
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        gate = "" if self.init_values is None else f", init_values={self.init_values!r}"
        return f"norm={self.norm!r}, scope={self.scope!r}, merge={self.merge!r}{backend}{gate}"


class Residual:
    """What every module that computes residual self-attention has: ours, and those that `rsattn.patch` changed.

    Attributes:
        options: how it ranks its heads and joins the best one.
        gamma: (D,) parameter, the gate that the best head is multiplied by, or None where there is no gate.
    """

    options: ResidualOptions
    gamma: nn.Parameter | None
    _rsattn_recorders: threading.local | None = None  # its `here` is the list of a thread's recorders

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle of the module holds: a record that is open watches the original only."""
        return {name: value for name, value in vars(self).items() if name != "_rsattn_recorders"}

    def reset_parameters(self) -> None:
        """Set `gamma` to `init_values`, after `to_empty` for instance, and what the library's own method sets."""
        inherited = getattr(super(), "reset_parameters", None)
        if inherited is not None:
            inherited()
        if self.gamma is not None and self.options.init_values is not None:
            nn.init.constant_(self.gamma, self.options.init_values)


def attend_and_join(call: Call, project: Callable[[Tensor], Tensor], attention: Residual) -> Tensor:
    """Y = project(concat_h(O_h)) + gamma * merge(O_h*), the whole of a residual self-attention after Q, K and V.

    Args:
        call: made by `attention.options.call`.
        project: the output projection and its dropout, (B, N, H*E) -> (B, N, D), by `run_projection`.
        attention: whose call it is. What its recorders are given second holds Q and K: to call, not to keep.

    Returns:
        (B, N, D).
    """
    options = attention.options
    attended = attend(call, options.backend, linked=True)
    for recorder in tuple(getattr(attention._rsattn_recorders, "here", ())):
        recorder(attended.result, lambda: attention_received(call.query, call.key, call.attn_mask, call.scale))
    return options.join(project(attended.result.output.transpose(1, 2).flatten(2)), attended, attention.gamma)


class ResidualSelfAttention(Residual, nn.Module):
    """Multi-head self-attention whose best head is added to the projected output.

    Argument names, parameter names (`qkv`, `proj`) and their layout are those of timm's `Attention`, so a timm
    checkpoint loads. Equation: README.md, "What it computes"; source: arXiv 2306.01594, section 3.

    Args:
        dim: width D of the tokens.
        num_heads: H.
        head_dim: E, default dim / num_heads. `head_dim=dim` is the full-width head of the paper's authors.
        qkv_bias, proj_bias: whether the two linear layers have a bias.
        attn_drop: dropout of the attention probabilities while training.
        proj_drop: dropout of the projected output while training; the residual joins after it.
        norm, scope, backend: as in `rsattn.residual_attention`.
        merge: as in `rsattn.add_best_head`.
        init_values: None (default) adds the best head as it is, as the paper does. A number makes a learnable
            parameter `gamma` (D,) that starts there, and the best head is multiplied by it, channel by channel, before
            it is added. At 0.0 the residual adds nothing until it has learned to. Named as in timm's `LayerScale`.

    Raises:
        ValueError: dim is not a multiple of num_heads and head_dim is not given, merge does not fit, or a number
            or a choice is not allowed.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm: Norm = "induced",
        scope: Scope = "sample",
        merge: Merge = "tile",
        init_values: float | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or (head_dim is not None and head_dim < 1):
            raise ValueError(f"num_heads={num_heads} and head_dim={head_dim} must be at least 1")
        if head_dim is None:
            if dim % num_heads:
                raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}; change one or give head_dim")
            head_dim = dim // num_heads
        check_merge_widths(dim, num_heads, head_dim, merge)
        check_dropout(attn_drop)
        self.options = ResidualOptions(norm, scope, merge, backend, init_values)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.attn_drop = attn_drop
        inner = num_heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(inner, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_parameter("gamma", self.options.gate(dim, device, dtype))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `attn_mask` broadcasts to (B, H, N, N), True = take part."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dim)
        call = self.options.call(qkv, attn_mask=attn_mask, dropout_p=self.attn_drop if self.training else 0.0)
        return attend_and_join(call, self._project, self)

    def _project(self, joined: Tensor) -> Tensor:
        return run_projection(joined, self.proj, self.proj_drop)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, {self.options!r}"
