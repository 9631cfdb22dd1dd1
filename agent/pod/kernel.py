"""System calls that Python has no name for, resolved once, so that using them looks nothing up.

Standard library only: the launcher imports this before it has anything to lose.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import socket

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
#: Bits of the capability sets (capabilities(7)).
CAPABILITIES = {"KILL": 5, "SETGID": 6, "SETUID": 7, "SYS_CHROOT": 18}
MAX_DESCRIPTORS = 3

#: (AUDIT_ARCH, number of setns) of every kind of system call that a machine of ours may know; x86 knows two.
_SETNS = (
    (0xC000003E, 308),  # x86-64
    (0x40000003, 346),  # i386
    (0xC00000B7, 268),  # aarch64
    (0x40000028, 375),  # arm
    (0xC00000F3, 268),  # riscv64
    (0x80000016, 339),  # s390x
    (0xC0000015, 350),  # ppc64le
)
_SECCOMP_MODE_FILTER = 2
_SECCOMP_ALLOW = 0x7FFF0000
_SECCOMP_EPERM = 0x00050001
_X32_BIT = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_setfsuid = _libc.setfsuid
_setfsgid = _libc.setfsgid
_capset = _libc.capset
_capget = _libc.capget


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _Instruction(ctypes.Structure):
    """struct sock_filter (linux/filter.h)."""

    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def prctl(option: int, value: int = 0, second: int = 0) -> int:
    """prctl(2). Raises OSError."""
    result: int = _prctl(option, value, second, 0, 0)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
    return result


def set_filesystem_ids(uid: int, gid: int) -> None:
    """setfsgid(2), then setfsuid(2). They report no error: a second call tells whether they took.

    Raises:
        PermissionError: they did not.
    """
    _setfsgid(gid)
    _setfsuid(uid)
    if _setfsgid(-1 & 0xFFFFFFFF) != gid or _setfsuid(-1 & 0xFFFFFFFF) != uid:
        raise PermissionError(errno.EPERM, "setfsuid")


def capabilities() -> tuple[int, int]:
    """(effective, permitted) of this thread, as bit masks."""
    header, data = _CapHeader(CAPABILITY_VERSION_3, 0), (_CapData * 2)()
    if _capget(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    return data[0].effective | data[1].effective << 32, data[0].permitted | data[1].permitted << 32


def missing_capabilities(*names: str) -> list[str]:
    """Those of `names` (keys of CAPABILITIES) that this thread does not hold."""
    _, permitted = capabilities()
    return [name for name in names if not permitted >> CAPABILITIES[name] & 1]


def limit_capabilities(mask: int) -> None:
    """Keep at most the capabilities in `mask`: effective and permitted; inheritable becomes empty. Raises OSError."""
    effective, permitted = capabilities()
    header, data = _CapHeader(CAPABILITY_VERSION_3, 0), (_CapData * 2)()
    for index in (0, 1):
        data[index].effective = (effective & mask) >> 32 * index & 0xFFFFFFFF
        data[index].permitted = (permitted & mask) >> 32 * index & 0xFFFFFFFF
    if _capset(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def limit_bounding_set(mask: int) -> None:
    """Drop from the bounding set what is not in `mask`. Raises OSError where SETPCAP is missing."""
    for number in range(64):
        try:
            held = prctl(PR_CAPBSET_READ, number)
        except OSError:
            return  # past the last capability of this kernel
        if held and not mask >> number & 1:
            prctl(PR_CAPBSET_DROP, number)


def deny_setns() -> None:
    """No setns(2), for this process and everything it starts, for good. NO_NEW_PRIVS must be set. Raises OSError.

    A command that was put into a container by chroot is still in the agent's mount namespace. With setns it could
    join a user namespace that the container made, be root there, and go round its root; the runtime's own filter
    forbids that too, where there is one.
    """
    load, equal, mask, answer = 0x20, 0x15, 0x54, 0x06  # of classic BPF (linux/bpf_common.h)
    code = [(load, 0, 0, 4)]  # seccomp_data.arch
    for index, (machine, number) in enumerate(_SETNS):
        allow = 4 * (len(_SETNS) - 1 - index)  # what is left of the table
        code += [(equal, 0, 3, machine), (load, 0, 0, 0), (mask, 0, 0, 0xFFFFFFFF ^ _X32_BIT)]
        code += [(equal, allow + 1, allow, number)]
    code += [(answer, 0, 0, _SECCOMP_ALLOW), (answer, 0, 0, _SECCOMP_EPERM)]
    instructions = (_Instruction * len(code))(*(_Instruction(*each) for each in code))
    program = _Program(len(code), instructions)
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def harden() -> None:
    """Not traceable, nothing gained by execve, nothing inherited, no setns. Call first of all, as it is inherited.

    Raises:
        OSError: the kernel does not do one of these.
    """
    os.umask(0o077)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    deny_setns()
    with contextlib.suppress(OSError):  # kernels before 4.3 have no ambient set
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    limit_capabilities(~0)


def send_descriptors(channel: int, data: bytes, descriptors: list[int]) -> None:
    """Send a packet with descriptors over the socket with number `channel`. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=channel)
    try:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
    finally:
        sock.detach()


def receive(sock: socket.socket, room_for_data: bytearray) -> tuple[bytes, list[int]]:
    """Receive a packet and at most three descriptors, close-on-exec from the start. Raises OSError.

    An empty packet is the end of file. One that was cut is dropped, with its descriptors closed.
    """
    room = array.array("i")
    length, controls, flags, _ = sock.recvmsg_into(
        [room_for_data], socket.CMSG_LEN(MAX_DESCRIPTORS * room.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in controls:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            room.frombytes(content[: len(content) - len(content) % room.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in room:
            os.close(descriptor)
        raise OSError(errno.EMSGSIZE, "the packet was cut")
    return bytes(memoryview(room_for_data)[:length]), list(room)
