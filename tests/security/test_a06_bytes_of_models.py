"""A6: bytes of models are parsed in the model's own worker; a header that lies costs that worker, and leaks nothing."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from tests.support import gguf_bytes as made
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.errors import ModelLoadFailed
from llmvisor.models.gguf import read_header

CANARY = "canary-8f1e2c"
SECRETS: dict[str, str] = dict.fromkeys(
    ("OPENAI_API_KEY", "HF_TOKEN", "LLMVISOR_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"), CANARY
)
ALLOWED_PREFIXES = (
    "LC_", "XDG_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "GPU_", "GGML_", "LLAMA_", "METAL_", "MLX_", "OMP_",
    "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_", "TORCH_", "PYTORCH_", "LD_LIBRARY_PATH", "DYLD_",
)  # fmt: skip
ALLOWED = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "HF_HOME", "HF_HUB_CACHE",
    "HF_HUB_OFFLINE", "SSL_CERT_FILE", "SSL_CERT_DIR", "GLIBC_TUNABLES", "PYTHONUNBUFFERED", "LLMVISOR_WORKER_NONCE",
}  # fmt: skip

HEADERS: dict[str, bytes] = {
    "tensors-2.60": made.gguf(tensor_count=2**60),
    "entries-2.62": made.gguf(entry_count=2**62),
    "text-2.63": made.gguf({"general.architecture": made.string("x")[:4] + struct.pack("<Q", 2**63)}),
    "text-2.64": made.gguf({"general.architecture": made.string("x")[:4] + struct.pack("<Q", 2**64 - 1)}),
    "nothing": b"",
    "magic-alone": b"GGUF",
    "version-0": b"GGUF" + struct.pack("<IQQ", 0, 0, 0),
    "version-max": b"GGUF" + struct.pack("<IQQ", 2**32 - 1, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
    "counts-max": b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 2**64 - 1),
    "ones": b"GGUF" + b"\xff" * 4096,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headers")
    for name, content in HEADERS.items():
        (folder / f"{name}.gguf").write_bytes(content)
    write_tiny_gguf(folder / "good.gguf", context_length=256)
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Generator[Daemon]:
    names = [*HEADERS, "good"]
    models: Json = {name: {"backend": "llamacpp", "path": str(folder / f"{name}.gguf"), "n_ctx": 128} for name in names}
    with Daemon({"models": {"other": mock_model(), **models}}, env=SECRETS) as daemon:
        yield daemon


@pytest.mark.parametrize("name", HEADERS)
def test_header_that_lies_is_refused(daemon: Daemon, name: str) -> None:
    """A clear error for that model; the daemon and the other model go on, in the memory that they had."""
    before = memory_bytes(daemon.pid)
    status, answer = daemon.complete(name, max_tokens=1)
    assert (status, answer["error"]["type"]) == (503, "model_error"), answer
    assert daemon.complete("other", max_tokens=1)[0] == 200
    assert memory_bytes(daemon.pid) - before < 16 * 1024 * 1024


def test_reader_allocates_nothing_that_a_header_claims(folder: Path) -> None:
    """Counts are held against the file's length before anything is made of them, for 300 headers that are damaged."""
    good = (folder / "good.gguf").read_bytes()
    random = Random(6)
    path = folder / "damaged.gguf"
    tracemalloc.start()
    try:
        for _ in range(300):
            content = bytearray(good[: random.randrange(24, 4096)])
            for _ in range(random.randrange(1, 5)):
                at = random.randrange(4, len(content) - 8)
                content[at : at + 8] = random.choice([b"\xff" * 8, struct.pack("<Q", 2**63), random.randbytes(8)])
            path.write_bytes(content)
            with suppress(ModelLoadFailed):
                read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_environment_of_a_worker_is_an_allowlist(daemon: Daemon) -> None:
    """As the kernel shows it: nothing but places, languages and libraries, and none of the daemon's secrets."""
    assert daemon.complete("good", max_tokens=1)[0] == 200
    environ = Path(f"/proc/{daemon.worker_pid('good')}/environ").read_bytes().split(b"\0")
    names = {line.split(b"=")[0].decode() for line in environ if line}
    assert CANARY.encode() not in b"".join(environ)
    assert [name for name in names if name not in ALLOWED and not name.startswith(ALLOWED_PREFIXES)] == []
    assert CANARY.encode() in Path(f"/proc/{daemon.pid}/environ").read_bytes()


def test_daemon_opens_no_weights(daemon: Daemon, folder: Path) -> None:
    """While the model is served the daemon has none of its bytes: neither open nor mapped."""
    assert daemon.complete("good", max_tokens=1)[0] == 200
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    opened = [str(fd.readlink()) for fd in Path(f"/proc/{daemon.pid}/fd").iterdir() if fd.is_symlink()]
    assert str(folder) not in maps
    assert [path for path in opened if path.startswith(str(folder))] == []
    assert not any(library in maps for library in ("libllama", "libggml", "libtorch", "libmlx"))


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
