"""`Call` and the memory of its results: views where views are promised, and the layout that joining heads relies on."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import make_inputs, normal

from rsattn.call import Call, Forward, Gradients, default_scale, empty_forward, empty_gradients, unpacked


def packed(batch: int = 2, length: int = 5) -> torch.Tensor:
    return normal(batch, length, 3, 4, 8)


def test_query_key_and_value_are_views_of_the_packed_tensor() -> None:
    qkv = packed()
    call = Call((qkv,))
    for which, tensor in enumerate((call.query, call.key, call.value)):
        assert tensor.shape == (2, 4, 5, 8)
        assert torch.equal(tensor, qkv[:, :, which].transpose(1, 2))
        assert tensor.untyped_storage().data_ptr() == qkv.untyped_storage().data_ptr()
    assert call.inputs == (qkv,)


def test_the_default_scale_is_that_of_the_head() -> None:
    assert default_scale(torch.empty(1, 1, 1, 64)) == 0.125
    assert Call(make_inputs(1, 2, 3, 4, 5)).scale == 1 / math.sqrt(5)
    assert Call((packed(),)).scale == 1 / math.sqrt(8)
    assert Call(make_inputs(1, 2, 3, 4, 5), scale=0.0).scale == 0.0
    for odd in (torch.empty(()), torch.empty(3, 0)):  # refused later, by a message
        assert default_scale(odd) == 1.0


def test_the_same_call_on_other_tensors() -> None:
    mask, seed = torch.ones(3, 4, dtype=torch.bool), torch.tensor([3])
    call = Call(make_inputs(1, 2, 3, 4, 5), mask, seed, 0.2, 0.7, "confidence", "batch")
    other = call.on(packed())
    for name in ("attn_mask", "seed", "dropout_p", "scale", "norm", "scope"):
        assert getattr(other, name) is getattr(call, name)
    assert other.query.shape == (2, 4, 5, 8)
    assert call.query.shape == (1, 2, 3, 5)


def test_holds_nothing_else() -> None:
    """A slotted class: a misspelled attribute is an error, not a default that stays."""
    call = Call(make_inputs(1, 2, 3, 4, 5))
    with pytest.raises(AttributeError):
        call.dropout = 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_gradient_is_wanted_where_one_input_wants_it(which: int) -> None:
    inputs = make_inputs(1, 2, 3, 4, 5)
    call = Call(inputs)
    assert not call.wants_gradient()
    inputs[which].requires_grad_()
    assert call.wants_gradient()
    with torch.no_grad():
        assert not call.wants_gradient()


def test_knows_its_device() -> None:
    assert Call(make_inputs(1, 2, 3, 4, 5)).device_type == "cpu"
    assert Call((packed().to("meta"),)).device_type == "meta"


def test_a_message_can_name_the_inputs() -> None:
    query, key, value = make_inputs(1, 2, 3, 4, 5)
    assert repr(Call((query, key, value))) == "query (1, 2, 3, 5) torch.float64 on cpu, no mask"
    assert repr(Call((query, key, value), torch.ones(4, dtype=torch.bool))).endswith("torch.bool mask (4,)")


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("form", ["three", "packed"])
def test_joining_the_heads_of_the_output_copies_nothing(form: str, batch: int) -> None:
    call = Call((packed(batch),) if form == "packed" else make_inputs(batch, 4, 5, 7, 8, layout="strided"))
    assert empty_forward(call).received is None
    call.return_received = True
    result = empty_forward(call)
    assert isinstance(result, Forward)
    assert result.output.transpose(1, 2).is_contiguous()
    assert [(tuple(t.shape), t.dtype) for t in result] == [
        ((batch, 4, 5, 8), torch.float64),
        ((batch, 4), torch.float32),
        ((batch,), torch.int64),
        ((batch, 4, 2, 5), torch.float32),
        ((batch, 4, 7 if form == "three" else 5), torch.float32),
    ]


def test_gradients_of_three_tensors_are_three() -> None:
    call = Call(make_inputs(2, 4, 5, 7, 8))
    grads = empty_gradients(call)
    assert [tuple(t.shape) for t in grads.of_inputs()] == [tuple(t.shape) for t in call.inputs]
    assert len({t.untyped_storage().data_ptr() for t in grads.of_inputs()}) == 3
    assert all(t.transpose(1, 2).is_contiguous() for t in grads.of_inputs())


@pytest.mark.parametrize("laid", ["contiguous", "transposed"])
def test_gradients_of_a_packed_tensor_are_views_of_one(laid: str) -> None:
    qkv = packed()
    if laid == "transposed":
        qkv = qkv.transpose(1, 3).contiguous().transpose(1, 3)
    grads = empty_gradients(Call((qkv,)))
    (whole,) = grads.of_inputs()
    assert whole.is_contiguous()
    assert whole.shape == qkv.shape
    whole.copy_(qkv)
    assert isinstance(grads, Gradients)
    assert all(torch.equal(a, b) for a, b in zip(grads[:3], unpacked(qkv), strict=True))
