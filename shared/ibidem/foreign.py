"""The distribution `ibidem` on PyPI is somebody else's and installs a package of our name.

pip notices nothing, and both lie in one folder. Who came last has its `__init__.py` there; that of whom is
uninstalled takes files of the other with it. This module needs nothing else of ours, as that may not work.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

OURS, FOREIGN = "ibidem-cache", "ibidem"
ADVICE = f"run pip uninstall -y {FOREIGN} && pip install --force-reinstall --no-deps {OURS}"


def foreign_package() -> str | None:
    """What is wrong and what to do if the other one is installed here, or has our place; else None."""
    try:
        version = metadata.version(FOREIGN)
    except metadata.PackageNotFoundError:
        version = ""
    if has_our_place():
        return (
            f"{Path(__file__).parent} holds somebody else's package {FOREIGN} {version}, not ours; {ADVICE}"
        )
    if version:
        return (
            f"{FOREIGN} {version} of PyPI is somebody else's, and its files are mixed with ours in "
            f"{Path(__file__).parent}; {ADVICE}"
        )
    return None


def has_our_place() -> bool:
    """Whether `import ibidem` gives another package than ours."""
    import ibidem

    return not hasattr(ibidem, "namespace_of")


def require_ours() -> None:
    """Raise an `ImportError` that says what to do if `import ibidem` gives another package than ours."""
    if has_our_place():
        raise ImportError(foreign_package())
