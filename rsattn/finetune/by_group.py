"""One prediction for each group of images, such as a patient: the mean probability of its images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Groups:
    """The predictions of m groups.

    Attributes:
        groups: (m,) names, sorted.
        labels: (m,) int64.
        probabilities: (m, C) float64, the mean over the images of the group.
        left_out: the number of groups whose images have several labels, which have no single true one.
    """

    groups: NDArray[np.str_]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    left_out: int


def by_group(labels: NDArray[np.int64], probabilities: NDArray[np.float64], groups: NDArray[np.str_]) -> Groups:
    """The mean probabilities of each group whose images have one label.

    Args:
        labels: (n,) int64.
        probabilities: (n, C).
        groups: (n,) names.
    """
    names, first, index = np.unique(groups, return_index=True, return_inverse=True)
    sums = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(sums, index, probabilities)
    means = sums / np.bincount(index)[:, None]
    of_first = labels[first]
    mixed = np.bincount(index, weights=labels != of_first[index]) > 0
    return Groups(names[~mixed], of_first[~mixed], means[~mixed], int(mixed.sum()))
