"""Which files a worker needs: the system's and Python's programs, its model, its own folders, the GPUs' devices."""

from __future__ import annotations

import glob
import os
import re
import site
import sys
from collections.abc import Iterable, Iterator, Mapping

from llmvisor_runtimes import limits

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store", "/gnu/store", "/snap",
    "/run/opengl-driver", "/run/current-system/sw",
)  # fmt: skip
"""Programs and libraries."""

SYSTEM_FACTS = (
    "/proc", "/sys", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom",
    *(f"/etc/{name}" for name in (
        "OpenCL", "alternatives", "ca-certificates", "cuda", "glvnd", "group", "host.conf", "hosts", "ld.so.cache",
        "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "locale.alias", "localtime", "lsb-release", "mime.types",
        "nsswitch.conf", "nvidia", "os-release", "passwd", "pki/tls/certs", "resolv.conf", "ssl/certs",
        "ssl/openssl.cnf", "timezone", "vulkan",
    )),
)  # fmt: skip
"""What a library asks of the system. Not all of /etc: the daemon's own configuration may stand there."""

DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd", "/dev/dxg", "/dev/accel", "/dev/mali*", "/dev/infiniband")
"""GPUs, as patterns."""
OF_DRIVERS = ("/dev/shm",)  # noqa: S108 - not ours: where drivers look for each other
"""Shared memory between the parts of a GPU's driver."""
OWN_PROCESS = "/proc/self"
"""A driver names its threads there."""

_SPLIT = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")


def python_places(environ: Mapping[str, str]) -> Iterator[str]:
    """The interpreter, all that it may import, and where libraries are looked for."""
    yield from {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    yield from (os.path.abspath(entry) for entry in sys.path if entry)
    yield os.path.dirname(os.path.realpath(sys.executable))
    if site.ENABLE_USER_SITE:
        yield site.getusersitepackages()
    for finder in sys.meta_path:
        # A package that is installed in place may be found by a finder of its own (setuptools' editable installs).
        module = sys.modules.get(getattr(finder, "__module__", ""), None)
        mapping: object = getattr(module, "MAPPING", None)
        if isinstance(mapping, dict):
            yield from (os.path.dirname(str(place)) for place in mapping.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    for name in ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "ROCM_PATH"):
        yield from (entry for entry in environ.get(name, "").split(":") if os.path.isabs(entry))


def model_places(paths: Iterable[str]) -> Iterator[str]:
    """Files and folders of a model, and where their symbolic links lead (a Hugging Face cache is made of them)."""
    for path in paths:
        yield path
        if match := _SPLIT.fullmatch(path):
            count = min(int(match["count"]), limits.model_links_max)
            yield from (f"{match['stem']}-{part:05d}-of-{match['count']}.gguf" for part in range(1, count + 1))
        elif os.path.isdir(path):
            yield from _links(path)


def devices() -> list[str]:
    """The GPUs' devices that there are."""
    return sorted(path for pattern in DEVICES for path in glob.glob(pattern))


def _links(folder: str) -> Iterator[str]:
    seen = 0
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            seen += 1
            if seen > limits.model_links_max:
                return
            if os.path.islink(path):
                yield os.path.realpath(path)
