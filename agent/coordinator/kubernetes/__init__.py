"""What hooks want to know of a cluster: which pods, which templates, whose labels, which values.

Questions to an `agent.cluster.Cluster`; the answers are values of ours. Which rights they need: docs/kubernetes.md.
"""

from agent.coordinator.kubernetes.annotations import list_annotated_pods
from agent.coordinator.kubernetes.namespaces import namespace_labels
from agent.coordinator.kubernetes.pods import list_pods
from agent.coordinator.kubernetes.templates import read_function, read_template
from agent.coordinator.kubernetes.variables import read_variables

__all__ = [
    "list_annotated_pods",
    "list_pods",
    "namespace_labels",
    "read_function",
    "read_template",
    "read_variables",
]
