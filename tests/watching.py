"""A test's view of what a call makes. Import it as `from watching import ...`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """The size in bytes of the largest storage among the tensors that operators return inside.

    Attributes:
        nbytes: 0 if there was none.
    """

    nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        sizes = [tensor.untyped_storage().nbytes() for tensor in tree_leaves(made) if isinstance(tensor, Tensor)]
        self.nbytes = max([self.nbytes, *sizes])
        return made
