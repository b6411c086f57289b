"""LangChain's ChatOpenAI against the front."""

from __future__ import annotations

from pathlib import Path

from langchain_openai import ChatOpenAI
from tests.support.fake_service import FakeService, Script
from tests.support.http_front import served


async def test_langchain_invokes_streams_and_batches(tmp_path: Path) -> None:
    """Each of its ways to ask gives the text, and usage where LangChain reads it."""
    async with served(tmp_path, FakeService(script=Script(by_prompt=True))) as front:
        chat = ChatOpenAI(
            base_url=f"{front.url}/v1",
            api_key="none",  # pyright: ignore[reportArgumentType]  # a plain string is taken as well
            model="light",
            temperature=0,
            max_retries=0,
        )
        async with chat.root_async_client:
            answer = await chat.ainvoke("a b")
            assert answer.text == "<user>ab<assistant>"
            assert answer.usage_metadata is not None
            assert answer.usage_metadata["total_tokens"] == 7
            chunks = [chunk async for chunk in chat.astream("a b")]
            assert "".join(chunk.text for chunk in chunks) == "<user>ab<assistant>"
            answers = await chat.abatch(["x", "y"])
            assert [one.text for one in answers] == ["<user>x<assistant>", "<user>y<assistant>"]
