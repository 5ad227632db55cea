"""The small convolutional network of the comparison.

The paper compares with "a custom CNN", whose layers its code does not give. This one has three stages of 3x3
convolution, batch norm, ReLU and 2x2 max pooling with 32, 64 and 128 channels, then global average pooling, dropout
0.5 and one linear layer: 94 thousand parameters.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

CHANNELS = (32, 64, 128)


def small_cnn(classes: int) -> nn.Sequential:
    """(B, 3, S, S) -> (B, classes), for S of 8 or larger."""
    layers: list[tuple[str, nn.Module]] = []
    before = 3
    for stage, channels in enumerate(CHANNELS, start=1):
        layers += [
            (f"convolution{stage}", nn.Conv2d(before, channels, 3, padding=1, bias=False)),
            (f"norm{stage}", nn.BatchNorm2d(channels)),
            (f"relu{stage}", nn.ReLU()),
            (f"pool{stage}", nn.MaxPool2d(2)),
        ]
        before = channels
    layers += [
        ("mean", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("dropout", nn.Dropout(0.5)),
        ("classifier", nn.Linear(before, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))
