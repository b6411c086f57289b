"""File access in a thread of its own, which a dead disk may keep without holding up the loop or the process' end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def aside(call: Callable[[], T], *, seconds_max: float) -> T:
    """What `call` gives or raises. Raises `TimeoutError`; then it may still happen."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def set_answer(result: T | None, error: Exception | None) -> None:
        if answer.done():
            return  # nobody waits any more
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # pyright: ignore[reportArgumentType]  # without an error it is a T

    def carry_out() -> None:
        result, failure = None, None
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            failure = error
        with suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(set_answer, result, failure)

    threading.Thread(target=carry_out, name="keys", daemon=True).start()
    async with asyncio.timeout(seconds_max):
        return await answer
