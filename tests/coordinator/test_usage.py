"""From which namespaces a template may be used: KubeStash's rule, with the labels that the cluster tells."""

import pytest

from agent.contract.errors import InvalidHook
from agent.contract.templates import Hook, HookSpec
from agent.coordinator.usage import check_usage

LABELS = {"shop": {"team": "a", "tier": "db"}, "lab": {"team": "b"}, "bare": {}}


def of(selector, home="shop"):
    policy = {"allowedNamespaces": {"from": "Selector", "selector": selector}}
    return Hook("h", HookSpec.model_validate({"usagePolicy": policy}), home)


@pytest.mark.parametrize(
    ("selector", "asked", "allowed"),
    [
        ({"matchLabels": {"team": "a"}}, {"shop"}, True),
        ({"matchLabels": {"team": "b"}}, {"lab"}, True),
        ({"matchLabels": {"team": "b"}}, {"shop"}, False),  # not even at home: the selector decides (theirs)
        ({"matchLabels": {"team": "a"}}, {"shop", "lab"}, False),
        ({"matchLabels": {"team": "a"}}, {"unknown"}, False),
        ({}, {"shop", "lab", "bare"}, True),
        ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}, {"shop", "lab"}, True),
        ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}, {"bare"}, False),
        ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}, {"lab", "bare"}, True),
        ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}, {"shop"}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, {"shop"}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, {"lab"}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, {"lab"}, True),
        ({"matchLabels": {"team": "a"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}, {"shop"}, False),
    ],
)
def test_the_namespaces_labels_decide(selector, asked, allowed):
    if allowed:
        check_usage(of(selector), frozenset(asked), LABELS)
    else:
        with pytest.raises(InvalidHook, match="label them, or change the template"):
            check_usage(of(selector), frozenset(asked), LABELS)


@pytest.mark.parametrize(
    ("asked", "labels", "says"),
    [(frozenset({"shop"}), None, "--source kubernetes"), (None, LABELS, "name them")],
)
def test_where_labels_are_not_known_nothing_is_allowed(asked, labels, says):
    with pytest.raises(InvalidHook, match=says):
        check_usage(of({"matchLabels": {"team": "a"}}), asked, labels)


@pytest.mark.parametrize(
    ("operator", "values", "says"), [("In", [], "needs at least one value"), ("Exists", ["a"], "takes no values")]
)
def test_an_expression_that_kubernetes_would_refuse_is_refused(operator, values, says):
    with pytest.raises(ValueError, match=says):
        of({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]})
