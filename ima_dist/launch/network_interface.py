"""Network interfaces of this machine and their IPv4 addresses. Imports neither Ray nor torch."""

import os
import socket

import psutil

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """Name of the interface that has the IPv4 ``address``, or None."""
    return next((name for name, own in _addresses() if own == address), None)


def addresses() -> dict[str, str]:
    """The first IPv4 address of every interface that has one."""
    return dict(reversed(_addresses()))


def name_interface(address: str) -> None:
    """Let gloo and NCCL use the interface that has ``address``, in this process, unless the user has chosen one.

    By default gloo takes the interface that the host name resolves to. On many systems that is the loopback
    interface, which workers on other nodes cannot reach.
    """
    name = interface_of(address)
    if name is not None:
        for variable in _VARIABLES:
            os.environ.setdefault(variable, name)


def _addresses() -> list[tuple[str, str]]:
    found = psutil.net_if_addrs().items()
    return [(name, entry.address) for name, entries in found for entry in entries if entry.family == socket.AF_INET]
