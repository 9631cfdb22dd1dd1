"""Kubernetes' EnvVar: `variables` of a hook's call, `env` of a Function executor (core/v1).

What a variable says is checked here; who reads the Secrets and ConfigMaps it names is somebody else's business.
An action's own `env` is another thing (`agent.contract.actions.EnvVar`): there a value comes from a mounted file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from agent.contract.actions import EnvName, Finding, Strict

__all__ = ["SOURCES", "EnvVar", "KeyRef", "ValueFrom"]

#: Where a value may come from, as it is written (core/v1 EnvVarSource).
SOURCES = ("secretKeyRef", "configMapKeyRef", "fieldRef", "resourceFieldRef")


def _value(value: str) -> str:
    if "\0" in value:  # not shown: it may be a credential
        raise ValueError("there is a NUL character in it, which no environment has room for; remove it")
    return value


class KeyRef(Strict):
    """One key of a Secret or a ConfigMap in the namespace of whoever uses it. `optional`: it may be absent."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    key: Annotated[str, Field(min_length=1, max_length=253)]
    optional: bool = False


class ValueFrom(Strict):
    """Exactly one source of a value. `fieldRef` and `resourceFieldRef` mean the pod that the variable stands in."""

    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None
    field_ref: dict[str, Any] | None = None
    resource_field_ref: dict[str, Any] | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Exactly one source."""
        given = [name for name in SOURCES if written.get(name) is not None]
        if len(given) > 1:
            yield (), f"names {len(given)} sources ({', '.join(given)}); a value has one: keep one"
        elif not given and written.keys() <= {*SOURCES}:  # else the odd field is named
            yield (), f"names no source; give one of {', '.join(SOURCES)}"

    @property
    def source(self) -> str:
        """Which of SOURCES it is."""
        parts = (self.secret_key_ref, self.config_map_key_ref, self.field_ref, self.resource_field_ref)
        return next(name for name, part in zip(SOURCES, parts, strict=True) if part is not None)


class EnvVar(Strict):
    """A variable: a literal value (empty where neither is given, as in Kubernetes), or where to read it."""

    name: EnvName
    value: Annotated[str, AfterValidator(_value)] | None = Field(default=None, repr=False)
    value_from: ValueFrom | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """At most one of value and valueFrom."""
        if written.get("value") and written.get("valueFrom") is not None:
            yield ("valueFrom",), "stands beside a value; give one of them"

    @property
    def is_secret(self) -> bool:
        """Whether its value is read from a Secret."""
        return self.value_from is not None and self.value_from.secret_key_ref is not None

    def document(self) -> dict[str, Any]:
        """It as Kubernetes writes it, for a container's `env`."""
        return self.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
