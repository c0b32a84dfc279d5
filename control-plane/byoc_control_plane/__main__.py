"""`python -m byoc_control_plane`."""

import sys

from byoc_control_plane.cli import main

if __name__ == "__main__":
    sys.exit(main())
