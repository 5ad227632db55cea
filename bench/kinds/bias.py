"""A training step of an attention block with a learned position bias: patched, the library's own, and FlexAttention.

BEiT's bias is a table of relative positions, the same for all samples, which timm passes to SDPA. Swin's samples are
windows of an image; where these are shifted, each window has a mask besides the table. MONAI's bias depends on the
queries too, so each sample has another one. timm computes Swin's attention, and MONAI its own, in eager PyTorch.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import rsattn
from rsattn.call import unpacked
from rsattn.cli.packages import cause_of, is_installed, sentence, with_torchvision

from ..baselines import FLEX, RSATTN
from ..cases import Case, Setup
from ..clock import Variant, copies
from ..inputs import tell_heads_apart
from ..shapes import Shape, real_shapes
from .attention import dtypes
from .block import TOLERANCE

BEIT, SWIN, SABLOCK = "timm's BEiT", "timm's Swin", "MONAI's SABlock"
LIBRARY = "the library's own"

# Query, key, value and the bias, (1, H, N, N), (B, H, N, N), or for shifted windows (windows of an image, H, N, N).
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
SIDE = 8  # windows along each side of an image, as in Swin's first stage at 224


def cases(device: torch.device) -> list[Case]:
    shapes = real_shapes(device)
    of_beit = [(BEIT, f"BEiT-B/16 at {pixels}", shapes[f"ViT-B/16 at {pixels}"]) for pixels in (224, 384)]
    on_gpu = device.type == "cuda"
    windows = (SWIN, "shifted windows of Swin-T at 224", Shape((64 if on_gpu else 8) * SIDE**2, 3, 7**2, 32))
    volume = (SABLOCK, "a volume of 8 x 8 x 8 patches", Shape(16 if on_gpu else 2, 12, 8**3, 64))
    return [
        Case("bias", shape, dtype, True, model, library)
        for library, model, shape in (*of_beit, windows, volume)
        for dtype in dtypes(device)
    ]


def names(case: Case, device: torch.device) -> list[str]:
    return [RSATTN, LIBRARY, FLEX]


@dataclass(frozen=True)
class Block:
    """A library's attention block, and what FlexAttention needs of it.

    Attributes:
        module: called with the tokens (B, N, D) and `options`.
        inputs: from the tokens.
        project: the output projection, of the joined heads (B, N, D).
    """

    module: nn.Module
    inputs: Callable[[Any, Tensor], Inputs]
    project: Callable[[Any, Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)


def beit(shape: Shape, like: dict[str, Any]) -> Block:
    """A class token and a square of patches."""
    side = math.isqrt(shape.length - 1)
    attention = _library("timm", "timm.models.beit").Attention
    block = attention(shape.dim, shape.heads, qkv_bias=True, window_size=(side, side), **like)
    nn.init.normal_(block.relative_position_bias_table)

    def inputs(block: Any, x: Tensor) -> Inputs:
        packed = functional.linear(x, block.qkv.weight, torch.cat((block.q_bias, block.k_bias, block.v_bias)))
        return *unpacked(packed.unflatten(2, (3, shape.heads, -1))), block._get_rel_pos_bias()

    return Block(block, inputs, lambda block, joined: block.proj(joined))


def swin(shape: Shape, like: dict[str, Any]) -> Block:
    """Square windows of images that are shifted by half a window."""
    window = math.isqrt(shape.length)
    layer = _library("timm", "timm.models.swin_transformer").SwinTransformerBlock
    sizes = dict(input_resolution=(SIDE * window,) * 2, window_size=window, shift_size=window // 2)
    made = layer(shape.dim, num_heads=shape.heads, **sizes, **like)
    nn.init.normal_(made.attn.relative_position_bias_table)

    def inputs(block: Any, x: Tensor) -> Inputs:
        bias = block._get_rel_pos_bias() + made.attn_mask.unsqueeze(1)
        return *unpacked(block.qkv(x).unflatten(2, (3, shape.heads, -1))), bias

    return Block(made.attn, inputs, lambda block, joined: block.proj(joined), {"mask": made.attn_mask})


def sablock(shape: Shape, like: dict[str, Any]) -> Block:
    """A cube of patches."""
    side = round(shape.length ** (1 / 3))
    attention = _library("monai", "monai.networks.blocks.selfattention").SABlock
    block = attention(shape.dim, shape.heads, rel_pos_embedding="decomposed", input_size=(side,) * 3).to(**like)
    for table in block.rel_positional_embedding.rel_pos_arr:
        nn.init.normal_(table, std=0.1)

    def inputs(block: Any, x: Tensor) -> Inputs:
        query, key, value = unpacked(block.qkv(x).unflatten(2, (3, shape.heads, -1)))
        no_scores = query.new_zeros(*query.shape[:3], shape.length)
        return query, key, value, block.rel_positional_embedding(x, no_scores, query)

    return Block(block, inputs, lambda block, joined: block.out_proj(joined))


BLOCKS: dict[str, Callable[[Shape, dict[str, Any]], Block]] = {BEIT: beit, SWIN: swin, SABLOCK: sablock}


def setup(case: Case, device: torch.device) -> Setup:
    shape = case.shape
    like: dict[str, Any] = {"device": device, "dtype": case.torch_dtype}
    block = BLOCKS[case.detail](shape, like)
    tell_heads_apart(block.module.get_parameter("qkv.weight")[: shape.dim], shape.heads)
    number = copies(device, shape.bytes(case.train, case.itemsize))
    tokens = [torch.randn(shape.batch, shape.length, shape.dim, **like) for _ in range(number)]
    upstream = torch.randn_like(tokens[0])
    modules = {RSATTN: patched(block.module), LIBRARY: block.module, FLEX: copy.deepcopy(block.module)}
    with_flex = flex_attention_block(block, modules[FLEX])

    def step(module: nn.Module, of: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradients of all parameters, which include the table of the bias."""
        return torch.autograd.grad(of(x), list(module.parameters()), grad)

    def variant(name: str) -> Variant:
        module = modules[name]
        of = with_flex if name == FLEX else partial(module, **block.options)
        return Variant(lambda index: step(module, of, tokens[index], upstream))

    def exact(backend: str | None) -> tuple[Tensor, ...]:
        module = copy.deepcopy(block.module).double()
        if backend is not None:
            module = patched(module, backend)
        return step(module, partial(module, **block.options), tokens[0].double(), upstream.double())

    with_residual, plain = exact("reference"), exact(None)

    def check(name: str, result: tuple[Tensor, ...]) -> None:
        parameters = [parameter for parameter, _ in block.module.named_parameters()]
        wanted = with_residual if name == RSATTN else plain
        for parameter, mine, want in zip(parameters, result, wanted, strict=True):
            error = float((mine.double() - want).norm() / want.norm())
            if not error <= TOLERANCE[case.torch_dtype]:
                raise AssertionError(f"{name}: the gradient of {parameter} is off by {error:.1e} in {case.dtype}")

    return Setup({name: variant(name) for name in names(case, device)}, number, check, tuple(modules))


def patched(module: nn.Module, backend: str | None = None) -> nn.Module:
    """A copy with the residual of the best head, as the paper adds it: without a gate."""
    module = copy.deepcopy(module)
    rsattn.patch(module, init_values=None, backend=backend)
    return module


def flex_attention_block(block: Block, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The block with FlexAttention, whose `score_mod` captures the bias."""
    from torch.nn.attention.flex_attention import flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + bias[b % len(bias), h, i, j]

        output: Tensor = flex_attention(query, key, value, score_mod=add_bias)
        return output

    torch._dynamo.reset()  # earlier compilations count toward PyTorch's recompilation limit
    compiled = torch.compile(attend, dynamic=False)
    return lambda x: block.project(module, compiled(*block.inputs(module, x)).transpose(1, 2).flatten(2))


def _library(package: str, module: str) -> Any:
    """The module, or an ImportError that says in one line what to install."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a torchvision that does not fit PyTorch raises a RuntimeError
        if is_installed(package):
            raise ImportError(sentence({package: cause_of(package, error)})) from error
        install = with_torchvision(package) if package == "timm" else f"pip install {package}"
        raise ImportError(f"{package} is not installed: {install}") from error
