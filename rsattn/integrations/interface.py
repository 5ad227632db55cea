"""`Integration`: what `rsattn.patch` has to know of a library. Each library has a file with a subclass of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..contract import check_merge_widths
from ..module import ResidualOptions, ResidualSelfAttention

Undo = Callable[[], None]
"""Undoes one change of a model. A `functools.partial` of the modules, so that a copy of it undoes the copy."""


def do_nothing() -> None:
    """An `Undo` where nothing was changed."""


@dataclass(frozen=True)
class Heads:
    """The shape, biases and dropout of a library's attention module, named as in `rsattn.ResidualSelfAttention`.

    Attributes:
        dim: number of channels of the tokens, D.
        num_heads: number of heads, H.
        head_dim: channels of a head, E.
        qkv_bias: whether the projections of Q, K and V have biases.
        proj_bias: whether the output projection has a bias.
        attn_drop: dropout probability of the attention probabilities.
        proj_drop: dropout probability of the projected output.
    """

    dim: int
    num_heads: int
    head_dim: int
    qkv_bias: bool
    proj_bias: bool
    attn_drop: float
    proj_drop: float


class Integration(ABC):
    """How the modules of one library are changed, in place, and changed back.

    `rsattn.patch` finds it as `integration` in the library's file of `rsattn.integrations`.

    Attributes:
        fresh: subclass of `rsattn.ResidualSelfAttention` whose `forward` is called as the library's; it replaces the
            library's module where `rsattn.patch` is given `num_heads` or `head_dim`.

    Example:
        >>> import torch
        >>> import rsattn
        >>> from rsattn.integrations.torch import integration
        >>> attention = torch.nn.MultiheadAttention(64, num_heads=4, batch_first=True)
        >>> integration.heads(attention).head_dim
        16
        >>> undo = integration.swap(attention, rsattn.ResidualOptions(init_values=0.0))
        >>> type(attention).__name__, attention.gamma.shape
        ('ResidualMultiheadAttention', torch.Size([64]))
        >>> undo()
        >>> type(attention).__name__
        'MultiheadAttention'
    """

    fresh: ClassVar[type[ResidualSelfAttention]] = ResidualSelfAttention

    @abstractmethod
    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        """Each class of the library -> our subclass of it, a `rsattn.module.Residual` with the same weights.

        Only modules of exactly these classes are changed; a user's subclass may compute something else.
        """

    @abstractmethod
    def heads(self, module: Any) -> Heads:
        """The shape, biases and dropout probabilities of the module's own attention."""

    def left_alone(self) -> dict[type[nn.Module], str]:
        """Each class of the library in which no attention is changed -> the reason, for `Patch.skipped`."""
        return {}

    def refusal(self, module: Any) -> str | None:
        """Why this module cannot be changed, although its class can; None when it can."""
        return None

    def refusal_of_fresh(self, module: Any) -> str | None:
        """Why a newly initialized module of another shape cannot replace this one; None when it can."""
        return None

    def prepare(self, model: nn.Module) -> Undo:
        """Change whatever else in the model would bypass the patched modules; returns the undo of it."""
        return do_nothing

    def swap(self, module: Any, options: ResidualOptions) -> Undo:
        """Change the module's class in place, keeping its weights and their names.

        Args:
            module: of one of the classes of `changes`.
            options: how it ranks its heads and adds the best one.

        Returns:
            Undo: a function that changes the module back.

        Raises:
            ValueError: `options.merge` does not fit the module's heads.
        """
        heads, library_class = self.heads(module), type(module)
        check_merge_widths(heads.dim, heads.num_heads, heads.head_dim, options.merge)
        module.register_parameter("gamma", _gate_for(module, heads, options))
        module.__class__ = self.changes()[library_class]
        module.options = options
        return partial(_swap_back, module, library_class)

    def replace(self, module: Any, options: ResidualOptions, num_heads: int | None, head_dim: int | None) -> Undo:
        """Turn the module into a newly initialized `fresh`, in place.

        Args:
            module: of one of the classes of `changes`.
            options: how it ranks its heads and adds the best one.
            num_heads: number of heads; None for the module's own.
            head_dim: channels of a head; None for dim / `num_heads`.

        Returns:
            Undo: a function that changes the module back, with its old weights.

        Raises:
            ValueError: these numbers or `options.merge` do not fit the module.
        """
        fresh = self.make_fresh(module, self.heads(module), options, num_heads, head_dim)
        before, library_class = module.__dict__, type(module)
        _copy_hooks(before, fresh.__dict__)
        module.__class__ = type(fresh)
        module.__dict__ = fresh.__dict__
        return partial(_put_back, module, library_class, before, ModuleState.of(fresh))

    def make_fresh(
        self, module: nn.Module, heads: Heads, options: ResidualOptions, num_heads: int | None, head_dim: int | None
    ) -> ResidualSelfAttention:
        """A new `fresh` with the module's device, dtype and mode; a number that is None follows from `heads`."""
        weight = next(module.parameters())
        fresh = self.fresh(
            heads.dim,
            heads.num_heads if num_heads is None else num_heads,
            head_dim,
            qkv_bias=heads.qkv_bias,
            proj_bias=heads.proj_bias,
            attn_drop=heads.attn_drop,
            proj_drop=heads.proj_drop,
            norm=options.norm,
            scope=options.scope,
            merge=options.merge,
            init_values=options.init_values,
            backend=options.backend,
            device=weight.device,
            dtype=weight.dtype,
        )
        return fresh.train(module.training)


def _gate_for(module: nn.Module, heads: Heads, options: ResidualOptions) -> nn.Parameter | None:
    """A new gate on the module's device, in the dtype of its first floating-point parameter."""
    if options.init_values is None:
        return None
    first = next(module.parameters(), None)
    floating = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    return options.gate(heads.dim, None if first is None else first.device, floating)


class ModuleState(NamedTuple):
    """What calls such as `model.eval()` change in a new module, but not in the module that it replaced."""

    training: bool
    device: torch.device
    dtype: torch.dtype
    frozen: bool

    @classmethod
    def of(cls, fresh: ResidualSelfAttention) -> ModuleState:
        weight = fresh.proj.weight
        own = [*fresh.qkv.parameters(), *fresh.proj.parameters(), *fresh.parameters(recurse=False)]
        return cls(fresh.training, weight.device, weight.dtype, not any(p.requires_grad for p in own))

    def apply_changes(self, before: ModuleState, old: nn.Module, present: set[nn.Parameter]) -> None:
        """Repeat on `old` what has changed since `before`; `present` are the parameters that the calls did reach."""
        if self.training != before.training:
            old.train(self.training)
        if self.device != before.device:
            old.to(self.device)
        if self.dtype != before.dtype:
            old.to(self.dtype)
        if self.frozen and not before.frozen:
            for parameter in set(old.parameters()) - present:
                parameter.requires_grad_(False)


def _swap_back(module: Any, library_class: type[nn.Module]) -> None:
    if parametrize.is_parametrized(module, "gamma"):
        parametrize.remove_parametrizations(module, "gamma")
    module.__class__ = library_class
    del module.options, module.gamma
    vars(module).pop("_rsattn_recorders", None)


def _put_back(module: Any, library_class: type[nn.Module], before: dict[str, Any], state_before: ModuleState) -> None:
    state, present = ModuleState.of(module), set(module.parameters())
    _copy_hooks(module.__dict__, before)
    module.__class__ = library_class
    module.__dict__ = before
    state.apply_changes(state_before, module, present)


def _copy_hooks(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Hooks belong to the module, not to how it computes."""
    target.update({name: value for name, value in source.items() if "_hook" in name})


OWN_FORWARD = (
    "`forward` is set on the instance, and would run instead of the patched class's; remove it (hooks of accelerate: "
    "accelerate.hooks.remove_hook_from_module), patch, then add it again"
)


def has_own_forward(module: nn.Module) -> bool:
    return "forward" in vars(module)


def refusal_of_any(module: nn.Module, fresh: bool) -> str | None:
    """Why this module cannot be changed, whatever its library; `fresh`: whether a new module replaces it."""
    if has_own_forward(module):
        return OWN_FORWARD
    taken = [name for name in ("options", "gamma") if hasattr(module, name)]
    if taken and not fresh:
        return f"it has an attribute `{taken[0]}` already, a name that rsattn needs; rename yours"
    return None


def split_heads(projected: Tensor, heads: int) -> Tensor:
    """(B, N, H*E) -> (B, H, N, E), a view."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def packed_heads(projected: Tensor, heads: int) -> Tensor:
    """(B, N, 3*H*E), query before key before value -> (B, N, 3, H, E), a view."""
    return projected.unflatten(-1, (3, heads, -1))


def causal_mask(length: int, device: torch.device) -> Tensor:
    """(N, N) bool, True = take part: a token attends to itself and to those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
