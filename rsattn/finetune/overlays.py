"""Draw classified images beside where the model looks: the best head's attention, and Grad-CAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text
from torch import Tensor

from ..cli import drawing
from ..cli.command import finished_file, writing
from ..cli.images import display_name
from ..plot import as_pixels, attention_overlay
from ..recording import Record
from .gradcam import grad_cam
from .loading import TrainedModel
from .samples import attends_in_windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

LETTERS = 28  # of the name of a file, and of that of a class
PANEL = (4.8, 6.2)  # inches


class Overlays:
    """Draws a file for each image; what cannot be drawn is said once.

    Args:
        loaded: the model.
        targets: image file -> PNG file.
        console: for the messages.
    """

    def __init__(self, loaded: TrainedModel, targets: Mapping[Path, Path], console: Console) -> None:
        self.loaded, self.targets, self.console = loaded, targets, console
        self._said: set[str] = set()

    def draw(
        self,
        opened: Mapping[Path, Image],
        inputs: Tensor,
        answers: Sequence[tuple[int, float]],
        recorded: Record | None,
    ) -> None:
        """Write the drawings of a batch. An image with neither map is not drawn.

        Args:
            opened: the image of each file.
            inputs: (B, 3, S, S), the input of the model.
            answers: the predicted class of each image and its probability.
            recorded: what `record(model, received=True)` has of this batch; None without residual attention.
        """
        attention = self._has_attention(recorded, len(inputs))
        cams = self._cams(inputs, [predicted for predicted, _ in answers])
        for sample, (file, image) in enumerate(opened.items()):
            panels: dict[str, Any] = {}
            if recorded is not None and attention:
                panels["attention"] = (recorded, sample)
            if cams is not None:
                panels["cam"] = cams[sample]
            if not panels:
                return
            predicted, probability = answers[sample]
            label = drawing.label(self.loaded.classes[predicted], f"class {predicted + 1}", LETTERS)
            name = drawing.label(display_name(file), "the image", LETTERS)
            title = f"{name}: {label} ({probability:.1%})"
            try:
                figure = overlay(image, inputs[sample], title, label, **panels)
            except (ValueError, RuntimeError) as error:
                self._say("attention maps", error)
                attention = False
                if cams is None:
                    return
                figure = overlay(image, inputs[sample], title, label, cam=cams[sample])
            with finished_file(self.targets[file]) as partial, writing(self.targets[file]):
                figure.savefig(partial, format="png", dpi=110)

    def _has_attention(self, recorded: Record | None, images: int) -> bool:
        if recorded is None or "attention maps" in self._said:
            return False
        if attends_in_windows(recorded, images):
            self._say("attention maps", "its last block attends in windows, and a window has no map of the whole image")
            return False
        return True

    def _cams(self, inputs: Tensor, predicted: Sequence[int]) -> Tensor | None:
        if "Grad-CAM" in self._said:
            return None
        try:
            cams = grad_cam(self.loaded.model, inputs.to(self.loaded.device), predicted)
        except RuntimeError as error:  # an operation without gradient, or too little memory for one
            self._say("Grad-CAM", error)
            return None
        if cams is None:
            self._say("Grad-CAM", "no layer that the logits depend on keeps the positions of the image")
        return cams

    def _say(self, what: str, reason: object) -> None:
        self._said.add(what)
        self.console.print(Text(f"cannot draw {what} for this model: {reason}"))


def overlay(
    image: Image,
    seen: Tensor,
    title: str,
    label: str,
    attention: tuple[Record, int] | None = None,
    cam: Tensor | None = None,
) -> Figure:
    """Draw the image, beside it the attention map of the best head of the last block, and the Grad-CAM.

    Args:
        seen: (3, S, S), the input of the model.
        label: the class of the Grad-CAM.
        attention: a record and the sample in it; None for no attention map.
        cam: (rows, columns), 0 or larger, as from `grad_cam`; None for no Grad-CAM.

    Raises:
        ValueError, RuntimeError: the attention has no map of the image.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = 1 + (attention is not None) + (cam is not None)
    size = (PANEL[0] * panels, PANEL[1])
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15), facecolor="white")
    plain, *others = figure.subplots(1, panels, squeeze=False)[0]
    figure.suptitle(title, x=0.03, ha="left", size=14, weight="bold", parse_math=False)
    plain.imshow(image)
    plain.set_axis_off()
    if attention is not None:
        recorded, sample = attention
        attention_overlay(seen, recorded, sample=sample, axes=others[0])
    if cam is not None:
        _draw_cam(others[-1], seen, cam, label)
    return figure


def _draw_cam(axes: Axes, seen: Tensor, cam: Tensor, label: str) -> None:
    colors = drawing.look(axes, as_pixels(seen), cam)
    if not cam.any():
        drawing.title(axes, "Grad-CAM", f"0 everywhere: no place raises the logit of {label}")
        return
    rows, columns = cam.shape
    drawing.title(axes, "Grad-CAM", f"of {label}; {rows}\u00d7{columns} map")
    drawing.scale_below(axes, colors, "support for the class")
