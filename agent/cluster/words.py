"""How sentences speak of whoever asks: an agent is set up by variables, a command by flags."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Of what a server says, so much stands in a sentence of ours.
EXCERPT_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Words:
    """The parts of a sentence that depend on who asks.

    `wanted` opens the sentence that says why a cluster was needed at all, `otherwise` ends one with the way to do
    without, `unreadable` what to do where a pod's token belongs to another group, `kubeconfig` how to name one;
    `by_hand` is the kubectl command that shows whether a login works, `again` what to do after it; `network` is where
    the way to the API server begins.
    """

    who: str
    wanted: str
    otherwise: str
    unreadable: str
    kubeconfig: str
    by_hand: str
    again: str
    network: str


#: For whoever runs hooks: the flags are those of `podhook run`.
COORDINATOR = Words(
    who="podhook",
    wanted="a cluster is asked for, and ",
    otherwise="do without a cluster: --source presence",
    unreadable="run podhook as a member of it (supplementalGroups)",
    kubeconfig="name one with --kubeconfig, set KUBECONFIG, or do without a cluster: --source presence",
    by_hand="kubectl get pods",
    again="try again",
    network="the network",
)


def public(text: str) -> str:
    """`text` without the user and password of any URL in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def excerpt(text: str, characters: int = EXCERPT_CHARACTERS) -> str:
    """`text` on one line, with nothing invisible, at most so many characters of it."""
    return "".join(c if c.isprintable() else " " for c in text[:characters])
