"""Whether every model is still looked after: what the service manager's watchdog goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.fake_worker import FakeClock
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.clock import SystemClock
from llmvisor.config.tree import Config, ModelConfig
from llmvisor.supervision.alarm import Alarm
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.supervisor import Supervisor


def test_model_whose_alarm_is_over_is_not_looked_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late by less than the bound is a busy loop; by more is a bug, and is named."""
    clock = FakeClock()
    config = Config(models={"mine": ModelConfig(backend="mock"), "other": ModelConfig(backend="mock")})
    supervisor = Supervisor(config, run_dir=tmp_path, clock=clock, publish=lambda _: None)
    assert supervisor.unsupervised() is None
    due = clock.monotonic() - limits.supervision_late_seconds_max
    wakes: dict[str, float | None] = {"mine": None, "other": due + 0.5}
    monkeypatch.setattr(Runtime, "wakes_at", property(lambda runtime: wakes[runtime.name]))
    assert supervisor.unsupervised() is None
    wakes["other"] = due - 0.5
    assert supervisor.unsupervised() == "other is not looked after any more"


async def test_alarm_says_when_it_is_due() -> None:
    """The first of its times; none once it is set to none."""
    alarm = Alarm(FakeClock(), lambda: None)
    alarm.set(None, 7.0, 5.0)
    assert alarm.due_at == 5.0
    alarm.set(None)
    assert alarm.due_at is None


async def test_alarm_that_is_set_later_rings_then_and_once() -> None:
    """The timer that there is stays; it is another one only where that would be too late."""
    clock, rung = SystemClock(), list[float]()
    alarm = Alarm(clock, lambda: rung.append(clock.monotonic()))
    begun = clock.monotonic()
    alarm.set(begun + 0.05)
    alarm.set(begun + 0.3)
    await eventually(lambda: rung)
    assert rung[0] >= begun + 0.29
    alarm.set(clock.monotonic() + 60)
    alarm.set(clock.monotonic() + 0.01)
    await eventually(lambda: len(rung) == 2)
    alarm.set(clock.monotonic() + 0.02)
    alarm.set(None)
    later = Alarm(clock, lambda: rung.append(0.0))
    later.set(clock.monotonic() + 0.05)
    await eventually(lambda: len(rung) == 3)
    assert rung[2] == 0.0
