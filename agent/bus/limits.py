"""What a broker says it can do, held against what we promise. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Mapping

from agent.bus.types import Limits, LinkOptions

#: What MQTT 3.1.1 leaves out. Its brokers cannot tell, so these are said of every one of them.
OLD_PROTOCOL_WARNINGS = (
    "MQTT 3.1.1: a publish that the broker refuses looks like one that it took",
    "MQTT 3.1.1: messages never expire in the broker, and sessions only by its own setting",
    "MQTT 3.1.1: the broker bounds unacknowledged messages by its own setting, not by ours",
    "MQTT 3.1.1: the broker does not tell its size limit; a larger message breaks the connection",
)


def limits_of(
    protocol: str, said: Mapping[str, int], options: LinkOptions, *, session_present: bool, other_id: bool
) -> Limits:
    """Read the CONNACK (MQTT 5, section 3.2.2.3); what it does not say is at the protocol's default.

    Args:
        protocol: `5` or `3.1.1`.
        said: numeric properties by the names of the specification, without spaces.
        options: what we asked for.
        session_present: whether the broker knew our session.
        other_id: whether the broker gave us a client id of its own.
    """
    warnings = list(OLD_PROTOCOL_WARNINGS) if protocol != "5" else []
    if said.get("MaximumQoS", 2) < 1:
        warnings.append("the broker offers no QoS 1: a trigger can be lost without a word")
    if said.get("RetainAvailable", 1) == 0:
        warnings.append("the broker keeps no retained messages: presence is not seen by late comers")
    expiry = said.get("SessionExpiryInterval", options.session_expiry_seconds)
    if expiry < options.session_expiry_seconds:
        warnings.append(
            f"the broker keeps a session for {expiry} s instead of {options.session_expiry_seconds} s: "
            "triggers sent to an agent that is away for longer are lost"
        )
    if other_id:
        warnings.append("the broker assigned another client id: the session cannot be found again")
    packet = said.get("MaximumPacketSize")
    if packet is not None and packet < options.payload_limit_bytes:
        warnings.append(f"the broker takes packets of at most {packet} bytes: outcomes are cut to fit")
    return Limits(
        protocol=protocol,
        session_present=session_present,
        receive_maximum=said.get("ReceiveMaximum", 65535),
        maximum_packet_bytes=packet,
        warnings=tuple(warnings),
    )
