"""The documentation of every field that can be sent, derived from the structs that are sent.

`python -m byoc_agents.schema` writes docs/contracts/fields.md; a test compares it with the code.
The ledger's report shows the same tables and checks kept bodies against them.
"""

from byoc_agents.schema.examples import EXAMPLES
from byoc_agents.schema.fields import Field, fields_of, stray_paths

__all__ = ["EXAMPLES", "Field", "fields_of", "stray_paths"]
