"""Write docs/contracts/fields.md."""

import sys
from pathlib import Path

from byoc_agents.schema.document import document


def main() -> int:
    """Write the page under the current directory; return the exit code."""
    (Path("docs") / "contracts" / "fields.md").write_text(document())
    return 0


if __name__ == "__main__":
    sys.exit(main())
