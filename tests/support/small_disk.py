"""A daemon whose storage folder is a small disk of its own, which a test can fill."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.daemon import Daemon

OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


class SmallDisk(Daemon):
    """A daemon whose storage folder is a disk of its own, which only it sees."""

    def spawn(self, *arguments: str) -> None:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        mount = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'
        daemon = [sys.executable, "-P", "-m", "llmvisor", "--config", str(self.config_file), *arguments]
        with self.console_file.open("ab") as console:
            self.process = subprocess.Popen(
                [*OWN_MOUNTS, "sh", "-c", mount, str(data), *daemon],
                cwd=self.folder,
                env=self._env,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    @property
    def ballast(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.folder}/data/ballast")

    def fill(self) -> None:
        """Until the disk takes no more."""
        with suppress(OSError), self.ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 1024)


def has_own_mounts() -> bool:
    """Whether a process may have mounts that only it sees."""
    return subprocess.run([*OWN_MOUNTS, "true"], check=False, capture_output=True).returncode == 0
