"""`ResidualSelfAttention`: the attention module of a vision transformer, with its best head added to the output."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

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
    check_integer,
    check_merge_widths,
    check_tensor,
)
from .epilogue import join, run_projection


class Recorder(Protocol):
    """What sees every forward pass of a residual module.

    Attributes:
        wants_received: whether `note` needs `ResidualAttention.received`.
    """

    wants_received: bool

    def note(self, attention: ResidualAttention) -> None:
        """Called with the result of each forward pass."""


class ResidualOptions:
    """How a module ranks its heads and adds the best one: the options of our module and of the patched ones.

    The arguments become attributes. Set the class attribute `options` of `rsattn.integrations.timm.ResidualAttention`
    to change its options.

    Args:
        norm: as in `rsattn.residual_attention`.
        scope: as in `rsattn.residual_attention`.
        merge: as in `rsattn.add_best_head`.
        backend: as in `rsattn.residual_attention`.
        init_values: initial value of the learnable gate `gamma` of every module, or None for no gate.

    Raises:
        ValueError: an option is not one of its choices, or `init_values` is not a finite number.

    Example:
        >>> import rsattn
        >>> options = rsattn.ResidualOptions(norm="confidence", init_values=0.0)
        >>> options
        norm='confidence', scope='sample', merge='tile', init_values=0.0
        >>> options.gate(dim=3).tolist()
        [0.0, 0.0, 0.0]
        >>> rsattn.ResidualOptions(norm="L1")
        Traceback (most recent call last):
            ...
        ValueError: norm='L1' is not a choice; use one of 'induced', 'entrywise', 'confidence'
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
        """Make a new `gamma` (dim,).

        Args:
            dim: number of channels of the tokens, D.
            device: of the parameter; None for PyTorch's default.
            dtype: of the parameter; None for PyTorch's default.

        Returns:
            The parameter, filled with `init_values`, or None where there is no gate.

        Raises:
            ValueError: `init_values` is too large for the dtype.
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
        """Make a call with these options.

        Args:
            *inputs: query, key and value as in `rsattn.residual_attention`, or the one packed tensor of
                `rsattn.residual_attention_qkvpacked`.
            attn_mask: as in `rsattn.residual_attention`.
            dropout_p: as in `rsattn.residual_attention`.
            scale: as in `rsattn.residual_attention`.

        Returns:
            rsattn.call.Call: for `rsattn.module.attend_and_join`.
        """
        return Call(inputs, attn_mask, None, dropout_p, scale, self.norm, self.scope)

    def join(self, projected: Tensor, attended: Attended, gamma: Tensor | None) -> Tensor:
        """Add the best head to the projected output; a subclass may add something else.

        Args:
            projected: (B, N, D), from `rsattn.epilogue.run_projection`.
            attended: result of `rsattn.attention.attend`.
            gamma: (D,) gate, or None.

        Returns:
            (B, N, D) in the dtype of `projected`.
        """
        return join(projected, attended, self.merge, gamma)

    def __repr__(self) -> str:
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        gate = "" if self.init_values is None else f", init_values={self.init_values!r}"
        return f"norm={self.norm!r}, scope={self.scope!r}, merge={self.merge!r}{backend}{gate}"


class Residual:
    """Base class of every module that computes residual self-attention: ours, and those that `rsattn.patch` changed.

    Attributes:
        options: how it ranks its heads and adds the best one.
        gamma: (D,) parameter, the gate that multiplies the best head, or None where there is no gate.
    """

    options: ResidualOptions
    gamma: nn.Parameter | None
    _rsattn_recorders: threading.local | None = None  # its `here`: this thread's recorders

    def __getstate__(self) -> dict[str, Any]:
        """The state for copy and pickle, without recorders: an open record watches the original only."""
        return {name: value for name, value in vars(self).items() if name != "_rsattn_recorders"}

    def reset_parameters(self) -> None:
        """Reset `gamma` to `init_values`, after `to_empty` for instance, and what the library's own method resets."""
        inherited = getattr(super(), "reset_parameters", None)
        if inherited is not None:
            inherited()
        if self.gamma is not None and self.options.init_values is not None:
            nn.init.constant_(self.gamma, self.options.init_values)


def attend_and_join(call: Call, project: Callable[[Tensor], Tensor], attention: Residual) -> Tensor:
    """Compute Y = project(concat_h(O_h)) + gamma * merge(O_h*), all of a residual self-attention after Q, K and V.

    Args:
        call: made by `attention.options.call`.
        project: the output projection and its dropout, (B, N, H*E) -> (B, N, D), by `run_projection`.
        attention: the module that makes the call; its recorders see the result.

    Returns:
        (B, N, D).
    """
    options = attention.options
    recorders: tuple[Recorder, ...] = tuple(getattr(attention._rsattn_recorders, "here", ()))
    for recorder in recorders:
        call.return_received |= recorder.wants_received
    attended = attend(call, options.backend, linked=True)
    # In a backward pass, a checkpoint computes again what was recorded. (The compiler does not know the function.)
    again = recorders and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
    for recorder in () if again else recorders:
        recorder.note(attended.result)
    return options.join(project(attended.result.output.transpose(1, 2).flatten(2)), attended, attention.gamma)


class ResidualSelfAttention(Residual, nn.Module):
    """Multi-head self-attention whose best head is added to the projected output.

    It computes Y = proj_drop(concat_h(O_h) W_o + b) + gamma * merge(O_h*), before the block's own LayerScale, DropPath
    and skip connection. Source: Sharma & Verma, arXiv 2306.01594, section 3. Arguments, parameters (`qkv`, `proj`) and
    their layout are named as in timm's `Attention`, so a timm checkpoint loads.

    Args:
        dim: number of channels of the tokens, D.
        num_heads: number of heads, H.
        head_dim: channels of a head, E; None for dim / num_heads. `head_dim=dim` is the full-width head of the
            paper's authors.
        qkv_bias: whether the projection of Q, K and V has a bias.
        proj_bias: whether the output projection has a bias.
        attn_drop: dropout probability of the attention probabilities, in training only.
        proj_drop: dropout probability of the projected output, in training only; the residual is added after it.
        norm: as in `rsattn.residual_attention`.
        scope: as in `rsattn.residual_attention`.
        merge: as in `rsattn.add_best_head`.
        init_values: None adds the best head without a gate, as the paper does. A number makes a learnable gate
            `gamma` (D,) that starts there and multiplies each channel of the best head. At 0.0 the residual adds
            nothing until training changes the gate. Named as in timm's `LayerScale`.
        backend: as in `rsattn.residual_attention`.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.

    Raises:
        ValueError: `dim` is not a multiple of `num_heads` and `head_dim` is not given, `merge` does not fit these
            numbers, or a number or a choice is not allowed.
        TypeError: an argument that must be a number is not one.

    Example:
        The attention of a transformer block, with its skip connection:

        >>> import torch
        >>> import rsattn
        >>> norm, attention = torch.nn.LayerNorm(64), rsattn.ResidualSelfAttention(dim=64, num_heads=4)
        >>> x = torch.randn(2, 10, 64)  # 2 samples, 10 tokens, 64 channels
        >>> x = x + attention(norm(x))
        >>> x.shape
        torch.Size([2, 10, 64])

        With a gate, one parameter more is learned:

        >>> gated = rsattn.ResidualSelfAttention(dim=64, num_heads=4, init_values=0.0)
        >>> gated.load_state_dict(attention.state_dict(), strict=False).missing_keys
        ['gamma']
        >>> gated(x).sum().backward()
        >>> gated.gamma.grad.shape
        torch.Size([64])
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
        dim, num_heads = check_integer("dim", dim), check_integer("num_heads", num_heads)
        head_dim = None if head_dim is None else check_integer("head_dim", head_dim)
        if num_heads < 1 or (head_dim is not None and head_dim < 1):
            raise ValueError(f"num_heads={num_heads} and head_dim={head_dim} must be at least 1")
        if head_dim is None:
            if dim % num_heads:
                raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}; change one or give head_dim")
            head_dim = dim // num_heads
        check_merge_widths(dim, num_heads, head_dim, merge)
        attn_drop, proj_drop = check_dropout(attn_drop, "attn_drop"), check_dropout(proj_drop, "proj_drop")
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
        """Compute the attention of each sample's tokens.

        Args:
            x: (B, N, D). Differentiable.
            attn_mask: as in `rsattn.residual_attention`; broadcastable to (B, H, N, N).

        Returns:
            (B, N, D).

        Raises:
            ValueError: x has not three dimensions, or the mask does not fit.
            TypeError: the mask's dtype is not allowed, or x is not a tensor.
            BackendError: the named backend, or every backend, refuses this call.
        """
        if not isinstance(x, Tensor) or x.dim() != 3:
            check_tensor("x", x)
            raise ValueError(f"x must be (batch, tokens, dim); got {tuple(x.shape)}")
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dim)
        call = self.options.call(qkv, attn_mask=attn_mask, dropout_p=self.attn_drop if self.training else 0.0)
        return attend_and_join(call, self._project, self)

    def _project(self, joined: Tensor) -> Tensor:
        return run_projection(joined, self.proj, self.proj_drop)

    def extra_repr(self) -> str:
        """The options, for `print` of the module."""
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, {self.options!r}"
