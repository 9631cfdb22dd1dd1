"""Which container and port a hook means; refusals are read by people, so they are compared word for word."""

from __future__ import annotations

import pytest

from agent.contract.errors import TEMPORARY, ErrorCode, Refusal
from agent.pod.containers import Containers
from agent.pod.identity import parse_description
from agent.pod.supervisor import NO_LAUNCHER

POD = "shop/db-0"
DESCRIBED = parse_description(
    '{"containers": [{"name": "mysql", "ports": [{"containerPort": 33060}, {"name": "db", "containerPort": 3306},'
    ' {"name": "admin", "containerPort": 33062}]}, {"name": "metrics"}]}'
)
NOTHING = parse_description("{}")


def containers(description=DESCRIBED, own="mysql"):
    """The containers of an agent without a launcher that stands alone."""
    return Containers(description, own, POD, why_not=NO_LAUNCHER, alone=True)


def refusal(call, *arguments) -> tuple[ErrorCode, str]:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize(
    ("description", "own", "names"),
    [
        (DESCRIBED, "mysql", ["mysql", "metrics"]),
        (DESCRIBED, "agent", ["mysql", "metrics", "agent"]),
        (NOTHING, "agent", ["agent"]),
    ],
)
def test_the_names_are_the_manifests_and_the_agents_own(description, own, names):
    assert containers(description, own).names == names


@pytest.mark.parametrize(
    ("description", "own", "wanted", "name"),
    [
        (DESCRIBED, "mysql", "mysql", "mysql"),
        (DESCRIBED, "mysql", "", "mysql"),
        (DESCRIBED, "metrics", "metrics", "metrics"),
        (DESCRIBED, "agent", "agent", "agent"),
        (NOTHING, "agent", "", "agent"),
    ],
)
def test_a_command_runs_in_the_container_it_names_or_in_the_first(description, own, wanted, name):
    assert containers(description, own).for_exec(wanted) == name


def test_an_unknown_container_is_refused_with_the_names_there_are():
    assert refusal(containers().for_exec, "mysq") == (
        ErrorCode.UNKNOWN_CONTAINER,
        "container 'mysq' is not in pod shop/db-0 (has: mysql, metrics); set containerName to one of them",
    )


@pytest.mark.parametrize("wanted", ["mysql", ""])
def test_a_container_that_is_not_the_agents_own_is_refused(wanted):
    assert refusal(containers(own="agent").for_exec, wanted) == (
        ErrorCode.CONTAINER_NOT_ENTERABLE,
        (
            "container 'mysql' of pod shop/db-0 is not the agent's own ('agent'), and commands cannot run there: "
            f"{NO_LAUNCHER}; mend that, or name 'agent' in containerName"
        ),
    )


def entering(*running: str, description=NOTHING):
    """The containers of an agent that has a launcher."""
    return Containers(description, "agent", POD, running, why_not="")


@pytest.mark.parametrize(
    ("description", "running", "wanted", "name"),
    [
        (NOTHING, ["mysql"], "", "mysql"),
        (NOTHING, ["mysql"], "agent", "agent"),
        (NOTHING, ["metrics", "mysql"], "mysql", "mysql"),
        (DESCRIBED, ["metrics", "mysql"], "", "mysql"),
    ],
)
def test_with_a_launcher_a_command_runs_in_a_sibling(description, running, wanted, name):
    assert entering(*running, description=description).for_exec(wanted) == name


def test_without_a_description_two_siblings_are_a_choice_that_is_not_made_for_anybody():
    assert refusal(entering("mysql", "metrics").for_exec, "") == (
        ErrorCode.UNKNOWN_CONTAINER,
        (
            "the hook names no container, and the agent does not know which one of pod shop/db-0 is the first (there "
            "are metrics, mysql); set containerName to one of them, or give the agent a pod description "
            "(PODHOOK_POD_FILE, PODHOOK_KUBERNETES)"
        ),
    )


def test_the_agents_own_container_is_never_the_first_though_it_stands_first_in_the_manifest():
    described = parse_description('{"containers": [{"name": "agent"}, {"name": "mysql"}]}')
    assert entering("mysql", description=described).for_exec("") == "mysql"


@pytest.mark.parametrize(("wanted", "which"), [("mysql", "container 'mysql'"), ("", "the first container")])
def test_a_sidecar_that_cannot_enter_says_why_and_never_takes_its_own_container_instead(wanted, which):
    blind = Containers(NOTHING, "agent", POD, why_not="the pod is closed: open it")
    assert refusal(blind.for_exec, wanted) == (
        ErrorCode.CONTAINER_NOT_ENTERABLE,
        (
            f"{which} of pod shop/db-0 is not the agent's own ('agent'), and commands cannot run there: the pod is "
            "closed: open it; mend that, or name 'agent' in containerName"
        ),
    )
    assert blind.for_exec("agent") == "agent"


def test_a_sibling_that_is_not_running_is_refused():
    assert refusal(entering("metrics", description=DESCRIBED).for_exec, "") == (
        ErrorCode.CONTAINER_NOT_ENTERABLE,
        "container 'mysql' of pod shop/db-0 is not running now (running: metrics); try again when it is",
    )


@pytest.mark.parametrize(
    ("wanted", "container", "number"),
    [(8080, "", 8080), (8080, "whatever", 8080), ("db", "mysql", 3306), ("admin", "mysql", 33062)],
)
def test_a_port_is_a_number_or_a_name_of_that_containers(wanted, container, number):
    assert containers().port(wanted, container) == number


@pytest.mark.parametrize(
    ("wanted", "container", "own", "code", "message"),
    [
        (
            "http",
            "mysql",
            "mysql",
            ErrorCode.UNKNOWN_PORT,
            "container 'mysql' of pod shop/db-0 has no port named 'http' (has: db, admin); use one of them or a number",
        ),
        (
            "db",
            "metrics",
            "mysql",
            ErrorCode.UNKNOWN_PORT,
            "container 'metrics' of pod shop/db-0 has no port named 'db' (has: none); use one of them or a number",
        ),
        (
            "db",
            "mysq",
            "mysql",
            ErrorCode.UNKNOWN_CONTAINER,
            "container 'mysq' is not in pod shop/db-0 (has: mysql, metrics); set containerName to one of them",
        ),
        (
            "db",
            "agent",
            "agent",
            ErrorCode.UNKNOWN_PORT,
            (
                "the ports of container 'agent' in pod shop/db-0 are not known to the agent; "
                "give it a pod description (PODHOOK_POD_FILE, PODHOOK_KUBERNETES), or use the port's number"
            ),
        ),
    ],
)
def test_an_unknown_port_is_refused_with_what_there_is(wanted, container, own, code, message):
    assert refusal(containers(own=own).port, wanted, container) == (code, message)


def test_no_refusal_of_a_name_passes_by_itself():
    for call, arguments in ((containers().for_exec, ("x",)), (containers().port, ("x", "mysql"))):
        with pytest.raises(Refusal) as caught:
            call(*arguments)
        assert caught.value.code not in TEMPORARY
