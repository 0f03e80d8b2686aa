"""The Flower app bundle: a constant of a few lines that names the installed apps and carries no code.

Flower ships a bundle from whoever submits a run to every hospital. This one holds one `pyproject.toml`, so what runs is
what the hospital installed; its hash is the same on every machine and can stand on a hospital's allow-list.
"""

from __future__ import annotations

import io
import zipfile

from fedslm.encoding import sha256_hex

RUN_FOLDER_KEY = "run-folder"

PYPROJECT = f"""\
[project]
name = "fedslm"
version = "1"
dependencies = []

[tool.flwr.app]
publisher = "fedslm"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
{RUN_FOLDER_KEY} = ""
""".encode()


def bundle() -> bytes:
    """The bundle in Flower's format (FAB): a zip of the files and of their list of hashes.

    Guarantees:
      The same bytes everywhere: nothing is compressed (zlib's output differs between builds), and every entry has one
      fixed date and origin.
    """
    listing = f"pyproject.toml,{sha256_hex(PYPROJECT)},{8 * len(PYPROJECT)}".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("pyproject.toml", PYPROJECT), (".info/CONTENT", listing)):
            archive.writestr(_entry(name), content)
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix; the default differs on Windows
    entry.external_attr = 0o644 << 16
    return entry
