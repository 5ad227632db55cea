"""What `rsattn.patch` has to know of a library; the file of each library says it in a subclass of `Integration`."""

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
"""Takes one change of a model back. A `functools.partial` of the modules, so that a copy of it undoes the copy."""


def do_nothing() -> None:
    """An `Undo` where there is nothing to take back."""


@dataclass(frozen=True)
class Heads:
    """An attention from outside: tokens of `dim` channels, `num_heads` heads of `head_dim`, its biases and dropouts."""

    dim: int
    num_heads: int
    head_dim: int
    qkv_bias: bool
    proj_bias: bool
    attn_drop: float
    proj_drop: float


class Integration(ABC):
    """How one library's modules are changed, in place, and changed back."""

    fresh: ClassVar[type[ResidualSelfAttention]] = ResidualSelfAttention
    """Our module, called as the library calls its own."""

    @abstractmethod
    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        """A class of the library -> our subclass of it: same weights, a `Residual`, and a `forward`.

        Modules of exactly these classes are changed; a subclass of the user's own may mean something else.
        """

    @abstractmethod
    def heads(self, module: Any) -> Heads:
        """What the module's own attention looks like."""

    def refusal(self, module: Any) -> str | None:
        """Why this one cannot be changed, though its class can."""
        return None

    def refusal_of_fresh(self, module: Any) -> str | None:
        """Why freshly initialised heads of another shape cannot take this module's place."""
        return None

    def prepare(self, model: nn.Module) -> Undo:
        """What else in the model has to change for the patched modules to be called."""
        return do_nothing

    def swap(self, module: Any, options: ResidualOptions) -> Undo:
        """Change the module's class in place, keeping its weights and their names."""
        heads, library_class = self.heads(module), type(module)
        check_merge_widths(heads.dim, heads.num_heads, heads.head_dim, options.merge)
        module.register_parameter("gamma", _gate_for(module, heads, options))
        module.__class__ = self.changes()[library_class]
        module.options = options
        return partial(_swap_back, module, library_class)

    def replace(self, module: Any, options: ResidualOptions, num_heads: int | None, head_dim: int | None) -> Undo:
        """Turn the module into a freshly initialised `ResidualSelfAttention`, the same object to whoever holds it."""
        fresh = self.make_fresh(module, self.heads(module), options, num_heads, head_dim)
        before, library_class = module.__dict__, type(module)
        _hand_over_hooks(before, fresh.__dict__)
        module.__class__ = type(fresh)
        module.__dict__ = fresh.__dict__
        return partial(_put_back, module, library_class, before, ModuleState.of(fresh))

    def make_fresh(
        self, module: nn.Module, heads: Heads, options: ResidualOptions, num_heads: int | None, head_dim: int | None
    ) -> ResidualSelfAttention:
        """A `fresh` of the module's device, dtype and mode; the shape not given follows from its own heads."""
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
    """On the module's device, in the dtype of its first parameter that is a floating-point one."""
    if options.init_values is None:
        return None
    first = next(module.parameters(), None)
    floating = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    return options.gate(heads.dim, None if first is None else first.device, floating)


class ModuleState(NamedTuple):
    """What calls such as `model.eval()` change in fresh heads, and not in the module that they replace."""

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
        """Change in `old` what has changed since `before`; `present` are the parameters that calls did reach."""
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
    _hand_over_hooks(module.__dict__, before)
    module.__class__ = library_class
    module.__dict__ = before
    state.apply_changes(state_before, module, present)


def _hand_over_hooks(giver: dict[str, Any], taker: dict[str, Any]) -> None:
    """What was registered on a module, and not on what it computes."""
    taker.update({name: value for name, value in giver.items() if "_hook" in name})


OWN_FORWARD = (
    "`forward` is set on the instance, and would run instead of the patched class's; remove it (hooks of accelerate: "
    "accelerate.hooks.remove_hook_from_module), patch, then add it again"
)


def has_own_forward(module: nn.Module) -> bool:
    return "forward" in vars(module)


def refusal_of_any(module: nn.Module, fresh: bool) -> str | None:
    """Why this module cannot be changed, whatever its library; `fresh`: all that it holds is to be replaced."""
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
    """(N, N) bool, True = take part: a token sees itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
