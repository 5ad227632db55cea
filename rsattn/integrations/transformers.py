"""Hugging Face transformers: the attention of ViT, DeiT, DINOv2, DINOv3 and the others of `_FOLDERS`.

The residual is added after `o_proj`, which an attention function registered with the library cannot reach, so the
class is changed. The configured `attn_implementation` then only decides the kind of mask. Each class of the library
gets a subclass when it is first needed, so that rsattn imports no model's code; pickle finds the subclasses by name
through `__getattr__`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import transformers
from torch import Tensor, nn

from ..epilogue import run_projection
from ..module import Residual, ResidualSelfAttention, attend_and_join
from .interface import Heads, Integration, split_heads

# Class -> its folder in transformers.models; all have the same projections, and DINOv3's also rotates Q and K.
_FOLDERS = {
    "ASTAttention": "audio_spectrogram_transformer",
    "DINOv3ViTAttention": "dinov3_vit",
    "DeiTAttention": "deit",
    "Dinov2Attention": "dinov2",
    "Dinov2WithRegistersAttention": "dinov2_with_registers",
    "IJepaAttention": "ijepa",
    "PixioAttention": "pixio",
    "Tipsv2VisionAttention": "tipsv2",
    "ViTAttention": "vit",
    "ViTMAEAttention": "vit_mae",
    "ViTMSNAttention": "vit_msn",
    "VivitAttention": "vivit",
}


class _Residual(Residual, nn.Module):
    """A library's attention with its best head added to the projected output."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """(B, N, D) -> (B, N, D) and None; `position_embeddings` are the cosines and sines of DINOv3."""
        _check_options(self.config, kwargs)
        projected = (p(hidden_states) for p in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (split_heads(p, p.shape[-1] // self.head_dim) for p in projected)
        if position_embeddings is not None:
            query, key = self.rotate(query, key, *position_embeddings)
        mask, dropout_p = _mask(attention_mask), _dropout(self) if self.training else 0.0
        call = self.options.call(query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=self.scaling)
        return attend_and_join(call, self._project, self), None

    def _project(self: Any, joined: Tensor) -> Tensor:
        return run_projection(joined, self.o_proj)


class FreshAttention(ResidualSelfAttention):
    """A newly initialized attention, called as the library's."""

    config: Any

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """(B, N, D) -> (B, N, D) and None."""
        _check_options(self.config, kwargs)
        return super().forward(hidden_states, _mask(attention_mask)), None


def _check_options(config: Any, kwargs: dict[str, Any]) -> None:
    """Refuse options that only the library's attention supports; all keywords given to the model arrive here."""
    if kwargs.get("output_attentions", config.output_attentions):
        raise ValueError(
            "output_attentions=True asks for the N x N probabilities, which residual attention never stores; use "
            "`with rsattn.record(model, received=True)` for what each token receives, or undo() the patch"
        )
    if kwargs.get("head_mask") is not None:
        raise ValueError("head_mask is ignored by transformers 5 and not supported here; leave it out")
    if kwargs.get("is_causal"):
        raise ValueError(
            "is_causal=True means something different for each attn_implementation of transformers; pass an "
            "attention_mask of shape (B, 1, N, N) instead"
        )


def _mask(attention_mask: Any) -> Tensor | None:
    """The mask of the library's "eager", "sdpa" or "flash_attention_*" as one that broadcasts to (B, H, N, N)."""
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise TypeError(
            f"residual attention takes no mask of type {type(attention_mask).__name__}; "
            'call model.set_attn_implementation("sdpa")'
        )
    if attention_mask.dim() == 2:  # flash attention's, (B, N)
        return (attention_mask != 0)[:, None, None, :]
    return attention_mask


def _dropout(attention: Any) -> float:
    rate: float = attention.attention_dropout if hasattr(attention, "attention_dropout") else attention.dropout
    return rate


_OURS: dict[str, type[nn.Module]] = {"Residual": _Residual, "Fresh": FreshAttention}


_SUBCLASSES: dict[str, type[nn.Module]] = {}


def _subclass(prefix: str, name: str) -> type[nn.Module]:
    """`ResidualViTAttention` or `FreshViTAttention`: our `forward` in a subclass of the library's class.

    The library looks for its classes when it adds hooks to a model, once, at the first `output_hidden_states=True`. It
    must find a newly initialized attention too, or the original one would have no hook after `undo()`.
    """
    if prefix + name in _SUBCLASSES:
        return _SUBCLASSES[prefix + name]
    library = importlib.import_module(_module(name))
    members: dict[str, object] = {
        "__module__": __name__,
        "__doc__": f"transformers' `{name}` with its best head added.",
    }
    if hasattr(library, "apply_rotary_pos_emb"):
        members["rotate"] = staticmethod(library.apply_rotary_pos_emb)
    made = type(prefix + name, (_OURS[prefix], getattr(library, name)), members)
    return _SUBCLASSES.setdefault(prefix + name, made)  # the first thread's, where several made one


def _module(name: str) -> str:
    return f"transformers.models.{_FOLDERS[name]}.modeling_{_FOLDERS[name]}"


def __getattr__(name: str) -> type[nn.Module]:
    """`ResidualViTAttention` and the other subclasses, for pickle."""
    for prefix in _OURS:
        if name.startswith(prefix) and name.removeprefix(prefix) in _FOLDERS:
            return _subclass(prefix, name.removeprefix(prefix))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Transformers(Integration):
    fresh = FreshAttention

    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        """Only the classes whose models were imported."""
        imported = {name: sys.modules.get(_module(name)) for name in _FOLDERS}
        return {
            getattr(module, name): _subclass("Residual", name)
            for name, module in imported.items()
            if hasattr(module, name)
        }

    def refusal(self, module: Any) -> str | None:
        """ViT has these projections since 5.9, DINOv2 since 5.18; DINOv3's attention gets no keywords before 5.9."""
        version = transformers.__version__
        if hasattr(module, "o_proj") and tuple(map(int, version.split(".")[:2])) >= (5, 9):
            return None
        return f"transformers {version} builds it differently; rsattn needs transformers 5.18 or newer, please upgrade"

    def refusal_of_fresh(self, module: Any) -> str | None:
        if type(module).__name__ == "DINOv3ViTAttention":
            return "a newly initialized attention would lose this one's position embedding"
        return None

    def heads(self, module: Any) -> Heads:
        return Heads(
            module.o_proj.out_features,
            module.q_proj.out_features // module.head_dim,
            module.head_dim,
            qkv_bias=module.q_proj.bias is not None,
            proj_bias=module.o_proj.bias is not None,
            attn_drop=_dropout(module),
            proj_drop=0.0,
        )

    def make_fresh(self, module: Any, *shape: Any) -> ResidualSelfAttention:
        fresh: Any = super().make_fresh(module, *shape)
        fresh.__class__ = _subclass("Fresh", type(module).__name__)
        fresh.config = module.config
        return fresh


integration = Transformers()
