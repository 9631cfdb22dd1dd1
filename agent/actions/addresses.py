"""Which addresses a connection may go to: judged at the socket, so names, rebinding and redirects are covered.

Link-local and metadata addresses hand out the node's or the cloud account's credentials to whoever asks. They are
refused unless a policy rule names them - also where an IPv6 address only carries them (mapped, NAT64, 6to4, Teredo,
ISATAP), since a gateway unwraps what `ipaddress.is_link_local` takes for something global (FACTS: HTTP actions and
addresses). Pure: no name is looked up here.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

#: Always refused unless a rule names them -> what they are.
SPECIAL: tuple[tuple[Network, str], ...] = (
    (IPv4Network("169.254.0.0/16"), "a link-local address, where clouds keep their metadata (RFC 3927)"),
    (IPv6Network("fe80::/10"), "a link-local address (RFC 4291, section 2.5.6)"),
    (IPv6Network("fd00:ec2::/32"), "an address of AWS's instance metadata and pod identity"),
    (IPv6Network("fd20:ce::254/128"), "Google Cloud's metadata address"),
    (IPv6Network("fd00:42::42/128"), "Scaleway's metadata address"),
    (IPv4Network("100.100.100.200/32"), "Alibaba Cloud's metadata address"),
    (IPv4Network("168.63.129.16/32"), "Azure's host address"),
    (IPv4Network("192.0.0.192/32"), "Oracle Cloud's metadata address"),
)

#: 0.0.0.0 and :: are this very host to connect().
LOOPBACK: tuple[Network, ...] = (
    IPv4Network("127.0.0.0/8"),
    IPv4Network("0.0.0.0/8"),
    IPv6Network("::1/128"),
    IPv6Network("::/128"),
)

_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291, section 2.5.5.2: the same host as the IPv4 address
#: Prefixes behind which the last 32 bits are an IPv4 address.
_LAST_32 = (
    IPv6Network("::/96"),  # IPv4-compatible, RFC 4291 section 2.5.5.1
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated, RFC 2765
    IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
)
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215: any of RFC 6052's forms below it
_6TO4 = IPv6Network("2002::/16")  # RFC 3056
_TEREDO = IPv6Network("2001::/32")  # RFC 4380
#: Interface identifiers of ISATAP (RFC 5214, section 6.1), without their universal bit.
_ISATAP = 0x00005EFE


#: How a decision is named where the agent has no policy.
NO_POLICY = "no policy"


class AddressRefusedError(OSError):
    """No socket was made for an address; the text says why. An OSError, so that the next address is tried."""

    def __init__(self, why: str, rule: str = NO_POLICY) -> None:
        super().__init__(why)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Reach:
    """Where one action may connect.

    `networks` are allowed by name; of them, only one that lies within a special block opens (its part of) that block:
    0.0.0.0/0 does not. `others`: whatever is neither special nor (unless `loopback`) this very host, too. `rule` is
    the policy's rule that says so; empty without a policy. `special` is SPECIAL but in tests.
    """

    networks: tuple[Network, ...] = ()
    others: bool = True
    loopback: bool = True
    rule: str = ""
    special: tuple[tuple[Network, str], ...] = SPECIAL

    def refusal(self, text: str) -> str | None:
        """Why no connection may go to this address (as `getaddrinfo` writes it); None when it may."""
        try:
            address = canonical(ipaddress.ip_address(text.partition("%")[0]))  # %: the scope of a link-local address
        except ValueError:
            return f"{text[:60]!r} is no IP address"
        carried = forms(address)
        for form in carried:
            for block, what in self.special:
                if form in block and not self._names(form, block):
                    carrier = "" if form == address else f", carried by {address},"
                    return (
                        f"{form}{carrier} is {what}; it is refused unless a rule of the agent's policy names it "
                        f"({_by(self.rule)})"
                    )
        if any(address in network for network in self.networks):
            return None
        if not self.others:
            return f"{address} is not among the addresses that {self.rule} allows; add it to its hosts if that is meant"
        if not self.loopback and any(form in network for form in carried for network in LOOPBACK):
            return (
                f"{address} is this pod itself, and {self.rule} allows the name to lead elsewhere only; "
                "add pod to its hosts if that is meant"
            )
        return None

    @property
    def named(self) -> str:
        """Which rule says so, for the outcome and the audit."""
        return self.rule or NO_POLICY

    def _names(self, form: Address, block: Network) -> bool:
        return any(form in network and _within(network, block) for network in self.networks)


def _by(rule: str) -> str:
    return f"{rule} does not" if rule else "there is no policy"


def _within(network: Network, block: Network) -> bool:
    if isinstance(network, IPv4Network) and isinstance(block, IPv4Network):
        return network.subnet_of(block)
    return isinstance(network, IPv6Network) and isinstance(block, IPv6Network) and network.subnet_of(block)


def canonical(address: Address) -> Address:
    """The address itself; an IPv4-mapped one as the IPv4 address that the kernel connects to."""
    if isinstance(address, IPv6Address) and address in _MAPPED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def forms(address: Address) -> tuple[Address, ...]:
    """The address and every IPv4 address that it may carry to a gateway; all of them have to be allowed."""
    address = canonical(address)
    if isinstance(address, IPv4Address):
        return (address,)
    bits = int(address)
    carried: list[int] = []
    if any(address in prefix for prefix in _LAST_32) and bits > 1:  # :: and ::1 carry nothing
        carried.append(bits)
    if address in _LOCAL_NAT64:
        # RFC 6052, section 2.2: after a prefix of 48, 56, 64 or 96 bits; bits 64 to 71 are skipped. Which one the
        # network uses is not to be known here.
        below = bits & ((1 << 80) - 1)
        carried.append((below >> 64) << 16 | (below >> 40) & 0xFFFF)
        carried.append((below >> 64 & 0xFF) << 24 | (below >> 32) & 0xFFFFFF)
        carried += [below >> 24, bits]
    if address in _6TO4:
        carried.append(bits >> 80)
    if address in _TEREDO:
        carried += [bits >> 64, ~bits]
    if (bits >> 32) & 0xFFFFFFFF & ~0x03000000 == _ISATAP:
        carried.append(bits)
    return (address, *dict.fromkeys(IPv4Address(each & 0xFFFFFFFF) for each in carried))


def meant(host: str) -> Address | None:
    """The address that resolvers take `host` for without asking anybody: also `2852039166` and `0xa9fea9fe`.

    None for a name.
    """
    try:
        return canonical(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError, ValueError):
        return None


def refused(host: str, reasons: list[str]) -> str:
    """The sentence for an action of which no address may be connected to."""
    shown = "; ".join(dict.fromkeys(reasons[:4]))
    return f"no connection is made to {host}: {shown}"
