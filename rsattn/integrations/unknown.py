"""What looks like attention in a model, of whatever library."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import nn

# In the name of a class or of one it inherits from, such as "WindowAttention" or "CrossAttn".
_ATTENTION = re.compile(r"attn|attention", re.I)
# The name of a layer that makes queries, such as "qkv", "to_q" or "projection_query".
_QUERIES = re.compile(r"((.*_)?proj(ection)?_|to_|w_?)?(q|qk|qkv|query|query_key_value)(_proj)?", re.I)


def unknown_attention(model: nn.Module, known: Collection[nn.Module]) -> dict[str, nn.Module]:
    """The modules of a model that look like attention, by name, without those that `rsattn.patch` knows.

    A module looks like attention if its class is named so, or if one of its layers makes queries. An attention that
    consists of several such modules counts once: as the one that makes its queries, or else as the innermost.

    Args:
        model: any model.
        known: attention of known classes in it. What is inside or around these is not returned.

    Returns:
        In the model's order.
    """
    inside = {inner for module in known for inner in module.modules()}
    alike = {m: name for name, m in model.named_modules() if m not in inside and _looks_like_attention(m)}
    found: dict[str, nn.Module] = {}
    parts: set[nn.Module] = set()
    for module, name in alike.items():
        contained = set(module.modules()) - {module}
        if module in parts or contained & inside:
            continue
        if _makes_queries(module):
            parts |= contained
        elif contained & alike.keys():
            continue
        found[name] = module
    return found


def _looks_like_attention(module: nn.Module) -> bool:
    return any(_ATTENTION.search(kind.__name__) for kind in type(module).__mro__) or _makes_queries(module)


def _makes_queries(module: nn.Module) -> bool:
    layers = (name for name, layer in module.named_children() if not isinstance(layer, nn.Embedding))
    return any(_QUERIES.fullmatch(name) for name in layers)
