"""What a worker gives up before it reads a model: the way to the network, to other people's files, to other processes.

places.py      which files a worker needs, and for what
landlock.py    Linux: files, TCP, signals and abstract sockets (landlock(7)), by rules of the kernel
seccomp.py     Linux: system calls that no engine needs (seccomp(2)); the program is pure
privileges.py  Linux: no_new_privs, root's capabilities, how many processes there may be
seatbelt.py    macOS: a profile of sandbox(7)
confine.py     all of it, in order; and what is in force afterwards

It is applied while the process has one thread and has imported no engine: what comes later is held to it as well.
"""

from llmvisor_runtimes.confinement.confine import Wanted, confine

__all__ = ["Wanted", "confine"]
