"""`ibidem invalidate` and `ibidem feedback`: answers that are out of date or wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ibidem import cli_records as shared
from ibidem import cli_tables as tables
from ibidem.correcting import judge, preview, run
from ibidem.errors import InvalidInput
from ibidem.invalidation import Criteria, Invalidated, criteria_of
