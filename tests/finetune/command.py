"""`rsattn`, for tests that need processes of its own: as `tests/conftest.py` has it, torchvision importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: F401

from rsattn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
