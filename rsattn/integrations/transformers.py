"""Hugging Face transformers: the attention of ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, Swin and others of `_FOLDERS`.

The residual is added after `o_proj` (`out_proj` in CLIP and SigLIP), which an attention function registered with the
library cannot reach, so the class is changed. The configured `attn_implementation` then only decides the kind of mask.
Each class of the library gets a subclass when it is first needed, so that rsattn imports no model's code; pickle finds
the subclasses by name through `__getattr__`.
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
from .windows import WHY_NOT_FRESH, continuous_position_bias, for_cosines, position_bias, window_mask

# Class -> its folder in transformers.models, and its file where that has another name. These are copies of an older
# Swin: `self` has the projections of Q, K and V, `output` that of the joined heads.
_OLDER_SWIN = {
    "ClapAudioAttention": "clap",
    "DonutSwinAttention": "donut/donut_swin",
    "MaskFormerSwinAttention": "maskformer/maskformer_swin",
    "Swin2SRAttention": "swin2sr",
    "Swinv2Attention": "swinv2",
}
# The others all have the same projections; DINOv3's also rotates Q and K, and Swin's adds a bias.
_FOLDERS = {
    **_OLDER_SWIN,
    "ASTAttention": "audio_spectrogram_transformer",
    "BeitAttention": "beit",
    "CLIPAttention": "clip",
    "DINOv3ViTAttention": "dinov3_vit",
    "DeiTAttention": "deit",
    "Dinov2Attention": "dinov2",
    "Dinov2WithRegistersAttention": "dinov2_with_registers",
    "IJepaAttention": "ijepa",
    "PixioAttention": "pixio",
    "Siglip2Attention": "siglip2",
    "SiglipAttention": "siglip",
    "SwinAttention": "swin",
    "Tipsv2VisionAttention": "tipsv2",
    "ViTAttention": "vit",
    "ViTMAEAttention": "vit_mae",
    "ViTMSNAttention": "vit_msn",
    "VivitAttention": "vivit",
}

_POOLING = "pools the tokens with a learned query, which is not self-attention"
# Class -> its folder, and why the attention inside it is left alone.
_LEFT_ALONE = {
    "CLIPTextModel": ("clip", "causal attention of CLIP's text encoder, which is no vision transformer"),
    "Siglip2MultiheadAttentionPoolingHead": ("siglip2", _POOLING),
    "SiglipMultiheadAttentionPoolingHead": ("siglip", _POOLING),
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
        bias = getattr(self, "relative_position_bias", None)  # Swin's, whose mask is (windows, N, N)
        mask = _mask(attention_mask) if bias is None else window_mask(bias(), attention_mask)
        dropout_p = _dropout(self) if self.training else 0.0
        scale = self.scale if hasattr(self, "scale") else self.scaling
        call = self.options.call(query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=scale)
        return attend_and_join(call, self._project, self), None

    def _project(self: Any, joined: Tensor) -> Tensor:
        return run_projection(joined, _output_projection(self))


class _ResidualOfOlderSwin(Residual, nn.Module):
    """The attention of a copy of an older Swin with each window's best head added to the projected output."""

    def forward(
        self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool | None = False
    ) -> tuple[Tensor]:
        """(B * windows, N, D) -> (B * windows, N, D); `attention_mask` (windows, N, N) is added to the scores."""
        _refuse_probabilities(output_attentions)
        inner, scale = self.self, None
        projected = (p(hidden_states) for p in (inner.query, inner.key, inner.value))
        query, key, value = (split_heads(p, inner.num_attention_heads) for p in projected)
        if hasattr(inner, "logit_scale"):  # version 2
            query, key = for_cosines(query, key, inner.logit_scale)
            table = inner.continuous_position_bias_mlp, inner.relative_coords_table
            bias, scale = continuous_position_bias(*table, inner.relative_position_index), 1.0
            attention_mask = None if attention_mask is None else 2.0 * attention_mask  # the library adds it twice
        else:
            bias = position_bias(inner.relative_position_bias_table, inner.relative_position_index)
        mask, dropout_p = window_mask(bias, attention_mask), inner.dropout.p if self.training else 0.0
        call = self.options.call(query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=scale)
        return (attend_and_join(call, self._project, self),)

    def _project(self: Any, joined: Tensor) -> Tensor:
        return run_projection(joined, self.output.dense, self.output.dropout)


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
    _refuse_probabilities(kwargs.get("output_attentions", config.output_attentions))
    if kwargs.get("head_mask") is not None:
        raise ValueError("head_mask is ignored by transformers 5 and not supported here; leave it out")
    if kwargs.get("is_causal"):
        raise ValueError(
            "is_causal=True means something different for each attn_implementation of transformers; pass an "
            "attention_mask of shape (B, 1, N, N) instead"
        )


def _refuse_probabilities(output_attentions: bool | None) -> None:
    if output_attentions:
        raise ValueError(
            "output_attentions=True asks for the N x N probabilities, which residual attention never stores; use "
            "`with rsattn.record(model, received=True)` for what each token receives, or undo() the patch"
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


def _is_older_swin(attention: nn.Module) -> bool:
    return type(attention).__name__ in _OLDER_SWIN


def _output_projection(attention: Any) -> Any:
    """The linear layer; None in old versions of the library."""
    return getattr(attention, "o_proj", None) or getattr(attention, "out_proj", None)


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
    library = importlib.import_module(_module(_FOLDERS[name]))
    members: dict[str, object] = {
        "__module__": __name__,
        "__doc__": f"transformers' `{name}` with its best head added.",
    }
    if hasattr(library, "apply_rotary_pos_emb"):
        members["rotate"] = staticmethod(library.apply_rotary_pos_emb)
    ours = _ResidualOfOlderSwin if prefix == "Residual" and name in _OLDER_SWIN else _OURS[prefix]
    made = type(prefix + name, (ours, getattr(library, name)), members)
    return _SUBCLASSES.setdefault(prefix + name, made)  # the first thread's, where several made one


def _module(where: str) -> str:
    folder, _, file = where.partition("/")
    return f"transformers.models.{folder}.modeling_{file or folder}"


def _imported_class(name: str, folder: str) -> type[nn.Module] | None:
    """None where the user has not imported the models of this folder."""
    found: type[nn.Module] | None = getattr(sys.modules.get(_module(folder)), name, None)
    return found


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
        imported = {name: _imported_class(name, folder) for name, folder in _FOLDERS.items()}
        return {kind: _subclass("Residual", name) for name, kind in imported.items() if kind is not None}

    def left_alone(self) -> dict[type[nn.Module], str]:
        """Only the classes whose models were imported."""
        imported = [(_imported_class(name, folder), reason) for name, (folder, reason) in _LEFT_ALONE.items()]
        return {kind: reason for kind, reason in imported if kind is not None}

    def refusal(self, module: Any) -> str | None:
        """ViT has these projections since 5.9, DINOv2 since 5.18; DINOv3's attention gets no keywords before 5.9."""
        version = transformers.__version__
        expected = hasattr(module, "self") if _is_older_swin(module) else _output_projection(module) is not None
        if expected and tuple(map(int, version.split(".")[:2])) >= (5, 9):
            return None
        return f"transformers {version} builds it differently; rsattn needs transformers 5.18 or newer, please upgrade"

    def refusal_of_fresh(self, module: Any) -> str | None:
        if type(module).__name__ == "DINOv3ViTAttention":
            return "a newly initialized attention would lose this one's position embedding"
        if _is_older_swin(module) or hasattr(module, "relative_position_bias"):
            return WHY_NOT_FRESH
        biases = ("use_relative_position_bias", "use_shared_relative_position_bias")  # of BEiT's layer and encoder
        if any(getattr(module.config, name, False) for name in biases):
            return "the heads of a newly initialized attention would not be those of the model's position bias"
        return None

    def heads(self, module: Any) -> Heads:
        if _is_older_swin(module):
            inner, output = module.self, module.output
            return Heads(
                output.dense.out_features,
                inner.num_attention_heads,
                inner.attention_head_size,
                qkv_bias=inner.query.bias is not None,
                proj_bias=output.dense.bias is not None,
                attn_drop=inner.dropout.p,
                proj_drop=output.dropout.p,
            )
        projection = _output_projection(module)
        return Heads(
            projection.out_features,
            module.q_proj.out_features // module.head_dim,
            module.head_dim,
            qkv_bias=module.q_proj.bias is not None,
            proj_bias=projection.bias is not None,
            attn_drop=_dropout(module),
            proj_drop=0.0,
        )

    def make_fresh(self, module: Any, *shape: Any) -> ResidualSelfAttention:
        fresh: Any = super().make_fresh(module, *shape)
        fresh.__class__ = _subclass("Fresh", type(module).__name__)
        fresh.config = module.config
        return fresh


integration = Transformers()
