"""What `llmctl status` shows, as lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llmctl import render
from llmctl.table import Cell, Column, Paint, fold, table
from llmctl.terminal import Style, printable
from llmctl.times import local_time
from llmvisor.control.api import DaemonStatus, Job, RuntimeStatus, UpgradeStatus

_TIERS = ("light", "medium", "heavy", "embedding", "reranker")
STATE_STYLES: dict[str, Style] = {
    "loaded": "green",
    "busy": "green",
    "loading": "cyan",
    "draining": "yellow",
    "unloading": "yellow",
    "not_loaded": "dim",
    "error": "red",
    "unavailable": "red",
}
_HEALTH_STYLES: dict[str, Style] = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}
_COLUMNS = (
    Column("MODEL", fold=True),
    Column("STATE"),
    Column("BACKEND"),
    Column("PID", right=True),
    Column("MEM", right=True),
    Column("SLOTS", right=True, silent=("", "0/0")),
    Column("THR", right=True, silent=("",)),
    Column("QUEUE", right=True, silent=("", "0")),
    Column("TOK/S", right=True, silent=("", "0")),
    Column("IDLE", right=True),
    Column("RST", right=True, silent=("", "0")),
)
_LAST_LINES_SHOWN = 8
_SHORT_ID_LENGTH = 8


def daemon_view(status: DaemonStatus, *, width: int | None, paint: Paint) -> list[str]:
    """The daemon, its models by tier, what is wrong with them, and the jobs that run."""
    lines = _daemon_lines(status, paint)
    if status.runtimes:
        lines += ["", *models_table(status.runtimes, width=width, paint=paint)]
    else:
        lines += ["", "no models are configured"]
    for runtime in by_tier(status.runtimes):
        lines += trouble_lines(runtime, width=width, paint=paint)
    running = [job for job in status.jobs if job.ended_at is None]
    if running:
        lines += ["", *jobs_table(running, width=width, paint=paint)]
    return lines


def _daemon_lines(status: DaemonStatus, paint: Paint) -> list[str]:
    health = paint(printable(status.health), _HEALTH_STYLES.get(status.health, ""))
    memory = f"{render.long_size(status.memory_used)} of {render.long_size(status.memory_limit)}"
    requests = f"{status.in_flight} request{'' if status.in_flight == 1 else 's'} in flight"
    uptime = render.duration(status.uptime_seconds)
    lines = [
        f"{paint(f'llmvisor {status.version}', 'bold')}  {health}, up {uptime}, pid {status.pid}",
        f"address  {status.address or 'not bound yet'}",
        f"config   {status.config_file or 'built-in defaults (no config file)'}",
        f"memory   {memory} by models, {requests}",
    ]
    lines += [paint(f"{status.health}: {printable(reason)}", "yellow") for reason in status.reasons]
    config = status.config
    if config.replacing:
        lines.append(f"replacing {', '.join(map(printable, config.replacing))}: the new workers are yet to load")
    lines += [
        paint(f"{printable(wait.path)} waits for a restart: {printable(wait.reason)}", "yellow")
        for wait in config.waits
    ]
    lines += _upgrade_lines(status.upgrade, paint)
    if status.log_dropped:
        lines.append(paint(f"{status.log_dropped} log lines were dropped", "yellow"))
    return lines


def _upgrade_lines(upgrade: UpgradeStatus, paint: Paint) -> list[str]:
    reason = printable(upgrade.reason or "")
    match upgrade.state:
        case "checking":
            return ["upgrading: the new program is tried"]
        case "waiting":
            return [f"upgrading: {reason}"]
        case "failed":
            return [paint(f"the last upgrade failed: {reason}", "yellow")]
        case _:
            return []


def by_tier(runtimes: Sequence[RuntimeStatus]) -> list[RuntimeStatus]:
    """In the order of the tiers, those of other tiers and of none last."""

    def place(runtime: RuntimeStatus) -> tuple[int, str, str]:
        tier = runtime.tier or ""
        known = _TIERS.index(tier) if tier in _TIERS else len(_TIERS) + (not tier)
        return known, tier, runtime.model

    return sorted(runtimes, key=place)


def model_id(runtime: RuntimeStatus) -> str:
    """`tier/name`; the name alone without a tier, or where the two are one."""
    return name_with_tier(runtime.model, runtime.tier)


def name_with_tier(name: str, tier: str | None) -> str:
    """What a person types to mean this model, and what tells most."""
    return name if tier is None or tier == name or "/" in name else f"{tier}/{name}"


def models_table(runtimes: Sequence[RuntimeStatus], *, width: int | None, paint: Paint) -> list[str]:
    rows = [_row(runtime) for runtime in by_tier(runtimes)]
    return table(_COLUMNS, rows, width=width, paint=paint)


def _row(runtime: RuntimeStatus) -> list[Cell]:
    alive = runtime.pid is not None
    return [
        Cell(model_id(runtime)),
        Cell(_state_text(runtime), STATE_STYLES.get(runtime.state, "")),
        Cell(runtime.backend),
        Cell(str(runtime.pid) if alive else ""),
        Cell(render.size(runtime.memory)),
        Cell(f"{runtime.slots_busy}/{runtime.slots}" if alive else ""),
        Cell(str(runtime.threads or "") if alive else ""),
        Cell(str(runtime.queued) if alive or runtime.queued else ""),
        Cell(f"{runtime.tokens_per_second:.0f}" if alive else ""),
        Cell(render.countdown(runtime.idle_left_seconds)),
        Cell(str(runtime.restarts) if alive or runtime.restarts else "", "yellow" if runtime.restarts else ""),
    ]


def _state_text(runtime: RuntimeStatus) -> str:
    progress = runtime.progress
    if runtime.state == "loading" and progress is not None and progress.stage == "memory":
        return "waits for memory"
    if runtime.state == "loading" and progress is not None and progress.total > 0:
        return f"loading {100 * progress.done // progress.total}%"
    return render.state(runtime.state)


def trouble_lines(runtime: RuntimeStatus, *, width: int | None, paint: Paint, every: bool = False) -> list[str]:
    """Why a model is in error, and the last lines that its worker wrote; empty for one that is well."""
    if runtime.state not in {"error", "unavailable"} and not (every and (runtime.error or runtime.last_lines)):
        return []
    reason = printable(runtime.error or "no reason was given")
    lines = ["", paint(f"{model_id(runtime)}: {render.state(runtime.state)}", "red")]
    lines += [f"  {piece}" for part in reason.splitlines() for piece in fold(part, (width or 10_000) - 2)]
    if runtime.retry_in_seconds is not None:
        lines.append(f"  next start in {render.duration(runtime.retry_in_seconds)}")
    if runtime.state == "unavailable":
        lines.append(f"  start it again with: llmctl restart {model_id(runtime)}")
    said = runtime.last_lines if every else runtime.last_lines[-_LAST_LINES_SHOWN:]
    if said:
        lines.append("  the last lines of its worker:")
        lines += [
            paint(f"    {piece}", "dim") for text in said for piece in fold(printable(text), (width or 10_000) - 4)
        ]
    return lines


def runtime_view(runtime: RuntimeStatus, *, width: int | None, paint: Paint) -> list[str]:
    """One model's worker in full."""
    pairs = [
        ("state", f"{_state_text(runtime)} since {local_time(runtime.since)}"),
        ("backend", f"{runtime.backend} {runtime.backend_version or ''}".rstrip()),
        ("pid", "" if runtime.pid is None else str(runtime.pid)),
        ("doing", runtime.phase or ""),
        ("memory", render.long_size(runtime.memory)),
        ("slots", f"{runtime.slots_busy} of {runtime.slots} busy" if runtime.pid is not None else ""),
        ("threads", str(runtime.threads or "")),
        ("queue", str(runtime.queued) if runtime.queued else ""),
        ("speed", f"{runtime.tokens_per_second:.1f} tok/s" if runtime.pid is not None else ""),
        ("unloads in", render.duration(runtime.idle_left_seconds)),
        ("sandbox", _sandbox_text(runtime)),
        ("loaded in", render.duration(runtime.load_seconds)),
        ("restarts", f"{runtime.restarts} after a crash" if runtime.restarts else ""),
    ]
    lines = [paint(model_id(runtime), "bold"), *pair_lines(pairs)]
    return lines + trouble_lines(runtime, width=width, paint=paint, every=True)


def _sandbox_text(runtime: RuntimeStatus) -> str:
    if runtime.pid is None or runtime.sandbox is None:
        return "" if runtime.pid is None else "off"
    return "; ".join(
        part for part in (", ".join(runtime.sandbox), *map("lacks {}".format, runtime.sandbox_missing)) if part
    )


def pair_lines(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values beneath each other; empty values are left out."""
    shown = [(name, printable(value)) for name, value in pairs if value]
    size = max((len(name) for name, _ in shown), default=0)
    return [f"{name:<{size}}  {value}" for name, value in shown]


def jobs_table(jobs: Sequence[Job], *, width: int | None, paint: Paint) -> list[str]:
    """A job in each row; why some failed comes below, since ids leave no room beside them."""
    columns = (
        Column("JOB"),
        Column("TYPE"),
        Column("MODEL", fold=True),
        Column("STATE"),
        Column("DONE", right=True),
        Column("BEGAN"),
    )
    rows = [
        [
            Cell(_shown_id(job, width)),
            Cell(_job_type(job)),
            Cell(job_subject(job)),
            Cell(job.state, "red" if job.state == "failed" else ""),
            Cell(f"{100 * job.progress:.0f}%"),
            Cell(local_time(job.created_at)[5:16]),
        ]
        for job in jobs
    ]
    lines = table(columns, rows, width=width, paint=paint)
    for job in jobs:
        if job.error:
            lines += ["", paint(f"{_shown_id(job, width)} {job.state}", "red")]
            told = [job.error, *([job.hint] if job.hint else [])]
            lines += [f"  {piece}" for text in told for piece in fold(printable(text), (width or 10_000) - 2)]
    return lines


def _shown_id(job: Job, width: int | None) -> str:
    """On a terminal the end of a long id, where two differ most: commands take it for the whole one."""
    return job.id if width is None or len(job.id) <= 2 * _SHORT_ID_LENGTH else job.id[-_SHORT_ID_LENGTH:]


def _job_type(job: Job) -> str:
    return "restart" if job.params.restart else "rollback" if job.params.rollback else job.type


def job_subject(job: Job) -> str:
    """What a job is about: its model; before that is known, where it comes from."""
    return printable(job.params.model or job.params.source or job.params.path or "")
