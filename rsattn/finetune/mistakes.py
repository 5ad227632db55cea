"""The order of wrong predictions, which the figure and the table of the report share."""

from __future__ import annotations

SHOWN_MISTAKES = 10  # in the report


def as_written(probability: float) -> str:
    """A probability as in predictions.csv."""
    return f"{probability:.6g}"


def confidence_order(probability: float, file: str) -> tuple[float, str]:
    """The key that sorts the most confident first; those that predictions.csv shows as equal, by the name of the file.

    Args:
        probability: that of the predicted class, from the model or from predictions.csv.
    """
    return -float(as_written(probability)), file
