"""KubeStash's guide to hooks works here as it stands: each example loads to exactly its values."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from agent.contract.templates import load_hooks

GUIDE = Path(__file__).parents[2] / "examples" / "guide"

MYSQL = "mysql -u root --password=$MYSQL_ROOT_PASSWORD -e "
WEB = {"selector": "env=dev, app=web"}
OWNER = {"api_version": "apps/v1", "kind": "Deployment", "name": "kubestash-op"}
MY_HOST = {"host": "my-host.demo.svc", "port": 8080}
MY_SERVICE = {"host": "my-service.mynamespace.svc", "port": 8080, "path": "/demo", "scheme": "HTTP"}
ROOT = {"path": "/", "scheme": "HTTP"}


def mysql(statement):
    return {"exec_": {"command": ["/bin/sh", "-c", f'{MYSQL}"{statement}"']}, "container_name": "mysql"}


#: File -> its action and its executor, where the guide says them: all that is set, and nothing else.
ACTIONS = {
    "http-get-host-and-port": {"http_get": {**MY_HOST, **ROOT}},
    "http-get-named-port": {"http_get": {"port": "my-port", **ROOT}, "container_name": "my-container"},
    "http-get-custom-header": {
        "http_get": {**MY_HOST, **ROOT, "http_headers": [{"name": "User-Agent", "value": "kubestash/0.5.x"}]}
    },
    "http-post-json": {
        "http_post": {
            **MY_SERVICE,
            "http_headers": [{"name": "Content-Type", "value": "application/json"}],
            "body": '{ "name": "john doe", "age": "28" }',
        }
    },
    "http-post-form": {
        "http_post": {
            **MY_SERVICE,
            "form": [{"key": "name", "values": ["john doe"]}, {"key": "age", "values": ["28"]}],
        }
    },
    "tcp-socket-host-and-port": {"tcp_socket": MY_HOST},
    "tcp-socket-named-port": {"tcp_socket": {"port": "my-port"}, "container_name": "my-container"},
    "exec-remove-corrupted-data": {
        "exec_": {"command": ["/bin/sh", "-c", "rm -rf /corrupted/data/directory"]},
        "container_name": "my-container",
    },
    "exec-mysql-read-only": mysql("SET GLOBAL super_read_only = ON;"),
    "exec-mysql-writable": mysql("SET GLOBAL super_read_only = OFF;"),
    "exec-mysql-drop-database": mysql("DROP DATABASE companyRecord;"),
    "exec-mysql-rename-table": mysql("RENAME TABLE companyRecord.employee TO companyRecord.salaryRecord;"),
}
EXECUTORS = {
    "executor-pod-all": {"type": "Pod", "pod": {**WEB, "strategy": "ExecuteOnAll"}},
    "executor-pod-one": {"type": "Pod", "pod": WEB},
    "executor-pod-owner": {"type": "Pod", "pod": {**WEB, "owner": OWNER, "strategy": "ExecuteOnAll"}},
    "executor-operator": {"type": "Operator"},
    "executor-function": {"type": "Function", "function": {"name": "hook-function"}},
}

#: The same as the guide prints them: one half of a hook, and nothing around it.
SNIPPETS = {
    "http-get-host-and-port": """
        action:
          httpGet:
            host: my-host.demo.svc
            port: 8080
            path: "/"
            scheme: HTTP
    """,
    "http-get-named-port": """
        action:
          httpGet:
            port: my-port
            path: "/"
            scheme: HTTP
          containerName: my-container
    """,
    "http-get-custom-header": """
        action:
          httpGet:
            host: my-host.demo.svc
            port: 8080
            path: "/"
            scheme: HTTP
            httpHeaders:
            - name: "User-Agent"
              value: "kubestash/0.5.x"
    """,
    "http-post-json": """
        action:
          httpPost:
            host: my-service.mynamespace.svc
            path: /demo
            port: 8080
            scheme: HTTP
            httpHeaders:
            - name: Content-Type
              value: application/json
            body: '{
                    "name": "john doe",
                    "age": "28"
                   }'
    """,
    "http-post-form": """
        action:
          httpPost:
            host: my-service.mynamespace.svc
            path: /demo
            port: 8080
            scheme: HTTP
            form:
            - key: "name"
              values: ["john doe"]
            - key: "age"
              values: ["28"]
    """,
    "tcp-socket-host-and-port": """
        action:
          tcpSocket:
            host: my-host.demo.svc
            port: 8080
    """,
    "tcp-socket-named-port": """
        action:
          tcpSocket:
            port: my-port
          containerName: my-container
    """,
    "exec-remove-corrupted-data": """
        action:
          exec:
            command: ["/bin/sh","-c","rm -rf /corrupted/data/directory"]
          containerName: my-container
    """,
    "exec-mysql-read-only": """
        action:
          exec:
            command:
              - /bin/sh
              - -c
              - mysql -u root --password=$MYSQL_ROOT_PASSWORD -e "SET GLOBAL super_read_only = ON;"
          containerName: mysql
    """,
    "exec-mysql-writable": """
        action:
          exec:
            command:
              - /bin/sh
              - -c
              - mysql -u root --password=$MYSQL_ROOT_PASSWORD -e "SET GLOBAL super_read_only = OFF;"
          containerName: mysql
    """,
    "exec-mysql-drop-database": """
        action:
          exec:
            command:
              - /bin/sh
              - -c
              - mysql -u root --password=$MYSQL_ROOT_PASSWORD -e "DROP DATABASE companyRecord;"
          containerName: mysql
    """,
    "exec-mysql-rename-table": """
        action:
          exec:
            command:
              - /bin/sh
              - -c
              - mysql -u root --password=$MYSQL_ROOT_PASSWORD -e "RENAME TABLE companyRecord.employee TO companyRecord.salaryRecord;"
          containerName: mysql
    """,  # noqa: E501
    "executor-pod-all": """
        executor:
          type: Pod
          pod:
            selector: env=dev, app=web
            strategy: ExecuteOnAll
    """,
    "executor-pod-one": """
        executor:
          type: Pod
          pod:
            selector: env=dev, app=web
    """,
    "executor-pod-owner": """
        executor:
          type: Pod
          pod:
            selector: env=dev, app=web
            owner:
              apiVersion: apps/v1
              kind: Deployment
              name: kubestash-op
            strategy: ExecuteOnAll
    """,
    "executor-operator": """
        executor:
          type: Operator
    """,
    "executor-function": """
        executor:
          type: Function
          function:
            name: hook-function
    """,
}


def given(part):
    """What was written, without what is only a default."""
    return part.model_dump(exclude_unset=True)


def load(name):
    (hook,) = load_hooks((GUIDE / f"{name}.yaml").read_bytes(), name=name)
    return hook


def test_every_example_of_the_guide_is_a_file_and_every_file_is_tested():
    assert {path.stem for path in GUIDE.iterdir()} == ACTIONS.keys() | EXECUTORS.keys() == SNIPPETS.keys()


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_file_has_the_guides_action_and_pods_to_run_in(name):
    hook = load(name)
    assert given(hook.spec.action) == ACTIONS[name]
    assert given(hook.spec.executor) == {"type": "Pod", "pod": {"selector": "app=my-app"}}
    assert hook.missing() is None


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_file_has_the_guides_executor_and_a_harmless_action(name):
    hook = load(name)
    assert given(hook.spec.executor) == EXECUTORS[name]
    if name == "executor-function":
        assert hook.spec.action is None, "a Function brings its own"
    else:
        assert given(hook.spec.action) == {"exec_": {"command": ["/bin/true"]}}
    assert hook.missing() is None


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_as_the_guide_prints_it_loads_to_the_same_values(name):
    (hook,) = load_hooks(textwrap.dedent(SNIPPETS[name]), name=name)
    if name in ACTIONS:
        assert hook.spec.executor is None
        assert given(hook.spec.action) == ACTIONS[name]
    else:
        assert hook.spec.action is None
        assert given(hook.spec.executor) == EXECUTORS[name]


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_file_prints_its_half_of_the_hook_as_the_guide_does(name):
    lines = (GUIDE / f"{name}.yaml").read_text().splitlines(keepends=True)
    assert lines[0].startswith("# "), "a line at the top says what it shows"
    assert textwrap.dedent(SNIPPETS[name]).strip() in "".join(lines[1:])


def test_the_guides_defaults_are_ours():
    assert load("executor-pod-one").spec.executor.pod.strategy == "ExecuteOnOne"
    assert load("http-get-named-port").spec.action.http_get.host == ""
    assert load("tcp-socket-named-port").spec.action.tcp_socket.host == ""
