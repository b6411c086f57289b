"""What every command is given."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from llmctl.client import Client
from llmctl.terminal import Terminal


class Session(NamedTuple):
    client: Client
    out: Terminal
    args: argparse.Namespace
    json: bool
