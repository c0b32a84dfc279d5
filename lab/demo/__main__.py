"""Run the demo: `python -m lab.demo`, or `make demo`."""

import sys

from byoc_agents.errors import ConfigError
from lab.demo import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigError as error:
        sys.exit("\n".join(error.mistakes))
    except KeyboardInterrupt:
        sys.exit(130)
