"""Chat templates: a conversation as the one text that the model reads.

Templates are jinja2 as transformers defines them (`apply_chat_template`) and GGUF files carry them. They are part of a
file from somewhere, so they run in `sandbox.Sandbox`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import msgspec
from jinja2.exceptions import TemplateSyntaxError

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.meter import LimitExceeded, Meter
from llmvisor_runtimes.protocol import ChatPrompt
from llmvisor_runtimes.sandbox import Sandbox
from llmvisor_runtimes.template_messages import TemplateStyle

REASON_CHARS_MAX = 500
STRFTIME_CHARS_MAX = 256

_KWARGS: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_OWN = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


class ChatTemplate:
    """A model's chat template, compiled. `render` may be called from any thread; calls wait for each other.

    Raises `RequestError` of kind `template_error` for a source that is no template or too long.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._sandbox = Sandbox()
        self._sandbox.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": self._strftime_now,
        }
        self._variables = {"bos_token": bos_token, "eos_token": eos_token, "tools": None, "documents": None}
        if len(source) > limits.template_source_bytes_max:
            raise _failure(f"it is longer than {limits.template_source_bytes_max} bytes")
        try:
            self._template = self._sandbox.compiled(source)
        except TemplateSyntaxError as error:
            raise _failure(f"line {error.lineno}: {error.message}") from error
        except Exception as error:
            raise _failure(_reason(error)) from error
        self._style = TemplateStyle(source, self._try_rendering)

    @property
    def family(self) -> str:
        """How the model writes calls and thoughts: see `toolcalls`."""
        return self._style.family

    def render(self, prompt: ChatPrompt) -> str:
        """The conversation as text, the tools in it that the model may call.

        A template that knows no tools gets them in its system message. `template_kwargs` is a JSON object of further
        variables; it cannot replace the template's own (`messages`, `bos_token`, …). Raises `RequestError`:
        `invalid_value` for such variables and where the template itself refuses the conversation (`raise_exception`:
        mostly that roles must alternate), `template_error` where it fails or takes more time or bytes than `limits`
        give it.
        """
        further = self._decoded(prompt.template_kwargs)
        with self._lock:
            variables = {
                **self._variables,
                **further,
                "messages": self._style.messages(prompt),
                "tools": self._style.tools(prompt),
                "add_generation_prompt": prompt.add_generation_prompt,
            }
            try:
                return self._rendered(variables)
            except _RaisedByTemplate as error:
                reason = _shortened(str(error))
                raise RequestError(
                    "invalid_value", f"the model's chat template refuses these messages: {reason}", "messages"
                ) from error
            except Exception as error:  # a template can raise anything that Python has
                raise _failure(_reason(error)) from error

    def _try_rendering(self, messages: list[dict[str, Any]]) -> str | None:
        variables = {**self._variables, "messages": messages, "add_generation_prompt": False}
        try:
            return self._rendered(variables)
        except Exception:  # noqa: BLE001 - a template can raise anything that Python has
            return None

    def _rendered(self, variables: dict[str, Any]) -> str:
        self._sandbox.meter = Meter()
        pieces: list[str] = []
        length = 0
        for piece in self._template.generate(variables):
            length += len(piece)
            if length > limits.template_output_bytes_max:
                break
            self._sandbox.meter.step()
            pieces.append(piece)
        text = "".join(pieces)
        if length > limits.template_output_bytes_max or len(text.encode()) > limits.template_output_bytes_max:
            raise LimitExceeded(f"it makes a prompt of over {limits.template_output_bytes_max} bytes")
        return text

    def _decoded(self, template_kwargs: bytes) -> dict[str, Any]:
        parameter = "chat_template_kwargs"
        try:
            variables = _KWARGS.decode(template_kwargs)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise RequestError("invalid_value", f"{parameter} is no JSON object: {error}", parameter) from error
        if taken := sorted(variables.keys() & (_OWN | self._sandbox.globals.keys())):
            message = f"{parameter} cannot set {', '.join(taken)}"
            raise RequestError("invalid_value", message, f"{parameter}.{taken[0]}")
        return variables

    def _strftime_now(self, format: str) -> str:
        if len(format) > STRFTIME_CHARS_MAX:
            raise LimitExceeded(f"it formats a time with over {STRFTIME_CHARS_MAX} characters")
        return self._now().strftime(format)


class _RaisedByTemplate(Exception):
    """What a template says with `raise_exception`."""


def _raise_exception(message: object) -> NoReturn:
    raise _RaisedByTemplate(message if isinstance(message, str) else "no reason given")


def _failure(reason: str) -> RequestError:
    return RequestError("template_error", f"the model's chat template does not work: {_shortened(reason)}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    return str(error) or type(error).__name__


def _shortened(reason: str) -> str:
    return reason if len(reason) <= REASON_CHARS_MAX else reason[:REASON_CHARS_MAX] + "…"
