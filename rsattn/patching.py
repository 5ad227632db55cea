"""`patch`: put residual self-attention into a model somebody already has, and take it out again."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from torch import nn

from .contract import Merge, Norm, Scope
from .integrations import LOOKS_FOR, Integration, Undo, loaded_integrations
from .module import ResidualOptions
from .recording import residual_modules


@dataclass
class Patch:
    """What `rsattn.patch` did. A context manager: leaving it undoes the patch.

    Attributes:
        modules: name in the model -> the module that now computes residual self-attention.
    """

    modules: dict[str, nn.Module]
    _undo: list[Undo]

    def undo(self) -> None:
        """Put the model back exactly as it was, the weights it has learned since included.

        Weights that were replaced (`num_heads` or `head_dim` given) come back with their old values. Calling it
        again does nothing.
        """
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
    norm: Norm = "induced",
    scope: Scope = "sample",
    merge: Merge = "tile",
    backend: str | None = None,
    num_heads: int | None = None,
    head_dim: int | None = None,
) -> Patch:
    """Swap residual self-attention into every attention block of a model, in place.

    Weights and `state_dict` keys stay as they are: the class of each block changes, nothing else. With
    `num_heads` or `head_dim` given, each block gets a freshly initialised `ResidualSelfAttention` of that shape
    instead (the paper's steps iii and iv); `num_heads=4, head_dim=<the model's width>` is its authors' setting.

    Args:
        model: a model of a library named in `rsattn.integrations`.
        norm, scope, backend: as in `rsattn.residual_attention`.
        merge: as in `rsattn.add_best_head`.
        num_heads, head_dim: heads of the fresh modules; the one not given follows from the model's own.

    Returns:
        `Patch`: `Patch.modules`, `Patch.undo()`, and a context manager that undoes on leaving.

    Raises:
        ValueError: nothing to patch was found (the message says what was looked for), or the merge or head
            shape does not fit a block. The model is then as it was.
        RuntimeError: the model is patched already.
    """
    options = ResidualOptions(norm, scope, merge, backend)
    already = residual_modules(model)
    if already:
        raise RuntimeError(
            f"{type(model).__name__} has residual self-attention in {len(already)} modules already "
            f"({', '.join(list(already)[:3])}, ...); call undo() on the Patch that put it there, then patch again"
        )
    integrations = loaded_integrations()
    found: dict[str, tuple[Integration, nn.Module]] = {
        name: (integration, module)
        for name, module in model.named_modules()
        for integration in integrations
        if integration.recognises(module)
    }
    if not found:
        wanted = "; ".join(f"{library}: {classes}" for library, classes in LOOKS_FOR.items())
        raise ValueError(
            f"found nothing to patch in {type(model).__name__}. Looked for {wanted}. For another model, put "
            "rsattn.ResidualSelfAttention in by hand"
        )
    result = Patch({}, [])
    try:
        for name, (integration, module) in found.items():
            if num_heads is None and head_dim is None:
                result._undo.append(integration.swap(module, options))
            else:
                result._undo.append(integration.replace(module, options, num_heads, head_dim))
            prefix = f"{name}." if name else ""
            inner = residual_modules(module)
            result.modules.update({(prefix + inside).rstrip("."): m for inside, m in inner.items()})
    except Exception:
        result.undo()
        raise
    return result
