"""From which namespaces a template may be used (SEMANTICS: spec.usagePolicy). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agent.contract.errors import InvalidHook, Problem
from agent.contract.templates import Hook

_PATH = "spec.usagePolicy"


def asks_labels(hook: Hook) -> bool:
    """Whether the labels of namespaces decide where this template may be used."""
    return hook.namespace is not None and hook.spec.usage_policy.allowed_namespaces.from_ == "Selector"


def check_usage(
    hook: Hook, namespaces: frozenset[str] | None, labels: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """A template that says in which namespaces it may be used is believed.

    Args:
        hook: without a namespace of its own (a bare document) it may be used anywhere.
        namespaces: where it shall run; None is all of them.
        labels: those of each namespace, where the cluster was asked for them.

    Raises:
        InvalidHook: it may not be used in one of them, or that cannot be known.
    """
    policy = hook.spec.usage_policy.allowed_namespaces
    home = hook.namespace
    if home is None or policy.from_ == "All":
        return
    asked = "all namespaces" if namespaces is None else ", ".join(sorted(namespaces))
    if policy.from_ == "Same":
        if namespaces == frozenset({home}):
            return
        raise _refused(
            f"the template belongs to namespace {home!r} and may be used only there (from: Same), not in {asked}; "
            f"run it with --namespace {home}, or write from: All"
        )
    if labels is None or namespaces is None:
        raise _refused(
            "from: Selector needs the labels of namespaces, which only the cluster knows"
            + (" (all namespaces were asked for: name them)" if namespaces is None else "")
            + "; run it with --source kubernetes and --namespace, or write Same or All"
        )
    assert policy.selector is not None  # the model sees to that
    wrong = sorted(each for each in namespaces if not policy.selector.matches(labels.get(each, {})))
    if wrong:
        raise _refused(
            f"the template belongs to namespace {home!r} and may be used only where the namespace's labels match its "
            f"selector, and those of {', '.join(wrong)} do not; label them, or change the template"
        )


def _refused(text: str) -> InvalidHook:
    return InvalidHook([Problem(_PATH, text)])
