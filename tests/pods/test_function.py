"""A Function's pod really runs: what the Job of one says of its pod, played by podman."""

from __future__ import annotations

import json

import yaml

from agent.coordinator.jobs import ACTION_VARIABLE, CONTAINER
from tests.coordinator.test_jobs import ACTION, executor, expanded, function, job
from tests.pods.images import Images
from tests.pods.play import Playground, remove_pod
from tests.pods.podman import podman

SCRIPT = 'echo "$MODE" > mode; cat /data/mode; printenv PODHOOK_ACTION; exit 3'


def test_a_functions_pod_runs_with_its_variables_and_volumes_and_ends_with_its_exit_code(
    playground: Playground, images: Images
) -> None:
    made = job(
        function(
            f"command: [/bin/sh, -c]\nargs: [{json.dumps(SCRIPT)}]\nworkingDir: /data\n"
            "volumeMounts: [{name: data, mountPath: /data}]\n"
            "runtimeSettings: {env: [{name: MODE, value: wet}], securityContext: {runAsUser: 0}}",
            image=images.base,
        ),
        executor("{env: [{name: MODE, value: dry}], volumes: [{name: data, emptyDir: {}}]}"),
        action=ACTION,
    )
    template = made["spec"]["template"]
    name = playground.place("function").name
    for variable in template["spec"]["containers"][0]["env"]:
        if variable["name"] == ACTION_VARIABLE:  # podman leaves out what the kubelet does with `$$`
            variable["value"] = expanded(variable["value"])
    metadata = {**template["metadata"], "name": name}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    try:
        podman("kube", "play", "--network=none", "-", input=yaml.safe_dump(pod))
        assert podman("wait", f"{name}-{CONTAINER}") == "3"
        mode, action = podman("logs", f"{name}-{CONTAINER}").splitlines()
        assert mode == "dry"
        assert json.loads(action)["exec"]["command"] == ACTION.exec_.command
    finally:
        remove_pod(name)
