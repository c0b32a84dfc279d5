"""Modules that the libraries import and a daemon does not use: loaded at their first use.

Each of them stays in `sys.modules` as `importlib.util.LazyLoader` makes it: empty until somebody
reads an attribute. Together they are 2 MiB. Python offers this for `import NAME` and for
`from PACKAGE import MODULE`; `from MODULE import NAME` reads an attribute, and so loads the module.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

DEFERRED = frozenset(
    {
        *("attr.converters", "attr.filters", "attr.validators"),  # for the classes of others
        *("aiobotocore.retries.adaptive", "botocore.retries.adaptive"),  # one of the retry modes
        *("aiobotocore.retryhandler", "botocore.translate"),  # another
        *("aiobotocore.waiter", "aioitertools", "jmespath.functions", "jmespath.parser"),  # lists
        *("botocore.monitoring", "botocore.vendored.six", "dateutil.relativedelta"),
        *("bz2", "lzma", "zipfile"),  # packages in archives
        "configparser",  # AWS's files of settings and keys
        "csv",  # the metadata of installed packages
        *("email.base64mime", "email.header", "email.quoprimime"),  # mail
        "idna",  # hosts with letters beyond ASCII
        *("msgspec.inspect", "msgspec.toml", "msgspec.yaml"),  # other formats
        *("structlog.stdlib", "structlog.threadlocal", "structlog.types"),  # the module `logging`
    }
)


class DeferringFinder:
    """Finds the modules of DEFERRED, as the finder of `sys.path` does, to be loaded later."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a deferred module; None for every other."""
        if name not in DEFERRED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def install() -> None:
    """Defer the modules of DEFERRED that this process has not imported yet."""
    sys.meta_path.insert(0, DeferringFinder())
