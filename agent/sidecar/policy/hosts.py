"""The hosts of a rule: the pod itself, exact names, `*.suffix`, addresses and CIDRs."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from agent.actions.addresses import LOOPBACK, Address, Network, Reach, canonical, meant

#: How a rule names the pod itself: an action without a host, the pod's own address, and loopback.
POD = "pod"
_LOCALHOST = "localhost"
_NAME = re.compile(r"(?=.{1,253}\Z)(\*\.)?[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_MAPPED_BITS = 96


def check_host(text: str) -> str:
    """One entry of `hosts`, as it is compared. Raises ValueError for what is none."""
    lowered = text.lower().removesuffix(".")
    if "%" in text:
        raise ValueError("has a % in it; write the address without its scope")
    if "/" in text:
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            raise ValueError(f"is not a CIDR: {str(error)[:120]}") from error
        return lowered
    if meant(lowered) is not None:
        try:
            ipaddress.ip_address(lowered)
        except ValueError as error:
            raise ValueError(f"is an address in a short or numeric form; write {meant(lowered)}") from error
        return lowered
    if not _NAME.fullmatch(lowered):
        raise ValueError(
            "is not a host; write pod, a name (names beyond ASCII as xn--...), *.SUFFIX, an address or a CIDR"
        )
    return lowered


@dataclass(frozen=True, slots=True)
class Aim:
    """Where an action wants to go: `name` is empty for the pod, `address` what it is without a look-up.

    `here` is the pod's own address, None where that is a name or not known.
    """

    name: str
    address: Address | None
    here: Address | None

    @classmethod
    def at(cls, host: str, pod_address: str) -> Aim:
        """Make it from an action's host and PODHOOK_POD_IP."""
        name = host.lower().removesuffix(".")
        return cls(name, meant(name) if name else None, meant(pod_address))


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts of one rule, ready to be compared."""

    pod: bool
    names: frozenset[str]
    suffixes: tuple[str, ...]
    networks: tuple[Network, ...]

    @classmethod
    def just(cls, host: str) -> Hosts:
        """The one host of an action that the policy's author wrote; empty and localhost are the pod."""
        name = host.lower().removesuffix(".")
        address = meant(name) if name else None
        pod = not name or name == _LOCALHOST
        networks = () if address is None else (ipaddress.ip_network(address),)
        return cls(pod, frozenset() if pod or networks else frozenset({name}), (), networks)

    @classmethod
    def of(cls, entries: Iterable[str]) -> Hosts:
        """Make it from checked entries."""
        pod, names, suffixes, networks = False, set(), [], []
        for entry in entries:
            if entry == POD:
                pod = True
            elif entry.startswith("*."):
                suffixes.append(entry[1:])
            elif "/" in entry or meant(entry) is not None:
                networks.append(_network(entry))
            else:
                names.add(entry)
        return cls(pod, frozenset(names), tuple(suffixes), tuple(networks))

    def reach(self, aim: Aim, rule: str) -> Reach | None:
        """Where an action may connect by this rule; None when the rule has no such host.

        A name that is allowed may lead anywhere but to special addresses and back to this pod; an address only
        to where the rule's addresses are.
        """
        name, address, here = aim.name, aim.address, aim.here
        of_pod = _of_pod(here) if self.pod else ()
        if not name or name == _LOCALHOST or _is_pod(address, here):
            if self.pod:  # whoever set PODHOOK_POD_IP to a name said where that leads
                return Reach(of_pod + self.networks, others=not name and here is None, loopback=True, rule=rule)
            if not name:  # the pod's address may be listed as an address
                address = here
        if address is not None:
            listed = any(address in network for network in self.networks)
            return Reach(self.networks, others=False, rule=rule) if listed else None
        if name and (name in self.names or any(name.endswith(suffix) for suffix in self.suffixes)):
            loopback = name == _LOCALHOST
            return Reach(of_pod + self.networks, others=True, loopback=loopback, rule=rule)
        return None


def _is_pod(address: Address | None, here: Address | None) -> bool:
    return address is not None and (address == here or any(address in network for network in LOOPBACK))


def _of_pod(here: Address | None) -> tuple[Network, ...]:
    return LOOPBACK if here is None else (ipaddress.ip_network(here), *LOOPBACK)


def _network(entry: str) -> Network:
    network = ipaddress.ip_network(entry)
    first = canonical(network.network_address)
    if first != network.network_address and network.prefixlen >= _MAPPED_BITS:  # ::ffff:10.0.0.0/104 is 10.0.0.0/8
        return ipaddress.ip_network((str(first), network.prefixlen - _MAPPED_BITS))
    return network
