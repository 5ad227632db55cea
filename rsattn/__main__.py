"""`python -m rsattn` runs the command `rsattn`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
