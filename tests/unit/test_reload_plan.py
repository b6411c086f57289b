"""What a new configuration changes."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmvisor.config import schema
from llmvisor.config.origins import Path, dotted, leaves
from llmvisor.config.reload import MODEL_EFFECTS, SECTION_EFFECTS, Change, ReloadPlan, plan
from llmvisor.config.tree import BackendConfig, Cache, Config, Control, ModelConfig, Restart, Server, Storage

BASE = Config(
    control=Control(socket="/run/llmvisor/control.sock"),
    models={
        "a": ModelConfig(path="/a.gguf", backend="llamacpp", temperature=0.7, max_tokens=9, env={"X": "1"}),
        "b": ModelConfig(backend="mock", temperature=0.7, max_tokens=9, options={"o": 1}),
    },
    backends={"llamacpp": BackendConfig(python="/usr/bin/python3")},
)


def with_model(name: str, **values: object) -> Config:
    """The base, with these keys of a model changed."""
    model = msgspec.structs.replace(BASE.models.get(name, ModelConfig(backend="mock")), **values)
    return msgspec.structs.replace(BASE, models=BASE.models | {name: model})


def every_change(found: ReloadPlan) -> Iterator[Change]:
    yield from [*found.logging, *found.limits, *found.routing, *found.http_listener, *found.control_listener]
    for model in [*found.models_updated, *found.models_replaced]:
        yield from model.changes


def test_plan_of_no_change_is_empty() -> None:
    """The same configuration asks for nothing, and says so."""
    found = plan(BASE, msgspec.convert(msgspec.to_builtins(BASE), Config))
    assert found.is_empty
    assert found.summary() == "nothing changed"


def test_plan_classifies_every_key_of_the_tree() -> None:
    """The two tables name exactly the keys that there are."""
    assert set(MODEL_EFFECTS) == set(ModelConfig.__struct_fields__)
    sections = {
        (section, key)
        for section in Config.__struct_fields__
        if section not in ("models", "backends")
        for key in schema.keys(schema.below(schema.ROOT, section) or schema.ROOT)
    }
    assert set(SECTION_EFFECTS) == sections


def test_plan_of_the_cache_names_its_part() -> None:
    """What is kept of answers may change as the daemon runs."""
    found = plan(BASE, msgspec.structs.replace(BASE, cache=Cache(max_size=7)))
    assert [(change.path, change.new) for change in found.cache] == [("cache.max_size", 7)]
    assert found == ReloadPlan(cache=found.cache)


def test_plan_leaves_the_store_where_it_is() -> None:
    """Another folder for the store and the models waits for a restart, and the plan says so."""
    found = plan(BASE, msgspec.structs.replace(BASE, storage=Storage(dir="/elsewhere")))
    assert [wait.path for wait in found.waits] == ["storage.dir"]
    assert found == ReloadPlan(waits=found.waits)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 0.1), ("top_p", 0.1), ("top_k", 1), ("max_tokens", 1), ("repeat_penalty", 1.0),
        ("idle_timeout", 1.0), ("preload", True), ("pinned", True), ("load_timeout", 1.0), ("stall_timeout", 1.0),
        ("queue_limit", 1), ("restart", Restart(max=1)), ("tier", "heavy"), ("aliases", ["x"]),
    ],
)  # fmt: skip
def test_plan_model_takes_sampling_limits_and_timeouts_as_it_runs(key: str, value: object) -> None:
    """Nothing is restarted for what the daemon alone decides."""
    found = plan(BASE, with_model("a", **{key: value}))
    assert [model.name for model in found.models_updated] == ["a"]
    assert found == ReloadPlan(models_updated=found.models_updated)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("path", "/other.gguf"), ("backend", "mock"), ("n_ctx", 1), ("n_batch", 1), ("n_threads", 1),
        ("n_gpu_layers", 1), ("parallel", 1), ("use_mmap", False), ("use_mlock", True), ("env", {}),
        ("options", {"p": 1}),
    ],
)  # fmt: skip
def test_plan_model_is_replaced_for_what_its_worker_is_made_of(key: str, value: object) -> None:
    """A new worker, with the key as the reason; what else changed comes along."""
    found = plan(BASE, with_model("a", **{key: value}, top_k=1))
    assert [model.name for model in found.models_replaced] == ["a"]
    assert found.models_replaced[0].reasons == [key]
    assert "models.a.top_k" in [change.path for change in found.models_replaced[0].changes]
    assert found == ReloadPlan(models_replaced=found.models_replaced)


def test_plan_models_come_and_go() -> None:
    """A new name is added, one that is gone removed; another model is not touched."""
    models = {"b": BASE.models["b"], "c": BASE.models["a"]}
    found = plan(BASE, msgspec.structs.replace(BASE, models=models))
    assert found == ReloadPlan(models_added=["c"], models_removed=["a"])
    assert found.summary() == "added c; removed a"


def test_plan_other_interpreter_replaces_the_models_of_that_backend() -> None:
    """A backend's interpreter is a reason for each of its models, and for no other."""
    new = msgspec.structs.replace(BASE, backends={"llamacpp": BackendConfig(python="/new")})
    found = plan(BASE, new)
    assert [(model.name, model.reasons) for model in found.models_replaced] == [("a", ["backends.llamacpp.python"])]
    assert found.limits == [Change("backends.llamacpp.python", "/usr/bin/python3", "/new")]
    gone = plan(BASE, msgspec.structs.replace(BASE, backends={}))
    assert [model.name for model in gone.models_replaced] == ["a"]


@pytest.mark.parametrize(("key", "value"), [("host", "::1"), ("port", 1), ("port_file", None)])
def test_plan_port_is_bound_anew(key: str, value: object) -> None:
    """Host, port and the port's file concern the listener alone."""
    found = plan(BASE, msgspec.structs.replace(BASE, server=msgspec.structs.replace(BASE.server, **{key: value})))
    assert [change.path for change in found.http_listener] == [f"server.{key}"]
    assert found == ReloadPlan(http_listener=found.http_listener)


def test_plan_socket_in_another_folder_leaves_the_lock_behind() -> None:
    """The socket moves at once; that the lock does not is said, and why."""
    same = plan(BASE, msgspec.structs.replace(BASE, control=Control(socket="/run/llmvisor/other.sock")))
    assert [change.path for change in same.control_listener] == ["control.socket"]
    assert same.waits == []
    moved = plan(BASE, msgspec.structs.replace(BASE, control=Control(socket="/tmp/x/control.sock")))
    assert [wait.path for wait in moved.waits] == ["control.socket"]
    assert "control.socket waits for a restart: " in moved.summary()


def test_plan_limits_take_effect_at_once() -> None:
    """Timeouts, allowed hosts and memory are read anew, nothing is bound or restarted."""
    server = Server(drain_timeout=1, allowed_hosts=["x"])
    found = plan(BASE, msgspec.structs.replace(BASE, server=server))
    assert found == ReloadPlan(
        limits=[Change("server.allowed_hosts", [], ["x"]), Change("server.drain_timeout", 30.0, 1)]
    )


def test_plan_masks_secrets() -> None:
    """A changed key of a worker's environment is told without its values."""
    old, new = with_model("a", env={"A_TOKEN": "hunter2"}), with_model("a", env={"A_TOKEN": "hunter3"})
    found = plan(old, new)
    assert found.models_replaced[0].changes == [Change("models.a.env.A_TOKEN", "****", "****")]
    assert "hunter" not in repr(found) + found.summary()


def test_plan_tells_one_from_true() -> None:
    """Values that Python takes for equal, and a backend does not, differ; the order of keys does not."""
    assert plan(with_model("a", options={"x": 1}), with_model("a", options={"x": True})).models_replaced
    same = plan(with_model("a", options={"x": {"p": 1, "q": 2}}), with_model("a", options={"x": {"q": 2, "p": 1}}))
    assert same.is_empty


NAMES = st.sampled_from(["a", "b", "light"])
MODELS = st.builds(
    ModelConfig,
    path=st.sampled_from(["/a.gguf", "/b.gguf", None]),
    backend=st.sampled_from(["llamacpp", "mock"]),
    tier=st.sampled_from(["light", None]),
    n_ctx=st.integers(1, 3),
    top_k=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 0.7]),
    max_tokens=st.integers(1, 2),
    idle_timeout=st.sampled_from([0.0, 1.0]),
    restart=st.builds(Restart, max=st.integers(0, 2), backoff=st.sampled_from([(0.1, 1.0), (0.2, 1.0)])),
    env=st.dictionaries(st.sampled_from(["A", "B_TOKEN"]), st.sampled_from(["1", "2"])),
    options=st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from([1, True, "1", [1], None])),
)
CONFIGS = st.builds(
    Config,
    server=st.builds(Server, port=st.integers(0, 2), drain_timeout=st.sampled_from([0.0, 1.0])),
    control=st.builds(Control, socket=st.sampled_from(["/r/a", "/r/b", "/s/a"])),
    models=st.dictionaries(NAMES, MODELS),
    backends=st.dictionaries(
        st.sampled_from(["llamacpp", "mock"]), st.builds(BackendConfig, python=st.sampled_from(["/p", None]))
    ),
)


@settings(deadline=None)
@given(CONFIGS)
def test_plan_from_any_configuration_to_itself_is_empty(config: Config) -> None:
    """plan(c, c) asks for nothing."""
    assert plan(config, config).is_empty


@settings(deadline=None)
@given(CONFIGS, CONFIGS)
def test_plan_covers_every_difference(old: Config, new: Config) -> None:
    """Each value that differs is in the plan once (or its model comes or goes), and no other is."""

    def differing() -> set[Path]:
        before, after = dict(leaves(old)), dict(leaves(new))
        return {
            path
            for path in before.keys() | after.keys()
            if (path in before) != (path in after)
            or msgspec.json.encode(before[path]) != msgspec.json.encode(after[path])
        }

    found = plan(old, new)
    whole = {*found.models_added, *found.models_removed}
    assert whole == old.models.keys() ^ new.models.keys()
    expected = {dotted(path) for path in differing() if not (path[0] == "models" and path[1] in whole)}
    assert {change.path for change in every_change(found)} == expected
    assert found.is_empty == (not expected and not whole)
    names = [model.name for model in [*found.models_updated, *found.models_replaced]]
    assert len(names) == len(set(names))
    assert not whole & set(names)
    for model in found.models_replaced:
        assert model.reasons
    for model in found.models_updated:
        assert all(MODEL_EFFECTS[change.path.split(".")[2]] == "update" for change in model.changes)


@settings(deadline=None)
@given(CONFIGS, CONFIGS)
def test_plan_back_undoes_the_plan(old: Config, new: Config) -> None:
    """What one way adds the other removes, and models that are updated or replaced are so both ways."""
    there, back = plan(old, new), plan(new, old)
    assert set(there.models_added) == set(back.models_removed)
    assert {model.name for model in there.models_updated} == {model.name for model in back.models_updated}
    assert {model.name for model in there.models_replaced} == {model.name for model in back.models_replaced}
