"""The image's `byoc-agents`: isolated from PYTHON* variables and from the base's own packages."""

import sys

sys.path[:0] = ["/opt/byoc-agents/code", "/opt/byoc-agents/lib"]

from byoc_agents.app.cli import main  # noqa: E402  only found now; handles signals before it imports more

sys.exit(main())
