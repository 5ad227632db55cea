"""95 % intervals of the scores of one test split.

The unit is a group of images (a patient, a slide, copies of a photograph). They describe the chance in the choice of
groups from this source. tests/finetune/test_intervals.py measures how often they hold the true value: too rarely
with few groups of many images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .auroc import weighted_auroc
from .average_precision import weighted_average_precision
from .wording import counted

Interval = tuple[float, float]

LEVEL = 0.95
RESAMPLES = 1000
# Of weights, over the resamples, images and classes; large test splits get fewer resamples.
MOST_VALUES = 40_000_000
LEAST_RESAMPLES = 200


def intervals(labels: Tensor, probabilities: Tensor, groups: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """The intervals of the scores in `scores.scores`, as plain values.

    Args:
        labels: (n,) int64.
        probabilities: (n, C).
        groups: n names.
        classes: C names.

    Returns:
        method: how they were computed, a sentence.
        groups: the number of groups.
        resamples: the number of resamples of the bootstrap.
        accuracy, balanced_accuracy, macro_f1, auroc: [low, high], or None where the score is undefined.
        per_class: {name: {recall, specificity, precision, f1, auroc, average_precision}}, each the same.
    """
    true, chances, names = labels.numpy(), probabilities.double().numpy(), np.asarray(groups)
    predicted = probabilities.argmax(1).numpy()
    weights = resampled(names, min(RESAMPLES, MOST_VALUES // (len(true) * len(classes))))
    found = _Bootstrap(true, predicted, chances, names, weights)
    per_class = {name: found.of_class(index) for index, name in enumerate(classes)}
    distinct = len(np.unique(names))
    return {
        "method": _method(len(true), distinct, len(weights)),
        "groups": distinct,
        "resamples": len(weights),
        "accuracy": share_interval(true == predicted, names),
        "balanced_accuracy": found.balanced_accuracy(),
        "macro_f1": found.macro_f1(),
        "auroc": found.auroc(),
        "per_class": per_class,
    }


def share_interval(hits: NDArray[np.bool_], groups: NDArray[np.str_]) -> Interval | None:
    """The interval of the share of hits among images that are independent between groups; None without images.

    It is Wilson's interval. Where groups have several images, the number of images is divided by the design effect,
    and the normal quantile becomes that of Student's t (Rao & Scott 1992, Korn & Graubard 1998). Where all groups
    agree, which shows no design effect, each group counts as one image.
    """
    from scipy.stats import norm, t

    n = len(hits)
    if n == 0:
        return None
    names, index = np.unique(groups, return_inverse=True)
    m, share = len(names), float(hits.mean())
    if m == n:
        return wilson(share, n, float(norm.ppf((1 + LEVEL) / 2)))
    if m == 1:
        return 0.0, 1.0
    difference = np.bincount(index, weights=hits) - share * np.bincount(index)  # of the hits of a group, from expected
    variance = m / (m - 1) * float(np.square(difference).sum()) / n**2
    effective = min(share * (1 - share) / variance, n) if variance > 0 else m
    return wilson(share, effective, float(t.ppf((1 + LEVEL) / 2, m - 1)))


def wilson(share: float, n: float, quantile: float) -> Interval:
    """Wilson's interval; scipy has it only for whole n."""
    middle = (share + quantile**2 / (2 * n)) / (1 + quantile**2 / n)
    half = quantile / (1 + quantile**2 / n) * np.sqrt(share * (1 - share) / n + quantile**2 / (4 * n**2))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def resampled(groups: NDArray[np.str_], resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int32]:
    """(R, n): how often each image is drawn, in R draws of as many groups as there are, with replacement."""
    names, index = np.unique(groups, return_inverse=True)
    even = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), even, size=max(LEAST_RESAMPLES, resamples))
    return drawn.astype(np.int32)[:, index]


def score_interval(value: float, drawn: NDArray[np.float64]) -> Interval | None:
    """The interval of a score between 0 and 1, both excluded: symmetric on the logit scale, with the standard deviation
    of the resampled scores; None where they do not vary.

    Percentile intervals hold the true AUROC too rarely near 1: in 87 % instead of 95 % for 0.9, with 10 and 30 images.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not 0 < value < 1 or len(drawn) < 2 or not drawn.std() > 1e-12:
        return None
    center = np.log(value / (1 - value))
    half = 1.96 * drawn.std(ddof=1) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(center + np.array([-half, half]))))
    return float(low), float(high)


class _Bootstrap:
    """Scores of the resamples of one test split."""

    def __init__(
        self,
        true: NDArray[np.int64],
        predicted: NDArray[np.int64],
        chances: NDArray[np.float64],
        groups: NDArray[np.str_],
        weights: NDArray[np.int32],
    ) -> None:
        self.true, self.predicted, self.chances, self.groups, self.weights = true, predicted, chances, groups, weights
        self.here = [index for index in range(chances.shape[1]) if (true == index).any()]
        self._aurocs = dict(self._drawn_aurocs())

    def of_class(self, index: int) -> dict[str, Interval | None]:
        positive, called = self.true == index, self.predicted == index
        auroc = self._aurocs.get(index)
        return {
            "recall": share_interval(called[positive], self.groups[positive]),
            "specificity": share_interval(~called[~positive], self.groups[~positive]),
            "precision": share_interval(positive[called], self.groups[called]),
            "f1": self._f1(index),
            "auroc": None if auroc is None else self._interval(*auroc, [index]),
            "average_precision": self._average_precision(index),
        }

    def balanced_accuracy(self) -> Interval | None:
        if not self.here:
            return None
        parts = []
        for index in self.here:
            positive = self.true == index
            parts.append(self._ratio(positive & (self.predicted == index), positive))
        return self._mean(parts)

    def macro_f1(self) -> Interval | None:
        return self._mean([self._f1s(index) for index in self.here])

    def auroc(self) -> Interval | None:
        if not self._aurocs:
            return None
        # As in `scores.scores`: with two classes, that of the second.
        used = [1] if self.chances.shape[1] == 2 else list(self._aurocs)
        value = float(np.mean([self._aurocs[index][0] for index in used]))
        with np.errstate(invalid="ignore"):
            drawn = np.mean([self._aurocs[index][1] for index in used], axis=0)
        return self._interval(value, drawn, used)

    def _drawn_aurocs(self) -> Iterator[tuple[int, tuple[float, NDArray[np.float64]]]]:
        for index in self.here if len(self.here) > 1 else []:
            yield index, self._both(weighted_auroc, index)

    def _both(self, score: Callable[..., NDArray[np.float64]], index: int) -> tuple[float, NDArray[np.float64]]:
        """A score of the probability of a class: its value, and those of the resamples."""
        positive = self.true == index
        ones = np.ones((1, len(positive)))
        return float(score(self.chances[:, index], positive, ones)[0]), score(
            self.chances[:, index], positive, self.weights
        )

    def _average_precision(self, index: int) -> Interval | None:
        if index not in self.here or len(self.here) < 2:
            return None
        return self._interval(*self._both(weighted_average_precision, index), [index])

    def _f1(self, index: int) -> Interval | None:
        if index not in self.here:
            return None
        value, drawn = self._f1s(index)
        return self._interval(value, drawn, [index])

    def _f1s(self, index: int) -> tuple[float, NDArray[np.float64]]:
        positive, called = self.true == index, self.predicted == index
        return self._ratio(2 * (positive & called), positive.astype(int) + called)

    def _ratio(self, part: NDArray[Any], whole: NDArray[Any]) -> tuple[float, NDArray[np.float64]]:
        """Weighted sum of `part` over that of `whole`, for all images and for the resamples; NaN without images."""
        above, below = self.weights @ part.astype(np.float32), self.weights @ whole.astype(np.float32)
        drawn = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
        return float(part.sum() / whole.sum()), drawn

    def _mean(self, parts: Sequence[tuple[float, NDArray[np.float64]]]) -> Interval | None:
        value = float(np.mean([one for one, _ in parts]))
        drawn = np.mean([one for _, one in parts], axis=0)
        return self._interval(value, drawn, self.here)

    def _interval(self, value: float, drawn: NDArray[np.float64], classes: Sequence[int]) -> Interval:
        """`score_interval`; or, where nothing was wrong, or nothing right, what groups unlike all seen could change.

        Their share is the largest that an exact binomial interval allows.
        """
        if found := score_interval(value, drawn):
            return found
        unseen = float(np.mean([self._unseen(index) for index in classes]))
        return value * (1 - unseen), value + unseen * (1 - value)

    def _unseen(self, index: int) -> float:
        """The largest share of pairs, of an image of a class and one of the others, with a group unlike those seen."""
        seen = 1.0
        for chosen in (self.true == index, self.true != index):
            if count := len(np.unique(self.groups[chosen])):
                seen *= ((1 - LEVEL) / 2) ** (1 / count)
        return 1 - seen


def _method(images: int, groups: int, resamples: int) -> str:
    unit = "the images, which count as independent" if groups == images else f"the {counted(groups, 'group')}"
    shares = "Wilson" if groups == images else "Wilson, with the design effect of the groups"
    return (
        f"95 % intervals. Shares (accuracy, recall, specificity, precision): {shares}. Other scores: bootstrap over "
        f"{unit} ({resamples} resamples), on the logit scale."
    )
