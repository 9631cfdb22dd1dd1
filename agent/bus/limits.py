"""What a broker says it can do, held against what we promise. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Mapping

from agent.bus.types import Limits, LinkOptions
from agent.contract.messages import MAX_OUTCOME_BYTES

#: What MQTT 3.1.1 leaves out. Its brokers cannot tell, so these are said of every one of them.
OLD_PROTOCOL_NOTES = (
    "MQTT 3.1.1: a publish that the broker refuses looks like one that it took",
    "MQTT 3.1.1: messages never expire in the broker, and sessions only by its own setting",
    "MQTT 3.1.1: the broker bounds unacknowledged messages by its own setting, not by ours",
    "MQTT 3.1.1: the broker does not tell its size limit; a larger message breaks the connection",
)
#: Measured with mosquitto 2.0.11: a message that it keeps to itself for our Maximum Packet Size keeps its place among
#: the unacknowledged ones until the next connection.
UNBOUNDED_NOTE = (
    "the broker takes larger packets than we do, and some brokers (mosquitto 2.0) hand out nothing more after a few "
    "dozen of these, until the next connection: limit packets there, as manifests/broker/mosquitto does"
)
#: What a packet has around its payload: topic, properties, lengths.
PACKET_ROOM_BYTES = 1024
#: mosquitto's own default; with less, a run waits for acknowledgements rather than for agents.
FEW_AT_ONCE = 20


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
    warnings = []
    if said.get("MaximumQoS", 2) < 1:
        warnings.append("the broker offers no QoS 1, by which nothing is lost: agents cannot connect")
    if said.get("RetainAvailable", 1) == 0:
        warnings.append("the broker keeps no retained messages, by which agents are found: they cannot connect")
    expiry = said.get("SessionExpiryInterval", options.session_expiry_seconds)
    if expiry < options.session_expiry_seconds:
        warnings.append(
            f"the broker keeps a session for {expiry} s instead of {options.session_expiry_seconds} s: "
            "triggers sent to an agent that is away for longer are lost"
        )
    if other_id:
        warnings.append("the broker assigned another client id: the session cannot be found again")
    if (at_once := said.get("ReceiveMaximum", 65535)) < FEW_AT_ONCE:
        warnings.append(
            f"the broker takes at most {at_once} unacknowledged messages at once: a run over many pods, and outcomes "
            "after an outage, leave it more slowly"
        )
    packet = said.get("MaximumPacketSize")
    if packet is not None and packet < MAX_OUTCOME_BYTES + PACKET_ROOM_BYTES:
        warnings.append(f"the broker takes packets of at most {packet} bytes: outcomes are cut to fit")
    return Limits(
        protocol=protocol,
        session_present=session_present,
        receive_maximum=said.get("ReceiveMaximum", 65535),
        maximum_packet_bytes=packet,
        warnings=tuple(warnings),
        notes=OLD_PROTOCOL_NOTES if protocol != "5" else _notes(packet, options),
    )


def _notes(packet: int | None, options: LinkOptions) -> tuple[str, ...]:
    return (UNBOUNDED_NOTE,) if packet is None or packet > options.packet_limit_bytes else ()
