"""`rsattn` for tests that start processes, with the torchvision workaround of `tests/conftest.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: F401

from rsattn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
