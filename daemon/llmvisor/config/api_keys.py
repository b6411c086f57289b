"""`server.api_keys`: what the keys of the configuration are. The keys themselves stay out of it. Pure."""

from __future__ import annotations

import msgspec

from llmvisor import limits
from llmvisor.config.draft import Draft
from llmvisor.keys.key import ApiKey, configured_key, sha256_of

_PATH = ("server", "api_keys")
_COMMENT = "#"


def complete_keys(draft: Draft) -> None:
    """The keys that are named, hashed. An entry is never told: somebody may have put the key itself there."""
    setting, key_text = draft.settings.get(_PATH), draft.around.key_text
    if setting is None or key_text is None:
        return
    for number, entry in enumerate(msgspec.convert(setting.value, list[str]), start=1):
        try:
            held = key_text(entry, setting.folder)
            draft.api_keys += _keys(entry, held.text)
        except ValueError as error:
            draft.wrong(_PATH, f"entry {number} {error}")
            continue
        if held.warning is not None:
            draft.warn(_PATH, f"entry {number}: {held.warning}")


def _keys(entry: str, text: str) -> list[ApiKey]:
    """The keys of one entry, each on a line of its own. Raises `ValueError`."""
    lines = [line.strip() for line in text.splitlines()]
    texts = [line for line in lines if line and not line.startswith(_COMMENT)]
    if not texts:
        raise ValueError("holds no key")
    for one in texts:
        if not limits.key_chars_min <= len(one) <= limits.key_chars_max or not one.isprintable() or " " in one:
            raise ValueError(
                f"holds a key of {len(one)} characters, allowed: {limits.key_chars_min} to {limits.key_chars_max} "
                "without blanks"
            )
    name = entry.rpartition("/")[2][: limits.client_name_chars_max]
    if len(texts) == 1:
        return [configured_key(name, texts[0])]
    # By what they are, so that a key keeps its name when others come or go.
    return [configured_key(f"{name}:{sha256_of(one)[:8]}", one) for one in texts]
