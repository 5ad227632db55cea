"""Every call the contract refuses, and that the message says what was wrong, what was expected, what to do."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import MERGES, NORMS, SCOPES, normal
from torch import Tensor

import rsattn
from rsattn import contract, residual_attention, residual_attention_qkvpacked

Q = (2, 3, 5, 16)  # batch, heads, queries, head_dim
K = (2, 3, 7, 16)


def call(query: Any = Q, key: Any = K, value: Any = None, mask: Tensor | None = None, **options: Any) -> Any:
    value = key if value is None else value
    tensors = [torch.zeros(t) if isinstance(t, tuple) else t for t in (query, key, value)]
    return residual_attention(*tensors, mask, **options)


def provoke(kind: type[Exception], words: list[str], act: Callable[[], Any]) -> None:
    with pytest.raises(kind) as error:
        act()
    message = str(error.value)
    assert [word for word in words if word not in message] == [], message


SPLIT = "Split the heads first"
SHARED = "share one shape and query's batch, heads and head_dim"
POSITIVE = ["heads, length and head_dim must be at least 1", "an empty batch is fine"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "l1"}, ["norm='l1'", "'induced'", "'entrywise'", "'confidence'"]),
        ({"scope": "all"}, ["scope='all'", "'sample'", "'batch'"]),
        ({"dropout_p": 1.5}, ["dropout_p=1.5", "not a probability", "from 0 to 1"]),
        ({"dropout_p": -0.1}, ["dropout_p=-0.1", "from 0 to 1"]),
        ({"dropout_p": math.nan}, ["dropout_p=nan", "from 0 to 1"]),
        ({"query": (2, 5, 48)}, ["(batch, heads, length, head_dim)", "(2, 5, 48)", SPLIT]),
        ({"key": (2, 7, 48)}, ["(batch, heads, length, head_dim)", "(2, 7, 48)", SPLIT]),
        ({"value": (2, 7, 48)}, ["(batch, heads, length, head_dim)", "(2, 7, 48)", SPLIT]),
        ({"value": (2, 3, 8, 16)}, [SHARED, "key (2, 3, 7, 16)", "value (2, 3, 8, 16)"]),
        ({"key": (1, 3, 7, 16)}, [SHARED, "query (2, 3, 5, 16)", "key (1, 3, 7, 16)"]),
        ({"key": (2, 1, 7, 16)}, [SHARED, "key (2, 1, 7, 16)"]),
        ({"key": (2, 3, 7, 8)}, [SHARED, "key (2, 3, 7, 8)"]),
        ({"query": (2, 0, 5, 16), "key": (2, 0, 7, 16)}, [*POSITIVE, "(2, 0, 5, 16)"]),
        ({"query": (2, 3, 0, 16)}, [*POSITIVE, "(2, 3, 0, 16)"]),
        ({"key": (2, 3, 0, 16)}, [*POSITIVE, "(2, 3, 0, 16)"]),
        ({"query": (2, 3, 5, 0), "key": (2, 3, 7, 0)}, [*POSITIVE, "(2, 3, 5, 0)"]),
        ({"query": torch.zeros(Q, device="meta")}, ["must be on one device", "meta", "cpu", "tensor.to(device)"]),
        (
            {"mask": torch.zeros(6, dtype=torch.bool)},
            ["attn_mask (6,)", "(2, 3, 5, 7)", "mask[:, None, None, :]"],
        ),
        (
            {"mask": torch.zeros(2, 7)},
            ["attn_mask (2, 7) does not broadcast", "(batch, heads, queries, keys)"],
        ),
        (
            {"mask": torch.zeros(2, 5, 7)},
            ["attn_mask (2, 5, 7)", "a mask of each sample (batch, queries, keys) mask[:, None]"],
        ),
        ({"mask": torch.zeros(1, 2, 3, 5, 7)}, ["attn_mask (1, 2, 3, 5, 7)", "(2, 3, 5, 7)"]),
        ({"mask": torch.zeros(7, device="meta")}, ["attn_mask is on meta", "query on cpu", "move one"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_values_refused(options: dict[str, Any], words: list[str]) -> None:
    provoke(ValueError, words, lambda: call(**options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"query": torch.zeros(Q, dtype=torch.int64)},
            ["floating-point", "torch.int64", "Cast them", "autocast"],
        ),
        (
            {"query": torch.zeros(Q, dtype=torch.float64)},
            ["one floating-point dtype", "torch.float64", "float32"],
        ),
        ({"value": torch.zeros(K, dtype=torch.bfloat16)}, ["one floating-point dtype", "torch.bfloat16"]),
        ({"key": torch.zeros(K, dtype=torch.complex64), "value": K}, ["floating-point", "torch.complex64"]),
        (
            {"mask": torch.ones(7, dtype=torch.int64)},
            ["must be bool", "True = take part", "attn_mask.bool()"],
        ),
        ({"mask": torch.ones(7, dtype=torch.uint8)}, ["torch.uint8", "attn_mask.bool()"]),
        ({"mask": torch.ones(7).to(torch.float8_e4m3fn)}, ["torch.float8_e4m3fn", "float16, bfloat16", "Cast it"]),
        ({"scale": torch.nn.Parameter(torch.ones(()))}, ["gets no gradient", "multiply query"]),
        ({"scale": "0.5"}, ["scale must be a number", "1 / sqrt(head_dim)", "'0.5'"]),
        ({"scale": [0.5]}, ["scale must be a number", "[0.5]"]),
        ({"scale": torch.ones(2)}, ["scale must be a number", "Tensor (2,)"]),
    ],
    ids=[
        *("int_query", "double_query", "bf16_value", "complex_key", "int_mask", "byte_mask", "float8_mask"),
        *("learned_scale", "scale_in_words", "scale_in_a_list", "two_scales"),
    ],
)
def test_dtypes_refused(options: dict[str, Any], words: list[str]) -> None:
    provoke(TypeError, words, lambda: call(**options))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (5, 7), (3, 1, 7), (2, 1, 1, 7), (1, 3, 5, 1), (2, 3, 5, 7)])
def test_every_mask_that_broadcasts_is_taken(shape: tuple[int, ...]) -> None:
    """A mask of ones changes nothing and a mask that stands for its expansion gives what the expansion gives."""
    query, key, value = torch.randn(Q), torch.randn(K), torch.randn(K)
    plain = residual_attention(query, key, value, backend="reference")
    ones = residual_attention(query, key, value, torch.ones(shape, dtype=torch.bool), backend="reference")
    assert torch.equal(ones.output, plain.output)
    mask = torch.randn(shape)
    short = residual_attention(query, key, value, mask, backend="reference")
    full = residual_attention(query, key, value, mask.broadcast_to(2, 3, 5, 7), backend="reference")
    assert torch.equal(short.output, full.output)
    assert torch.equal(short.norms, full.norms)


@pytest.mark.parametrize(
    ("dim", "heads", "width", "merge", "words"),
    [
        (48, 4, 10, "tile", ["merge='tile'", "10 channels along 48", "not a multiple", "divides dim"]),
        (48, 4, 48, "slot", ["merge='slot'", "num_heads * head_dim", "48 and 4 * 48", "Use merge='tile'"]),
    ],
)
def test_widths_refused(dim: int, heads: int, width: int, merge: str, words: list[str]) -> None:
    provoke(ValueError, words, lambda: contract.check_merge_widths(dim, heads, width, merge))


def test_choices_are_those_the_documentation_names() -> None:
    assert (contract.NORMS, contract.SCOPES, contract.MERGES) == (NORMS, SCOPES, MERGES)
    assert rsattn.ResidualAttention._fields == ("output", "norms", "best_head", "received")


def test_arguments_are_those_of_pytorchs_attention() -> None:
    """The first six mean what they mean in `scaled_dot_product_attention`: same names, same defaults, same scale."""
    parameters = inspect.signature(residual_attention).parameters
    assert list(parameters)[:6] == ["query", "key", "value", "attn_mask", "dropout_p", "scale"]
    assert (parameters["attn_mask"].default, parameters["dropout_p"].default) == (None, 0.0)
    assert parameters["scale"].default is None
    options = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert options == ["scale", "norm", "scope", "backend", "return_received"]
    for name, choice in (("norm", contract.Norm), ("scope", contract.Scope)):
        assert parameters[name].default == typing.get_args(choice)[0]
    assert parameters["backend"].default is None


def test_the_packed_form_has_the_same_options() -> None:
    three, packed = (
        list(inspect.signature(f).parameters.values()) for f in (residual_attention, residual_attention_qkvpacked)
    )
    assert packed[0].name == "qkv"
    assert packed[1:] == three[3:]


NO_TENSORS = pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (None, "got None"),
        ([[1.0]], "got [[1.0]]. Convert it with torch.tensor(...)"),
        (torch.ones(1, 2, 3, 4).numpy(), "got ndarray (1, 2, 3, 4). Convert it with torch.from_numpy(array)"),
        (
            torch.nn.Linear(2, 2),
            "got Linear(in_features=2, out_features=2, bias=True). Call the module and pass what it",
        ),
        (torch.nn.Sequential(torch.nn.ReLU()), "got Sequential. Call the module"),
    ],
    ids=["None", "list", "numpy", "module", "long_module"],
)


@NO_TENSORS
def test_what_is_no_tensor_is_named(wrong: Any, words: str) -> None:
    """Of every public function; the message says how to convert it."""
    four, tokens = torch.ones(1, 2, 3, 4), torch.ones(1, 3, 8)
    attention = residual_attention(four, four, four)
    calls = {
        "query": lambda: residual_attention(wrong, four, four),
        "key": lambda: residual_attention(four, wrong, four),
        "value": lambda: residual_attention(four, four, wrong),
        "qkv": lambda: residual_attention_qkvpacked(wrong),
        "projected": lambda: rsattn.add_best_head(wrong, attention),
        "x": lambda: rsattn.ResidualSelfAttention(8, 2)(wrong),
    }
    if wrong is not None:
        calls |= {
            "attn_mask": lambda: residual_attention(four, four, four, wrong),
            "gamma": lambda: rsattn.add_best_head(tokens, attention, gamma=wrong),
        }
    for name, act in calls.items():
        kind = "a torch tensor" + (" of one number per channel" if name == "gamma" else "")
        provoke(TypeError, [f"{name} must be {kind}; {words}"], act)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "None"),
        ("0.1", "'0.1'"),
        ([0.1], "[0.1]"),
        (torch.nn.Dropout(0.1), "Dropout(p=0.1, inplace=False)"),
        (torch.ones(7), "Tensor (7,)"),
    ],
    ids=["None", "words", "list", "module", "mask"],
)
def test_a_dropout_that_is_no_number_is_named(wrong: Any, says: str) -> None:
    words = f"must be a number from 0 to 1; got {says}"
    provoke(TypeError, [f"dropout_p {words}"], lambda: call(dropout_p=wrong))
    for name in ("attn_drop", "proj_drop"):
        provoke(TypeError, [f"{name} {words}"], lambda name=name: rsattn.ResidualSelfAttention(8, 2, **{name: wrong}))


def test_the_numbers_of_a_tensor_do_not_flood_a_message() -> None:
    many = torch.zeros(2, 3)
    provoke(ValueError, ["norm=Tensor (2, 3) is not a choice"], lambda: call(norm=many))
    provoke(ValueError, ["backend=Tensor (2, 3) is not known"], lambda: call(backend=many))
    provoke(ValueError, ["backend=['cpu'] is not known"], lambda: call(backend=["cpu"]))
    provoke(ValueError, ["init_values=Tensor (2, 3) must"], lambda: rsattn.ResidualSelfAttention(8, init_values=many))  # type: ignore[arg-type]
    provoke(TypeError, ["model must be a torch.nn.Module; got Tensor (2, 3)"], lambda: rsattn.patch(many))  # type: ignore[arg-type]
    blocks = torch.zeros(2, dtype=torch.bool)
    layer = torch.nn.MultiheadAttention(8, 2)
    provoke(TypeError, ["blocks=Tensor (2,) must be"], lambda: rsattn.patch(layer, blocks=blocks))


def test_a_dropout_may_be_a_tensor_without_a_gradient() -> None:
    query, key, value = normal(3, 1, 2, 5, 8, dtype=torch.float32)
    for backend in ("reference", None):
        torch.manual_seed(0)
        given = residual_attention(query, key, value, dropout_p=torch.tensor(0.5), backend=backend)
        torch.manual_seed(0)
        assert torch.equal(given.output, residual_attention(query, key, value, dropout_p=0.5, backend=backend).output)
    learned = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match="dropout_p is a plain number and gets no gradient"):
        residual_attention(query, key, value, dropout_p=learned)
    assert type(rsattn.ResidualSelfAttention(8, 2, attn_drop=torch.tensor(0.5)).attn_drop) is float


def test_autocast_casts_no_integers_and_no_float64() -> None:
    """As for torch.nn.functional.scaled_dot_product_attention."""
    query, key, value = normal(3, 1, 2, 5, 8, dtype=torch.float32)
    with torch.autocast("cpu"):
        assert residual_attention(query, key.half(), value).output.dtype == torch.bfloat16
        for inputs in ((query.long(), key.long(), value.long()), (query, key.double(), value)):
            with pytest.raises(TypeError, match="must share one floating-point dtype"):
                residual_attention(*inputs)
