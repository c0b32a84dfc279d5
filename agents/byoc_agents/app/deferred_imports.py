"""Modules that libraries import and a daemon does not use: they are loaded at their first use.

`importlib.util.LazyLoader` puts each into `sys.modules` without running its code, until an
attribute of it is read. This saves 2 MiB in a daemon with AWS and 1 MiB in others
(docs/internals/performance.md). It works for `import NAME` and `from PACKAGE import MODULE`;
`from MODULE import NAME` reads an attribute, and so loads the module.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

DEFERRED = frozenset(
    {
        *("attr.converters", "attr.filters", "attr.validators"),  # helpers of attrs
        *("aiobotocore.retries.adaptive", "botocore.retries.adaptive"),  # retry mode `adaptive`
        *("aiobotocore.retryhandler", "botocore.translate"),  # retry mode `legacy`
        *("aiobotocore.waiter", "aioitertools"),  # waiters and paginators
        *("jmespath.functions", "jmespath.parser"),  # the expressions of both
        *("botocore.monitoring", "botocore.vendored.six", "dateutil.relativedelta"),
        *("bz2", "lzma", "zipfile"),  # packages in archives
        "configparser",  # AWS's files of settings and keys
        "csv",  # importlib.metadata
        *("email.base64mime", "email.header", "email.quoprimime"),  # MIME
        "idna",  # hosts with letters beyond ASCII
        *("msgspec.inspect", "msgspec.toml", "msgspec.yaml"),  # other formats
        *("structlog.stdlib", "structlog.threadlocal", "structlog.types"),  # for module `logging`
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
