"""`patch`: put residual self-attention into a model somebody already has, and take it out again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from torch import nn

from .contract import Merge, Norm, Scope
from .integrations import LOOKS_FOR, Integration, Undo, loaded_integrations, refusal_of_any
from .module import ResidualOptions
from .recording import residual_modules

Found = dict[str, tuple[Integration, nn.Module]]
Blocks = Iterable[int] | Callable[[str, nn.Module], bool]

_ONE_AT_A_TIME = threading.RLock()


@dataclass
class Patch:
    """What `rsattn.patch` did. A context manager: leaving it undoes the patch.

    Copied or pickled together with the model, as an attribute of it for instance, it undoes the patch of that copy.

    Attributes:
        modules: name in the model -> the module that now computes residual self-attention.
    """

    modules: dict[str, nn.Module]
    _undo: list[Undo]
    _new: list[tuple[nn.Module, str]]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the model did not have before: the gates, and those of fresh heads. None after `undo()`.

        For an optimizer that was built before, `optimizer.add_param_group({"params": list(patch.parameters())})`.
        """
        for module, name in self._new:
            yield module.get_parameter(name)

    def undo(self) -> None:
        """Put the model back exactly as it was, the weights it has learned since included.

        Gates are gone. Weights that were replaced (`num_heads` or `head_dim` given) come back with their old values and
        `requires_grad`; if the fresh heads were moved to another device or dtype, put into training or evaluation mode,
        or all frozen since, so are those weights. Calling it again does nothing.
        """
        with _ONE_AT_A_TIME:
            self._new.clear()
            while self._undo:
                self._undo.pop()()

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def patch(
    model: nn.Module,
    *,
    blocks: Blocks | None = None,
    norm: Norm = "induced",
    scope: Scope = "sample",
    merge: Merge = "tile",
    init_values: float | Literal["auto"] | None = "auto",
    backend: str | None = None,
    num_heads: int | None = None,
    head_dim: int | None = None,
) -> Patch:
    """Swap residual self-attention into the attention blocks of a model, in place.

    Weights and their `state_dict` keys stay as they are. By default each block gets one parameter more, the gate
    `gamma` (D,) that the best head is multiplied by; it starts at zero, so that a trained model keeps what it knows,
    and learns. Patch before you build the optimizer. With `num_heads` or `head_dim` given, each block gets a freshly
    initialised `ResidualSelfAttention` of that shape instead (the paper's steps iii and iv);
    `num_heads=4, head_dim=<the model's width>` is its authors' setting.

    Args:
        model: a model of a library named in `rsattn.integrations`.
        blocks: which of the attention blocks, counted from 0 in the model's order, such as `range(6, 12)`, or a
            function of a block's name and module. Default: all of them.
        norm, scope, backend: as in `rsattn.residual_attention`.
        merge: as in `rsattn.add_best_head`.
        init_values: what the gates start at. None: no gates, the best head is added as it is, as in the paper; a model
            trained without it has to be trained anew then. "auto" (default): 0.0 where weights are kept, None for fresh
            heads.
        num_heads, head_dim: heads of the fresh modules; the one not given follows from the model's own.

    Returns:
        `Patch`: `Patch.modules`, `Patch.parameters()`, `Patch.undo()`, and a context manager that undoes on leaving.

    Raises:
        ValueError: nothing to patch was found (the message says what was looked for), a block does something
            residual attention has no place for (the message names it and says why), or the merge or head
            shape does not fit a block. The model is then as it was.
        RuntimeError: the model is patched already.
    """
    fresh = num_heads is not None or head_dim is not None
    if init_values == "auto":
        init_values = None if fresh else 0.0
    elif isinstance(init_values, str):
        raise ValueError(f"init_values={init_values!r} is not a choice; use a number, None (no gate) or 'auto'")
    options = ResidualOptions(norm, scope, merge, backend, init_values)
    with _ONE_AT_A_TIME:
        _check_unpatched(model)
        found = _select(_find(model), blocks)
        _refuse(found, fresh)
        return _change(model, found, options, (num_heads, head_dim) if fresh else None)


def _check_unpatched(model: nn.Module) -> None:
    already = residual_modules(model)
    if already:
        raise RuntimeError(
            f"{type(model).__name__} has residual self-attention in {len(already)} modules already "
            f"({', '.join(list(already)[:3])}, ...); call undo() on the Patch that put it there, then patch again"
        )


def _change(
    model: nn.Module, found: Found, options: ResidualOptions, shape: tuple[int | None, int | None] | None
) -> Patch:
    """Swap the modules that were found; for fresh heads, `shape` is their number and width."""
    before = set(model.parameters())
    result = Patch({}, [], [])
    try:
        for integration in {id(integration): integration for integration, _ in found.values()}.values():
            result._undo.append(integration.prepare(model))
        for name, (integration, module) in found.items():
            if shape is None:
                result._undo.append(integration.swap(module, options))
            else:
                result._undo.append(integration.replace(module, options, *shape))
            prefix = f"{name}." if name else ""
            inner = residual_modules(module)
            result.modules.update({(prefix + inside).rstrip("."): m for inside, m in inner.items()})
    except Exception:
        result.undo()
        raise
    for module in model.modules():
        own = module.named_parameters(recurse=False)
        result._new += [(module, name) for name, parameter in own if parameter not in before]
    return result


def _find(model: nn.Module) -> Found:
    known = {kind: integration for integration in loaded_integrations() for kind in integration.changes()}
    found = {name: (known[type(m)], m) for name, m in model.named_modules() if type(m) in known}
    if not found:
        wanted = "; ".join(f"{library}: {classes}" for library, classes in LOOKS_FOR.items())
        raise ValueError(
            f"found nothing to patch in {type(model).__name__}. Looked for {wanted}.{_strangers(model)} For another "
            "model, put rsattn.ResidualSelfAttention in by hand"
        )
    return found


def _strangers(model: nn.Module) -> str:
    """A sentence about modules that look like attention but are of no class we know."""
    seen: dict[type, str] = {}
    for name, module in model.named_modules():
        if "attn" in type(module).__name__.lower() or "attention" in type(module).__name__.lower():
            seen.setdefault(type(module), name)
    if not seen:
        return ""
    listed = ", ".join(f"{kind.__module__}.{kind.__qualname__} ({name})" for kind, name in list(seen.items())[:3])
    return f" It has attention of another kind: {listed}."


def _select(found: Found, blocks: Blocks | None) -> Found:
    names = list(found)
    if blocks is None:
        return found
    if callable(blocks):
        chosen = [name for name in names if blocks(name, found[name][1])]
        if not chosen:
            raise ValueError(f"blocks(name, module) was false for every one of {', '.join(map(repr, names))}")
    else:
        numbers = list(blocks)
        beyond = [number for number in numbers if not 0 <= number < len(names)]
        if beyond or not numbers:
            raise ValueError(
                f"blocks={numbers} {f'has {beyond}, and' if beyond else 'is empty;'} the model has blocks 0 to "
                f"{len(names) - 1} ({names[0]!r} to {names[-1]!r})"
            )
        chosen = [name for i, name in enumerate(names) if i in set(numbers)]
    return {name: found[name] for name in chosen}


def _refuse(found: Found, fresh: bool) -> None:
    reasons: dict[str, list[str]] = {}
    for name, (integration, module) in found.items():
        reason = refusal_of_any(module, fresh) or integration.refusal(module)
        if fresh and not reason:
            reason = integration.refusal_of_fresh(module)
        if reason:
            reasons.setdefault(f"{type(module).__name__}: {reason}", []).append(name or "the model itself")
    if reasons:
        lines = [f"  {', '.join(names[:3])}{', ...' if names[3:] else ''} ({why})" for why, names in reasons.items()]
        raise ValueError("cannot patch\n" + "\n".join(lines) + "\nblocks= chooses the others; the model is as it was")
