"""The file of the keys that the daemon has made: `keys.json`, for its owner's eyes only, replaced as a whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from llmvisor import limits
from llmvisor.errors import StoreUnavailable
from llmvisor.fetch.staging import sync_folder
from llmvisor.keys.key import ApiKey

NAME = "keys.json"
_VERSION = 1


class KeyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in the file."""

    version: int = _VERSION
    asked: bool = False
    """A key is asked for, also where none is left: to revoke a key never opens the port."""
    keys: list[ApiKey] = []


class KeyFile:
    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def read(self) -> KeyList:
        """Raises `StoreUnavailable` for a file that cannot be read or understood; none at all is an empty list."""
        try:
            with self.path.open("rb") as file:
                data = file.read(limits.keys_file_bytes_max + 1)
        except (FileNotFoundError, NotADirectoryError):
            return KeyList()
        except OSError as error:
            raise StoreUnavailable(f"the API keys in {self.path} cannot be read: {error.strerror or error}") from error
        if len(data) > limits.keys_file_bytes_max:
            raise StoreUnavailable(f"the API keys in {self.path} are over {limits.keys_file_bytes_max} bytes")
        try:
            found = msgspec.json.decode(data, type=KeyList)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise StoreUnavailable(
                f"the API keys in {self.path} make no sense: {error}",
                hint="mend the file, or remove it and add new keys",
            ) from error
        if found.version != _VERSION:
            raise StoreUnavailable(f"the API keys in {self.path} were written by another version of llmvisor")
        return found

    def write(self, keys: KeyList) -> None:
        """On the disk once this returns; otherwise the file is what it was. Raises `StoreUnavailable`."""
        fresh = self.path.with_name(f".{NAME}.new")  # one name, so that broken attempts do not pile up
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                fresh.unlink()
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            raise StoreUnavailable(f"{self.path} cannot be written: {error.strerror or error}") from error


def has_keys(folder: str) -> bool:
    """Whether keys were made there; what cannot be read counts as keys, which are asked for then."""
    try:
        found = KeyFile(Path(folder)).read()
    except StoreUnavailable:
        return True
    return found.asked
