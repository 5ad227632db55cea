"""`patch`: put residual self-attention into an existing model, and take it out again."""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from torch import Tensor, nn

from .contract import Merge, Norm, Scope, brief, check_module
from .integrations import LOOKS_FOR, Integration, Undo, loaded_integrations, refusal_of_any
from .integrations.unknown import unknown_attention
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
        skipped: name in the model -> the reason, for every module that looks like attention and cannot be patched.
            Blocks that `blocks=` left out are not in it.

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
    skipped: dict[str, str]
    _undo: list[Undo]
    _new: list[tuple[nn.Module, str]]

    def __repr__(self) -> str:
        count = _counted(len(self.modules), "module")
        if not self._undo:
            return f"<Patch of {count}, undone>"
        skipped = f"; {len(self.skipped)} skipped" if self.skipped else ""
        return f"<Patch of {count}: {_shortened(list(self.modules))}{skipped}>"

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

    Attention of a class that rsattn does not know stays as it is. `Patch.skipped` lists it, and there is a warning
    where that is most of the model's attention.

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
        ValueError: there is nothing to patch (the message says what attention the model has), a block cannot be
            patched (the message says which and why), or an argument does not fit a block. The model is then unchanged.
        TypeError: `model` is no module, `blocks` are no indices or function, or a number of heads or channels is no
            integer.
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
    check_module(model)
    options = ResidualOptions(norm, scope, merge, backend, init_values)
    with _ONE_AT_A_TIME:
        _check_unpatched(model)
        found, skipped = _find(model)
        chosen = _select(found, blocks)
        _refuse(chosen, fresh)
        result = _change(model, chosen, options, (num_heads, head_dim) if fresh else None)
    result.skipped.update(skipped)
    if len(skipped) > len(found):
        warnings.warn(
            f"most attention of {type(model).__name__} is not patched: {_counted(len(chosen), 'module')} patched, "
            f"{len(skipped)} left alone ({_by_reason(skipped)}). Patch.skipped lists them; to change them too, put "
            "rsattn.ResidualSelfAttention in by hand",
            stacklevel=2,
        )
    return result


def _check_unpatched(model: nn.Module) -> None:
    already = residual_modules(model)
    if already:
        raise RuntimeError(
            f"{type(model).__name__} has residual self-attention in {_counted(len(already), 'module')} already "
            f"({_shortened(list(already))}); call undo() on the Patch that put it there, then patch again"
        )


def _change(
    model: nn.Module, found: Found, options: ResidualOptions, shape: tuple[int | None, int | None] | None
) -> Patch:
    """Swap the modules that were found; for new modules `shape` is (num_heads, head_dim)."""
    before = set(model.parameters())
    result = Patch({}, {}, [], [])
    try:
        for integration in {id(integration): integration for integration, _ in found.values()}.values():
            result._undo.append(integration.prepare(model))
        for name, (integration, module) in found.items():
            try:
                if shape is None:
                    result._undo.append(integration.swap(module, options))
                else:
                    result._undo.append(integration.replace(module, options, *shape))
            except ValueError as error:
                raise ValueError(f"cannot patch {_shortened([name])} ({type(module).__name__}): {error}") from None
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


def _find(model: nn.Module) -> tuple[Found, dict[str, str]]:
    """The modules that can be patched, and name -> reason for those that look like attention and cannot."""
    integrations = loaded_integrations()
    known = {kind: integration for integration in integrations for kind in integration.changes()}
    left_alone = {kind: reason for integration in integrations for kind, reason in integration.left_alone().items()}
    reasons = {
        inner: reason
        for module in model.modules()
        for kind, reason in left_alone.items()
        if isinstance(module, kind)
        for inner in module.modules()
    }
    attention = {name: module for name, module in model.named_modules() if type(module) in known}
    unknown = unknown_attention(model, attention.values())
    found = {name: (known[type(m)], m) for name, m in attention.items() if m not in reasons}
    skipped = {
        name: reasons.get(module) or _why_unknown(module, known)
        for name, module in model.named_modules()
        if name in unknown or (name in attention and name not in found)
    }
    if not found:
        cause = _by_reason(skipped) if skipped else "nothing in it looks like attention"
        raise ValueError(
            f"found nothing to patch in {type(model).__name__}: {cause}.\nrsattn knows attention of "
            f"{', '.join(LOOKS_FOR)} (the classes: rsattn.integrations.LOOKS_FOR). For another model, put "
            "rsattn.ResidualSelfAttention in by hand"
        )
    return found, skipped


def _why_unknown(module: nn.Module, known: Iterable[type[nn.Module]]) -> str:
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, tuple(known)):
        return f"{kind} is a subclass of a class that rsattn knows, and may compute something else"
    return f"rsattn does not know {kind}"


def _by_reason(skipped: dict[str, str]) -> str:
    """The first reasons, each with the names of its modules."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    words = [f"{reason} ({_shortened(some)})" for reason, some in names.items()]
    return "; ".join(words if len(words) < 4 else [*words[:3], "..."])


def _shortened(names: list[str]) -> str:
    """The first, ..., the last of the names of modules."""
    some = names if len(names) < 4 else [*names[:2], "...", names[-1]]
    return ", ".join(name or "the model itself" for name in some)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


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
        numbers = blocks.tolist() if isinstance(blocks, Tensor) else list(blocks)
        if any(isinstance(number, bool) for number in numbers):  # a bool is an integer to Python
            raise TypeError
        return [operator.index(number) for number in numbers]
    except TypeError:
        raise TypeError(
            f"blocks={brief(blocks)} must be indices such as [-1] or range(6, 12), or a function of a block's name and "
            "its module"
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
