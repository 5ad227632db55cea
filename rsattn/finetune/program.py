"""A trained model as one module from images to probabilities, in plain PyTorch, and its two kinds of file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..cli.command import CommandError, why, writing
from ..module import Residual
from ..recording import residual_modules
from .loading import TrainedModel

INPUT, OUTPUT = "images", "probabilities"
METADATA = "metadata.json"  # in a file of torch.export
LARGEST_ONNX = 2 * 10**9  # bytes; protobuf, the format of ONNX, takes no larger file

Run = Callable[[Tensor], Tensor]
"""Images (B, 3, S, S) float32 from 0 to 1 -> probabilities (B, classes) float32, on the CPU."""


class Program(nn.Module):
    """Normalization, the model, and the softmax at its temperature.

    Args:
        trained: on the CPU.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model, self.temperature = trained.model, trained.temperature
        self.register_buffer("mean", trained.normalize.mean)
        self.register_buffer("std", trained.normalize.std)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 from 0 to 1 -> probabilities (B, classes) float32."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return (logits.float() / self.temperature).softmax(1)


def write_program(trained: TrainedModel, kind: str, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the model as a file of ONNX ("onnx") or of torch.export ("torch"), for batches of any size.

    Raises:
        CommandError: the model cannot be exported, or the file cannot be written.
    """
    if kind == "onnx" and sum(p.nbytes for p in trained.model.state_dict().values()) > LARGEST_ONNX:
        raise CommandError("the weights are too large for one file of ONNX, which has at most 2 GB: use --format torch")
    side = trained.image_size
    example = torch.rand(2, 3, side, side)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with _plain_pytorch(trained.model), _quiet(), torch.no_grad():
        try:
            program = torch.export.export(Program(trained).eval(), (example,), dynamic_shapes=shapes)
            made: Any = _onnx(program) if kind == "onnx" else program
        except Exception as error:  # exporters raise errors of any type
            reason = " ".join(why(error).split())[:300]
            raise CommandError(f"{trained.label} cannot be exported as {kind}: {reason}") from None
    with writing(path):
        if kind == "onnx":
            made.model.metadata_props.update(metadata)
            made.save(path, external_data=False)
        else:
            with path.open("wb") as file:
                torch.export.save(made, file, extra_files={METADATA: json.dumps(metadata)})


def _onnx(program: torch.export.ExportedProgram) -> Any:
    return torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=({0: "batch"},), verbose=False
    )


def read_program(path: Path, kind: str) -> Run:
    """The program in a file, as anybody would load it."""
    if kind == "torch":
        with path.open("rb") as file:
            module = torch.export.load(file).module()

        def run(images: Tensor) -> Tensor:
            with torch.no_grad():
                return cast(Tensor, module(images))

        return run
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@contextmanager
def _plain_pytorch(model: nn.Module) -> Iterator[None]:
    """Make the residual attention of PyTorch's own operators, so that a file needs no rsattn where it is loaded."""
    options = {id(one): one for module in residual_modules(model).values() for one in [cast(Residual, module).options]}
    before = [(one, one.backend) for one in options.values()]
    try:
        for one, _ in before:
            one.backend = "reference"
        yield
    finally:
        for one, backend in before:
            one.backend = backend


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own workings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
