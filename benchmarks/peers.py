"""Builds the peers, once, outside the checkout: `python -m benchmarks.peers`.

llama-server comes from the llama.cpp tree inside the source package of the very llama-cpp-python that is installed:
the same commit, the same compiler and the same default flags as our own engine.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
TARGET = "llama-server"
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
)


def cache_dir() -> Path:
    """Where peers are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "llmvisor" / "bench-peers"


def llama_server_path() -> Path:
    return cache_dir() / "build" / "bin" / TARGET


def is_built(version: str) -> bool:
    """Whether the peer that goes with this version of llama-cpp-python is there."""
    stamp = _stamp()
    return llama_server_path().is_file() and stamp.is_file() and stamp.read_text().strip() == version


def build(version: str) -> None:
    """Download the source package with pip, take llama.cpp out of it, and compile llama-server."""
    if shutil.which("cmake") is None:
        sys.exit("cmake is missing (Debian, Ubuntu: apt install cmake; macOS: brew install cmake)")
    source = cache_dir() / "source"
    shutil.rmtree(cache_dir(), ignore_errors=True)
    source.mkdir(parents=True)
    print(f"fetching the source package of {PACKAGE} {version}", flush=True)
    download = ["download", "--no-deps", f"--no-binary={PACKAGE}", "--dest", str(source), f"{PACKAGE}=={version}"]
    subprocess.run([sys.executable, "-m", "pip", *download], check=True)
    tree = _unpack_llama_cpp(source)
    folder = cache_dir() / "build"
    print("compiling llama-server: about 10 minutes on 2 cores", flush=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run(["cmake", "-S", str(tree), "-B", str(folder), *generator, *FLAGS], check=True)
    jobs = str(os.cpu_count() or 1)
    subprocess.run(["cmake", "--build", str(folder), "--target", TARGET, "--parallel", jobs], check=True)
    _stamp().write_text(version + "\n")
    shutil.rmtree(source)


def _unpack_llama_cpp(source: Path) -> Path:
    (archive,) = source.glob("*.tar.gz")
    with tarfile.open(archive) as package:
        members = [member for member in package if "/vendor/llama.cpp/" in member.name]
        package.extractall(source, members=members, filter="data")
    (tree,) = source.glob("*/vendor/llama.cpp")
    return tree


def _stamp() -> Path:
    return cache_dir() / "version"


def main() -> None:
    version = importlib.metadata.version(PACKAGE)
    if is_built(version):
        print(f"llama-server of {PACKAGE} {version} is at {llama_server_path()}")
        return
    build(version)
    print(f"llama-server is at {llama_server_path()}")


if __name__ == "__main__":
    main()
