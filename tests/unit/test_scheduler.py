"""What the scheduler decides, event by event."""

from __future__ import annotations

import pytest
from tests.support.schedulers import ready, scheduler, ticket, without_changes

from llmvisor.supervision.scheduling.effects import Grant, Refuse, StartWorker, StopWorker, Suspend, Ticket
from llmvisor.supervision.scheduling.poison import Crash, CrashKind
from llmvisor.supervision.scheduling.state import State


class TestLoading:
    def test_the_first_request_starts_a_worker(self) -> None:
        """Models load lazily."""
        assert without_changes(scheduler().submit(ticket(1))) == [StartWorker()]

    def test_requests_while_loading_share_one_load(self) -> None:
        """Loads are coalesced."""
        one = scheduler()
        one.submit(ticket(1))
        assert one.submit(ticket(2)) == []
        assert without_changes(one.loaded(4, 1)) == [Grant(1), Grant(2)]

    def test_a_client_that_leaves_keeps_the_load(self) -> None:
        """The load goes on: the next request finds it done."""
        one = scheduler()
        one.submit(ticket(1))
        assert one.withdrawn(1, 0.5) == []
        assert one.state is State.LOADING
        assert without_changes(one.loaded(4, 1)) == []

    def test_a_request_waits_for_a_load_at_most_so_long(self) -> None:
        """After `load_timeout` it is refused, and the load goes on."""
        one = scheduler(load_timeout_seconds=10)
        one.submit(ticket(1, at=0))
        one.submit(ticket(2, at=3))
        assert one.next_wake() == 10
        refusals = one.wake(10)
        assert [(r.id, r.kind, r.retry_after_seconds) for r in refusals if isinstance(r, Refuse)] == [
            (1, "model_loading", 5.0)
        ]
        assert one.next_wake() == 13
        assert one.state is State.LOADING

    def test_no_room_refuses_who_waits_and_is_no_crash(self) -> None:
        """A model that does not fit may be tried again at once."""
        one = scheduler()
        one.submit(ticket(1))
        assert without_changes(one.denied("too big", 1)) == [Refuse(1, "insufficient_memory", "too big", 10.0)]
        assert one.state is State.STOPPED
        assert one.restarts == 0
        assert without_changes(one.submit(ticket(2, at=2))) == [StartWorker()]


class TestQueue:
    def test_requests_run_in_order_as_slots_come_free(self) -> None:
        """First in, first out."""
        one = ready(slots=2)
        effects = [one.submit(ticket(n)) for n in range(1, 5)]
        assert effects == [[Grant(1)], [Grant(2)], [], []]
        assert one.ended(2, 5) == [Grant(3)]
        assert one.ended(1, 6) == [Grant(4)]

    def test_a_request_for_several_choices_takes_several_slots(self) -> None:
        """One with n=3 waits until three are free, and nobody overtakes it."""
        one = ready(slots=4)
        one.submit(ticket(1, weight=2))
        assert one.submit(ticket(2, weight=3)) == []
        assert one.submit(ticket(3, weight=1)) == []
        assert one.ended(1, 5) == [Grant(2), Grant(3)]

    def test_a_request_for_more_choices_than_slots_runs_alone(self) -> None:
        """n=16 on 4 slots is served, not refused."""
        one = ready(slots=4)
        assert one.submit(ticket(1, weight=16)) == [Grant(1)]
        assert one.submit(ticket(2)) == []

    def test_questions_need_no_slot(self) -> None:
        """Tokenizing overtakes generations that wait."""
        one = ready(slots=1)
        one.submit(ticket(1))
        one.submit(ticket(2))
        assert one.submit(ticket(3, weight=0)) == [Grant(3)]

    def test_a_full_queue_refuses(self) -> None:
        """Beyond the limit a request is told so at once."""
        one = ready(slots=1, queue_limit=2)
        for n in range(1, 4):
            one.submit(ticket(n))
        (refusal,) = one.submit(ticket(4))
        assert isinstance(refusal, Refuse)
        assert refusal.kind == "queue_full"

    def test_a_queue_limit_of_zero_still_serves_who_need_not_wait(self) -> None:
        """0 = nobody waits, and a free slot is no wait."""
        one = ready(slots=1, queue_limit=0)
        assert one.submit(ticket(1)) == [Grant(1)]
        (refusal,) = one.submit(ticket(2))
        assert isinstance(refusal, Refuse)

    def test_a_full_queue_has_room_for_a_question(self) -> None:
        """It takes no slot, so it waits for nobody."""
        one = ready(slots=1, queue_limit=1)
        one.submit(ticket(1))
        one.submit(ticket(2))
        assert one.submit(ticket(3, weight=0)) == [Grant(3)]

    def test_a_withdrawn_request_lets_the_next_one_pass(self) -> None:
        """A heavy request that leaves no longer blocks a light one."""
        one = ready(slots=4)
        one.submit(ticket(1, weight=2))
        one.submit(ticket(2, weight=4))
        one.submit(ticket(3, weight=1))
        assert one.withdrawn(2, 3) == [Grant(3)]


class TestCrash:
    def test_what_ran_waits_ahead_of_what_waited_for_the_next_worker(self) -> None:
        """A crash is a pause, and the first start after it comes at once."""
        one = ready(slots=1)
        one.submit(ticket(1))
        one.submit(ticket(2))
        assert without_changes(one.exited("killed by SIGKILL", 10)) == [Suspend(1, "killed by SIGKILL")]
        assert one.state is State.BACKOFF
        assert (one.queued, one.running, one.next_wake()) == (2, 0, 10)
        assert without_changes(one.wake(10)) == [StartWorker()]
        assert without_changes(one.loaded(1, 12)) == [Grant(1)]
        assert one.ended(1, 13) == [Grant(2)]

    def test_what_asked_for_an_error_gets_one(self) -> None:
        """`X-LLMVISOR-Resume: off`; who only waited is served by the next worker all the same."""
        one = ready(slots=1)
        one.submit(Ticket(1, 1, 0, resume=False))
        one.submit(Ticket(2, 1, 0, resume=False))
        effects = without_changes(one.exited("killed by SIGKILL", 10))
        assert effects == [Refuse(1, "runtime_crashed", "killed by SIGKILL", 1.0)]
        one.wake(10)
        assert without_changes(one.loaded(1, 12)) == [Grant(2)]

    def test_the_load_timeout_begins_with_the_crash(self) -> None:
        """A request that came long ago has as long for the next worker as a new one."""
        one = ready(load_timeout_seconds=10)
        one.submit(ticket(1, at=1))
        one.exited("boom", 1000)
        assert without_changes(one.wake(1000)) == [StartWorker()]
        assert one.next_wake() == 1010
        assert [effect.kind for effect in one.wake(1010) if isinstance(effect, Refuse)] == ["model_loading"]

    def test_a_load_that_crashes_keeps_what_a_worker_had_before(self) -> None:
        """It has seen this model load; who is new is told the reason."""
        one = ready()
        one.submit(ticket(1))
        one.exited("boom", 10)
        one.submit(ticket(2, at=10))
        one.wake(10)
        effects = without_changes(one.exited("exited with code 70", 11))
        assert effects == [Refuse(2, "model_load_failed", "exited with code 70")]
        one.wake(20)
        assert without_changes(one.loaded(4, 21)) == [Grant(1)]

    def test_a_load_that_is_killed_keeps_everybody_where_the_model_has_loaded_before(self) -> None:
        """However often, within the budget; a model that never loaded is tried once more."""
        one = ready()
        one.exited("boom", 10)
        one.submit(ticket(2, at=10))
        for at in (11, 21):
            one.wake(at)
            assert without_changes(one.exited("killed by SIGKILL", at, crash=Crash("killed"))) == []
        never = scheduler()
        never.submit(ticket(1))
        assert without_changes(never.exited("killed by SIGKILL", 1, crash=Crash("killed"))) == []
        never.wake(2)
        (refusal,) = without_changes(never.exited("killed by SIGKILL", 2, crash=Crash("killed")))
        assert isinstance(refusal, Refuse)

    def test_a_suspect_that_is_slow_holds_up_the_others_for_a_minute_at_most(self) -> None:
        """An embedding of many texts, or a client that does not read: it does no harm, and is let be."""
        one = ready(restarts_max=100)
        for request_id in (1, 2):
            one.submit(ticket(request_id))
        for at in (10, 30):
            one.exited("boom", at)
            one.wake(at + 10)
            one.loaded(4, at + 10)
        one.submit(ticket(3, at=50))
        assert (one.on_probation, one.running, one.queued, one.next_wake()) == (2, 1, 2, 100)
        assert one.wake(99) == []
        assert one.wake(100) == [Grant(1)]
        assert one.wake(160) == [Grant(3)]
        assert one.on_probation is None

    def test_a_worker_that_is_sacrificed_counts_against_nobody_that_got_on(self) -> None:
        """Its requests go on in the next one, however often."""
        one = ready(restarts_max=100)
        one.submit(ticket(1))
        for at in range(10, 160, 30):
            assert one.sacrificed("out of memory") == [StopWorker("kill", "out of memory")]
            effects = one.exited("killed", at, crash=Crash("fault", frozenset({1})))
            assert without_changes(effects) == [Suspend(1, "out of memory")]
            one.wake(at + 20)
            assert without_changes(one.loaded(4, at + 20)) == [Grant(1)]

    def test_a_loaded_model_comes_back_although_nobody_waits(self) -> None:
        """Kept running, as an init system does."""
        one = ready()
        one.exited("exited with code 1", 10)
        assert without_changes(one.wake(11)) == [StartWorker()]

    def test_a_failed_load_refuses_who_waited_and_waits_for_the_next_request(self) -> None:
        """The backend's own reason reaches the client; nothing is tried again for nobody."""
        one = scheduler()
        one.submit(ticket(1))
        assert one.broken("no such file") == [StopWorker("kill", "no such file")]
        assert without_changes(one.exited("killed", 2)) == [Refuse(1, "model_load_failed", "no such file")]
        assert without_changes(one.wake(3)) == []
        assert one.state is State.STOPPED

    def test_a_preloaded_model_is_tried_again_until_the_budget_is_spent(self) -> None:
        """Then it is unavailable, and says why."""
        one = scheduler(keep_loaded=True, restarts_max=2)
        one.load_wanted(0)
        for _ in range(2):
            one.exited("boom", 1)
            assert without_changes(one.wake(50)) == [StartWorker()]
        one.exited("boom", 51)
        assert one.state is State.FAILED
        assert one.next_wake() is None
        (refusal,) = one.submit(ticket(9))
        assert refusal == Refuse(9, "model_unavailable", "boom")

    def test_a_permanent_failure_is_not_tried_again(self) -> None:
        """Trying again with the same file and options is of no use."""
        one = scheduler()
        one.submit(ticket(1))
        one.broken("no GGUF", permanent=True)
        effects = without_changes(one.exited("killed", 2))
        assert effects == [Refuse(1, "model_load_failed", "no GGUF")]
        assert one.state is State.FAILED

    def test_a_reset_makes_an_unavailable_model_available(self) -> None:
        """`llmctl restart` leads out."""
        one = scheduler(restarts_max=0)
        one.submit(ticket(1))
        one.exited("boom", 1)
        one.reset(2)
        assert without_changes(one.submit(ticket(2))) == [StartWorker()]

    def test_a_hung_worker_gets_no_request_until_it_is_replaced(self) -> None:
        """It is aborted; a request that comes meanwhile waits for the next one."""
        one = ready()
        one.submit(ticket(1))
        assert one.hung("no progress") == [StopWorker("abort", "no progress")]
        assert one.submit(ticket(2)) == []
        assert Suspend(1, "no progress") in one.exited("killed by SIGABRT", 5)
        one.wake(6)
        assert without_changes(one.loaded(4, 7)) == [Grant(1), Grant(2)]

    def test_a_hang_is_told_once(self) -> None:
        """The ladder is not begun again."""
        one = ready()
        one.hung("no progress")
        assert one.hung("no progress") == []
        assert one.broken("garbage") == []

    def test_worker_that_somebody_stops_counts_against_nobody(self) -> None:
        """However often; one that hangs by itself does, at the second time."""
        cases: list[tuple[CrashKind, list[tuple[int, str]]]] = [("outside", []), ("fault", [(1, "poison_request")])]
        for kind, ends in cases:
            one = ready(restarts_max=100)
            one.submit(ticket(1))
            refused: list[Refuse] = []
            for at in (10, 30, 50):
                one.hung("no progress", kind=kind)
                refused += [each for each in one.exited("killed by SIGABRT", at) if isinstance(each, Refuse)]
                one.wake(at + 10)
                one.loaded(4, at + 10)
            assert [(each.id, each.kind) for each in refused] == ends


class TestUnload:
    def test_idleness_unloads(self) -> None:
        """`idle_timeout` after the last request has ended."""
        one = ready(idle_timeout_seconds=100)
        assert one.next_wake() == 101
        one.submit(ticket(1, at=50))
        assert one.next_wake() is None
        one.ended(1, 60)
        assert one.next_wake() == 160
        assert without_changes(one.wake(160)) == [StopWorker("close", "unloaded")]
        one.exited("exited with code 0", 161)
        assert one.state is State.STOPPED

    def test_an_idle_timeout_of_zero_never_unloads(self) -> None:
        """0 = never."""
        assert ready(idle_timeout_seconds=0).next_wake() is None

    @pytest.mark.parametrize(("keep_alive", "wake"), [(0, 60), (30, 90), (-1, None)])
    def test_keep_alive_of_a_request_wins(self, keep_alive: float, wake: float | None) -> None:
        """0 unloads at once, a negative one never, as Ollama has it."""
        one = ready()
        one.submit(ticket(1, at=50, keep_alive=keep_alive))
        one.ended(1, 60)
        assert one.next_wake() == wake

    def test_a_machine_that_slept_unloads_nothing(self) -> None:
        """The time asleep was no idleness: the deadline is set anew."""
        one = ready(idle_timeout_seconds=100)
        assert one.wake(101 + 3600) == []
        assert one.next_wake() == 101 + 3600 + 100

    def test_unload_lets_what_runs_finish(self) -> None:
        """A request that comes meanwhile waits, and gets a new worker."""
        one = ready()
        one.submit(ticket(1))
        assert without_changes(one.unload_wanted(2)) == []
        assert one.state is State.DRAINING
        assert one.submit(ticket(2)) == []
        assert without_changes(one.ended(1, 3)) == [StopWorker("close", "unloaded")]
        assert without_changes(one.exited("exited with code 0", 4)) == [StartWorker()]
        assert without_changes(one.loaded(4, 5)) == [Grant(2)]

    def test_forced_unload_ends_what_runs(self) -> None:
        """And is no crash."""
        one = ready()
        one.submit(ticket(1))
        assert without_changes(one.unload_wanted(2, force=True)) == [StopWorker("kill", "unloaded by force")]
        assert Refuse(1, "unloaded", "it was unloaded by force", 1.0) in one.exited("killed", 3)
        assert (one.state, one.restarts) == (State.STOPPED, 0)

    def test_force_hurries_an_unload_under_way(self) -> None:
        """`llmctl unload --force` after `llmctl unload` does not wait for the polite end."""
        one = ready()
        one.unload_wanted(2)
        assert one.state is State.STOPPING
        assert one.unload_wanted(3, force=True) == [StopWorker("kill", "unloaded by force")]

    def test_a_request_while_stopping_waits_and_then_starts(self) -> None:
        """It never hangs, and never goes into a worker that is leaving."""
        one = ready()
        one.unload_wanted(2)
        assert one.submit(ticket(1, at=3)) == []
        assert without_changes(one.exited("exited with code 0", 4)) == [StartWorker()]

    def test_unload_wins_over_a_restart_that_waits(self) -> None:
        """The backoff ends with it."""
        one = ready()
        one.exited("boom", 2)
        assert without_changes(one.unload_wanted(2.5)) == []
        assert (one.state, one.next_wake()) == (State.STOPPED, None)

    def test_a_load_that_nobody_wants_any_more_ends(self) -> None:
        """A cancelled load unloads, but for requests that wait for it and models that are to be loaded anyway."""
        one = scheduler()
        one.submit(ticket(1, weight=0))
        one.submit(ticket(2))
        one.withdrawn(1, 1)
        assert one.load_unwanted(1) == []
        one.withdrawn(2, 2)
        assert without_changes(one.load_unwanted(2)) == [StopWorker("kill", "unloaded while loading")]
        preloaded = scheduler()
        preloaded.load_wanted(0)
        assert preloaded.load_unwanted(1) == []
        assert ready().load_unwanted(2) == []

    def test_unload_while_loading_kills(self) -> None:
        """There is nothing to drain."""
        one = scheduler()
        one.load_wanted(0)
        assert without_changes(one.unload_wanted(1)) == [StopWorker("kill", "unloaded while loading")]


class TestShutdown:
    def test_shutdown_refuses_who_waits_and_lets_what_runs_finish(self) -> None:
        """Nothing starts any more."""
        one = ready(slots=1)
        one.submit(ticket(1))
        one.submit(ticket(2))
        effects = without_changes(one.shutdown(5))
        assert effects == [Refuse(2, "shutting_down", "the server is shutting down")]
        assert one.submit(ticket(3)) == [Refuse(3, "shutting_down", "the server is shutting down")]
        assert without_changes(one.ended(1, 6)) == [StopWorker("close", "unloaded")]
        one.exited("exited with code 0", 7)
        assert one.state is State.CLOSED

    def test_worker_that_ends_while_the_daemon_does_is_replaced_for_what_it_had(self) -> None:
        """It finishes in the next one, and nothing else does. The last to end ends that worker too."""
        one = ready(slots=1)
        one.submit(ticket(1))
        one.shutdown(5)
        assert without_changes(one.exited("boom", 6)) == [Suspend(1, "boom"), StartWorker()]
        assert one.submit(ticket(2)) == [Refuse(2, "shutting_down", "the server is shutting down")]
        assert without_changes(one.loaded(1, 7)) == [Grant(1)]
        assert without_changes(one.ended(1, 8)) == [StopWorker("close", "unloaded")]
        assert without_changes(one.exited("exited with code 0", 9)) == []
        assert one.state is State.CLOSED

    def test_what_waits_for_its_next_worker_when_the_daemon_ends_gets_it(self) -> None:
        """In the wait before the start, and while it loads. Whoever leaves it then leaves nothing behind."""
        one = ready(slots=1)
        one.submit(ticket(1))
        one.exited("boom", 5)
        one.submit(ticket(2, at=5))
        assert without_changes(one.shutdown(5)) == [Refuse(2, "shutting_down", "the server is shutting down")]
        assert without_changes(one.wake(5)) == [StartWorker()]
        assert without_changes(one.shutdown(6)) == []
        assert without_changes(one.withdrawn(1, 7)) == [StopWorker("kill", "shutting down")]
        assert without_changes(one.exited("killed", 8)) == []
        assert one.state is State.CLOSED

    def test_shutdown_wins_in_backoff_and_while_loading(self) -> None:
        """No worker starts after it (OTP-9549)."""
        crashed = ready()
        crashed.exited("boom", 2)
        assert without_changes(crashed.shutdown(2.1)) == []
        assert (crashed.state, crashed.next_wake()) == (State.CLOSED, None)
        loading = scheduler(keep_loaded=True)
        loading.load_wanted(0)
        assert without_changes(loading.shutdown(1)) == [StopWorker("kill", "shutting down")]
        assert without_changes(loading.exited("killed", 2)) == []
        assert loading.state is State.CLOSED
