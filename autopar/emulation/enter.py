"""Become an emulated host: ``python -m autopar.emulation.enter HOST COMMAND...``."""

from __future__ import annotations

import ctypes
import os
import socket
import sys

from autopar.emulation.quota import enter_group

NEW_HOST_NAME = 0x04000000
"""CLONE_NEWUTS of unshare(2)."""


def enter(host: str, command: list[str]) -> None:
    """Replace this process by a command on a host: its name, CPU group and network.

    Hosts need names of their own: torchrun tells the others the name of the one they meet on.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_HOST_NAME):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot give host {host} a name: {os.strerror(number)}")
    socket.sethostname(host)
    enter_group(host)
    os.execvp("ip", ["ip", "netns", "exec", host, *command])


if __name__ == "__main__":
    enter(sys.argv[1], sys.argv[2:])
