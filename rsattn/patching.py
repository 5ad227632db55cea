"""`patch`: put residual self-attention into an existing model, and take it out again."""

from __future__ import annotations

import operator
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


@dataclass(repr=False)
class Patch:
    """The changes that `rsattn.patch` made, and their undo. A context manager: leaving it undoes the patch.

    Copied or pickled together with the model, for instance as an attribute of it, it undoes the patch of that copy.

    Attributes:
        modules: name in the model -> the module that now computes residual self-attention.

    Example:
        >>> import torch
        >>> import rsattn
        >>> layer = torch.nn.TransformerEncoderLayer(64, nhead=4, batch_first=True)
        >>> with rsattn.patch(layer) as patch:
        ...     print(list(patch.modules))
        ...     print([tuple(gate.shape) for gate in patch.parameters()])
        ['self_attn']
        [(64,)]
        >>> type(layer.self_attn).__name__, list(patch.parameters())
        ('MultiheadAttention', [])
    """

    modules: dict[str, nn.Module]
    _undo: list[Undo]
    _new: list[tuple[nn.Module, str]]

    def __repr__(self) -> str:
        names = list(self.modules)
        shown = names if len(names) < 4 else [*names[:2], "...", names[-1]]
        if not self._undo:
            return f"<Patch of {len(names)} modules, undone>"
        return f"<Patch of {len(names)} modules: {', '.join(name or 'the model itself' for name in shown)}>"

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters that the patch added: the gates, and those of new modules.

        An existing optimizer takes them with
        `optimizer.add_param_group({"params": list(patch.parameters()), "lr": 5e-3, "weight_decay": 0.0})`.

        Yields:
            torch.nn.Parameter: on the model's device. There are none after `undo()`.
        """
        for module, name in self._new:
            yield module.get_parameter(name)

    def undo(self) -> None:
        """Restore the model's own attention; weights that were trained since stay trained.

        The gates are removed. Weights that were replaced (`num_heads` or `head_dim` given) come back with their old
        values and `requires_grad`; if the new modules were moved to another device or dtype, put into training or
        evaluation mode, or all frozen in the meantime, so are those weights. Calling it again does nothing.
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
    """Replace the attention of a model by residual self-attention, in place.

    Weights and their `state_dict` keys stay as they are. By default each block gets one new parameter, the gate
    `gamma` (D,) that multiplies the best head. It starts at zero, so that a trained model computes what it did before,
    up to rounding, until training changes the gate. Patch before you build the optimizer.

    With `num_heads` or `head_dim` given, each block gets a newly initialized `rsattn.ResidualSelfAttention` instead,
    which has to be trained (steps iii and iv of Sharma & Verma, arXiv 2306.01594). `num_heads=4` and `head_dim` equal
    to the model's D are the authors' setting.

    Args:
        model: a model of a library listed in `rsattn.integrations`.
        blocks: indices of the attention blocks to patch, in the model's order and negative from the end, such as
            `[-1]` or `range(6, 12)`, or a function of a block's name and module that returns whether to. None for all
            blocks.
        norm: as in `rsattn.residual_attention`.
        scope: as in `rsattn.residual_attention`.
        merge: as in `rsattn.add_best_head`.
        init_values: initial value of the gates. None: no gates, the best head is added as in the paper; a model that
            was trained without it has to be trained again. "auto": 0.0 where weights are kept, None for new modules.
        backend: as in `rsattn.residual_attention`.
        num_heads: number of heads of the new modules; None for the model's own where `head_dim` is given.
        head_dim: channels of a head of the new modules; None for D / `num_heads` where that is given.

    Returns:
        Patch: undoes the patch with `Patch.undo()`, or as a context manager.

    Raises:
        ValueError: there is nothing to patch (the message says what was looked for), a block cannot be patched (the
            message says which and why), or an argument does not fit a block. The model is then unchanged.
        TypeError: `model` is no module, or `blocks` has another type.
        RuntimeError: the model is patched already.

    Example:
        >>> import torch
        >>> import rsattn
        >>> layer = torch.nn.TransformerEncoderLayer(64, nhead=4, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False).eval()
        >>> tokens = torch.randn(2, 10, 64)  # 2 samples, 10 tokens, 64 channels
        >>> before = model(tokens)
        >>> patch = rsattn.patch(model, blocks=[1, 2])
        >>> list(patch.modules)
        ['layers.1.self_attn', 'layers.2.self_attn']
        >>> torch.allclose(model(tokens), before, atol=1e-5)  # the gates start at zero
        True
        >>> for gate in patch.parameters():
        ...     _ = torch.nn.init.ones_(gate)  # training learns other values
        >>> torch.allclose(model(tokens), before, atol=1e-5)
        False
        >>> patch.undo()
        >>> torch.equal(model(tokens), before)
        True
    """
    fresh = num_heads is not None or head_dim is not None
    if init_values == "auto":
        init_values = None if fresh else 0.0
    elif isinstance(init_values, str):
        raise ValueError(f"init_values={init_values!r} is not a choice; use a number, None (no gate) or 'auto'")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {model!r}. Build the model, then patch it")
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
    """Swap the modules that were found; for new modules `shape` is (num_heads, head_dim)."""
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
            f"found nothing to patch in {type(model).__name__}. Looked for {wanted}.{_unknown_attention(model)} For "
            "another model, put rsattn.ResidualSelfAttention in by hand"
        )
    return found


def _unknown_attention(model: nn.Module) -> str:
    """A sentence about modules that look like attention but are of an unknown class."""
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
        numbers = _indices(blocks)
        beyond = [number for number in numbers if not -len(names) <= number < len(names)]
        if beyond or not numbers:
            raise ValueError(
                f"blocks={numbers} {f'has {beyond}, but' if beyond else 'is empty;'} the model has blocks 0 to "
                f"{len(names) - 1} ({names[0]!r} to {names[-1]!r})"
            )
        wanted = {number % len(names) for number in numbers}
        chosen = [name for i, name in enumerate(names) if i in wanted]
    return {name: found[name] for name in chosen}


def _indices(blocks: Iterable[int]) -> list[int]:
    try:
        return [operator.index(number) for number in blocks]
    except TypeError:
        raise TypeError(
            f"blocks={blocks!r} must be indices such as [-1] or range(6, 12), or a function of a block's name and its "
            "module"
        ) from None


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
        advice = "choose other blocks with blocks=; the model is unchanged"
        raise ValueError("\n".join(["cannot patch", *lines, advice]))
