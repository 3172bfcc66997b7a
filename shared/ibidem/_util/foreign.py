"""Detection of the unrelated distribution `ibidem` on PyPI, which installs a package of the same name.

pip does not notice: both are installed into one folder. The last one overwrites `__init__.py`, and
uninstalling one removes files of the other. This module imports nothing else of ours, as that may not work.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

OURS, FOREIGN = "ibidem-cache", "ibidem"
HERE = Path(__file__).parents[1]
ADVICE = f"run pip uninstall -y {FOREIGN} && pip install --force-reinstall --no-deps {OURS}"


def foreign_package() -> str | None:
    """Return what to do if the other package is installed here, or shadows ours; else None."""
    try:
        version = metadata.version(FOREIGN)
    except metadata.PackageNotFoundError:
        version = ""
    if has_our_place():
        return f"{HERE} holds somebody else's package {FOREIGN} {version}, not ours; {ADVICE}"
    if version:
        return (
            f"{FOREIGN} {version} of PyPI is somebody else's, and its files are mixed with ours in "
            f"{HERE}; {ADVICE}"
        )
    return None


def has_our_place() -> bool:
    """Return whether `import ibidem` imports the other package."""
    return not hasattr(sys.modules["ibidem"], "namespace_of")


def require_ours() -> None:
    """Raise an `ImportError` that says what to do if `import ibidem` imports the other package."""
    if has_our_place():
        raise ImportError(foreign_package())
