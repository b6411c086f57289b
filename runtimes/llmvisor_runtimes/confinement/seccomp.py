"""A seccomp filter (seccomp(2)) of what no engine needs: the network, other processes, the kernel's administration.

No process leaves the worker's group either, so that all of them end with it.

It refuses and never kills: a library that tries, and does without, goes on. What would change a file's mode, owner,
times or attributes, which Landlock does not hold, does nothing and says that it has: libraries that copy files take a
refusal for an error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_SET_MODE_FILTER = 1
_ALL_THREADS, _KEEP_SPECULATION = 1 << 0, 1 << 2
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_X32 = 0x40000000
_AF_UNIX = 1
_SOCK_STREAM, _TYPE_BITS = 1, 0xF
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID and NET."""

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: `struct sock_filter`."""


class _Machine:
    """The kernel's numbers: `refused` are calls that fail, `unchanged` those that do nothing."""

    def __init__(
        self,
        *,
        audit: int,
        seccomp: int,
        socket: int,
        socketpair: int,
        clone: int,
        prlimit: int,
        refused: dict[str, int],
        unchanged: dict[str, int],
    ) -> None:
        self.audit, self.seccomp, self.clone, self.prlimit = audit, seccomp, clone, prlimit
        self.socket, self.socketpair = socket, socketpair
        self.refused, self.unchanged = refused, unchanged


_NEWER = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "process_madvise": 440,
    "mount_setattr": 442,
}  # fmt: skip
"""With io_uring a socket could be had without socket(2)."""
_NEWER_UNCHANGED = {"fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "file_setattr": 469}
_CLONE3 = 435
"""Its flags are in memory, out of a filter's sight; without it the C library takes clone(2)."""

MACHINES = {
    "x86_64": _Machine(audit=0xC000003E, seccomp=317, socket=41, socketpair=53, clone=56, prlimit=302, refused={
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "request_key": 249, "keyctl": 250, "mount": 165,
        "umount2": 166, "pivot_root": 155, "chroot": 161, "setns": 308, "unshare": 272, "init_module": 175,
        "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "reboot": 169,
        "swapon": 167, "swapoff": 168, "acct": 163, "quotactl": 179, "syslog": 103, "settimeofday": 164,
        "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305, "sethostname": 170, "setdomainname": 171,
        "setpgid": 109, "setsid": 112, "truncate": 76,
        "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220,
        "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241,
        "iopl": 172, "ioperm": 173, "modify_ldt": 154, "open_by_handle_at": 304, "fanotify_init": 300, **_NEWER,
    }, unchanged={
        "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "fchmodat": 268,
        "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188, "lsetxattr": 189,
        "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, **_NEWER_UNCHANGED,
    }),
    "aarch64": _Machine(audit=0xC00000B7, seccomp=277, socket=198, socketpair=199, clone=220, prlimit=261, refused={
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "add_key": 217, "request_key": 218, "keyctl": 219, "mount": 40,
        "umount2": 39, "pivot_root": 41, "chroot": 51, "setns": 268, "unshare": 97, "init_module": 105,
        "finit_module": 273, "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294, "reboot": 142,
        "swapon": 224, "swapoff": 225, "acct": 89, "quotactl": 60, "syslog": 116, "settimeofday": 170,
        "clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266, "sethostname": 161, "setdomainname": 162,
        "open_by_handle_at": 265, "fanotify_init": 262, "setpgid": 154, "setsid": 157, "truncate": 45,
        "shmget": 194, "shmat": 196, "shmctl": 195, "semget": 190, "semop": 193, "semctl": 191, "semtimedop": 192,
        "msgget": 186, "msgsnd": 189, "msgrcv": 188, "msgctl": 187, "mq_open": 180, "mq_unlink": 181, **_NEWER,
    }, unchanged={
        "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88, "setxattr": 5, "lsetxattr": 6,
        "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16, **_NEWER_UNCHANGED,
    }),
}  # fmt: skip


def program(machine: str, *, unix_sockets: bool) -> list[Instruction]:
    """The filter for this machine; `unix_sockets`: whether socket(2) gives those, which drivers of GPUs ask for."""
    known = MACHINES[machine]
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, known.audit),
        _refuse(errno.ENOSYS),  # 32-bit calls have other numbers
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == "x86_64":
        lines += [(_AT_LEAST, 0, 1, _X32), _refuse(errno.ENOSYS)]
    for number in sorted(known.refused.values()):
        lines += [(_EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    for number in sorted(known.unchanged.values()):
        lines += [(_EQUAL, 0, 1, number), _refuse(0)]
    # Its own limits are 0's: with another process's, such as that of CPU time, a worker could end its daemon.
    lines += [(_EQUAL, 0, 4, known.prlimit), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
    lines += [(_EQUAL, 1, 0, 0), _refuse(errno.EPERM), _return(_ALLOW)]
    lines += [(_EQUAL, 0, 1, _CLONE3), _refuse(errno.ENOSYS)]
    lines += [(_EQUAL, 0, 4, known.clone), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
    lines += [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), _refuse(errno.EPERM), _return(_ALLOW)]
    # A datagram socket, of a pair too, sends to whatever path it likes.
    lines += [(_EQUAL, 0, 8, known.socketpair), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
    lines += [(_EQUAL, 1, 0, _AF_UNIX), _refuse(errno.EAFNOSUPPORT)]
    lines += [(_LOAD, 0, 0, _SECOND_ARGUMENT_AT), (_AND, 0, 0, _TYPE_BITS)]
    lines += [(_EQUAL, 1, 0, _SOCK_STREAM), _refuse(errno.EAFNOSUPPORT), _return(_ALLOW)]
    lines += [(_EQUAL, 0, 4, known.socket), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
    lines += [(_EQUAL, 1, 0, _AF_UNIX if unix_sockets else _X32), _refuse(errno.EAFNOSUPPORT)]
    lines += [_return(_ALLOW), _return(_ALLOW)]
    return lines


def install(*, unix_sockets: bool) -> None:
    """Hold every thread of this process and its children to the filter. Needs no_new_privs. Raises OSError."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    lines = program(machine, unix_sockets=unix_sockets)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    # `struct sock_fprog`: a count, padded to a pointer's alignment.
    head = struct.pack("@HP", len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_long(MACHINES[machine].seccomp)
    for flags in (_ALL_THREADS | _KEEP_SPECULATION, _ALL_THREADS, 0):
        if libc.syscall(number, ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(flags), head) == 0:
            return
        if ctypes.get_errno() != errno.EINVAL:  # an older kernel knows fewer flags
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _return(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _refuse(error: int) -> Instruction:
    return _return(_REFUSE | error)
