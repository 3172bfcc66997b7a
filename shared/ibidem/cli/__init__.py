"""The command line; `main` is its door."""

import sys

from ibidem.foreign import foreign_package, has_our_place

if has_our_place():
    sys.exit(f"error: {foreign_package()}")
