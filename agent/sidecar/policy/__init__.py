"""The local policy: what the operator of a pod lets triggers do there, whoever signed them.

`document` reads it, `judge` says yes or no and which rule says so, `catalogue` turns a name and parameters into an
action, `watch` keeps the last good one. All but `watch` is pure.
"""

from agent.sidecar.policy.document import Policy, load_policy
from agent.sidecar.policy.judge import Asked, Decision, Request, judge
from agent.sidecar.policy.watch import PolicyFile

__all__ = ["Asked", "Decision", "Policy", "PolicyFile", "Request", "judge", "load_policy"]
