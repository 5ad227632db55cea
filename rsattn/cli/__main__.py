"""`python -m rsattn.cli` is the command `rsattn` too."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
