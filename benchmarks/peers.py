"""Builds the peers, once, outside the checkout: `python -m benchmarks.peers [--only llama-server|infinity]`.

llama-server comes from the llama.cpp tree inside the source package of the very llama-cpp-python that is installed:
the same commit, the same compiler and the same default flags as our own engine. infinity-emb gets an environment of its
own, with the torch that is installed here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
TARGET = "llama-server"
INFINITY_VERSION = "0.0.78"
INFINITY = f"infinity-emb[torch,server]=={INFINITY_VERSION}"
INFINITY_SHOWN = ("infinity-emb", "torch", "transformers", "sentence-transformers")
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
    folder = cache_dir() / "build"
    _stamp().unlink(missing_ok=True)
    for old in (source, folder):
        shutil.rmtree(old, ignore_errors=True)
    source.mkdir(parents=True)
    print(f"fetching the source package of {PACKAGE} {version}", flush=True)
    download = ["download", "--no-deps", f"--no-binary={PACKAGE}", "--dest", str(source), f"{PACKAGE}=={version}"]
    subprocess.run([sys.executable, "-m", "pip", *download], check=True)
    tree = _unpack_llama_cpp(source)
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


# ------------------------------------------------------------------------------------------------ infinity-emb


def infinity_path() -> Path:
    return _infinity_dir() / "bin" / "infinity_emb"


def infinity_versions() -> dict[str, str]:
    """What its environment has; empty where it was not finished, or has another version."""
    try:
        lines = (_infinity_dir() / "versions").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    versions = dict(line.split("==", 1) for line in lines)
    return versions if versions.get("infinity-emb") == INFINITY_VERSION else {}


def install_infinity(torch_version: str) -> None:
    """Make its environment with pip. Beside our torch, what it works with: its own requirements choose."""
    folder = _infinity_dir()
    shutil.rmtree(folder, ignore_errors=True)
    print("installing infinity-emb: about 2 minutes and 1.4 GB", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    # With the local part (2.13.0+cpu): another build of that version would bring gigabytes of libraries.
    subprocess.run([*pip, "install", "--quiet", f"torch=={torch_version}", INFINITY], check=True)
    listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    found = dict(line.replace("_", "-").split("==", 1) for line in listed.splitlines() if "==" in line)
    lines = [f"{name}=={found[name]}\n" for name in INFINITY_SHOWN]
    (folder / "versions").write_text("".join(lines), encoding="utf-8")


def _infinity_dir() -> Path:
    return cache_dir() / "infinity"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=["llama-server", "infinity"], help="these alone")
    wanted = parser.parse_args().only or ["llama-server", "infinity"]
    if "llama-server" in wanted:
        version = importlib.metadata.version(PACKAGE)
        if not is_built(version):
            build(version)
        print(f"llama-server of {PACKAGE} {version} is at {llama_server_path()}")
    if "infinity" in wanted:
        if not infinity_versions():
            try:
                torch_version = importlib.metadata.version("torch")
            except importlib.metadata.PackageNotFoundError:
                sys.exit("infinity-emb is measured beside our own torch: pip install 'llmvisor[flag]'")
            install_infinity(torch_version)
        print(f"infinity-emb is at {infinity_path()}")


if __name__ == "__main__":
    main()
