"""The Kubernetes API, as the agent (its own pod) and the coordinator (pods, templates, Jobs) ask it.

The only room that knows kubernetes_asyncio, in one file (`vendor`), imported when a cluster is asked for. It does
addresses, TLS and logins; what is asked, when it is asked again and what a no means is said here.
"""

from agent.cluster.client import Cluster
from agent.cluster.resources import Resource

__all__ = ["Cluster", "Resource"]
