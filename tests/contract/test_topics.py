"""Topics: every name stays one level, and what is written can be taken apart again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import BadInput, MalformedMessage
from agent.contract.topics import ReplyAddress, Topics, check_name, client_id, is_level

RUN = "01890000-0000-7000-8000-000000000001"
LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)


def test_topics_are_those_of_the_design():
    topics = Topics()
    assert topics.commands("shop", "db-0") == "podhook/v1/agents/shop/db-0/commands"
    assert topics.presence("shop", "db-0") == "podhook/v1/agents/shop/db-0/presence"
    assert topics.presences("shop") == "podhook/v1/agents/shop/+/presence"
    assert topics.presences() == "podhook/v1/agents/+/+/presence"
    assert topics.reply("nightly", RUN, "shop", "db-0") == f"podhook/v1/runs/nightly/{RUN}/shop/db-0"
    assert topics.replies("nightly") == "podhook/v1/runs/nightly/#"


@pytest.mark.parametrize("root", ["podhook", "a", "acme/prod/podhook", "A_b-9", "a" * 128])
def test_a_root_may_have_several_levels(root):
    assert Topics(root).commands("n", "p").startswith(f"{root}/v1/")


@pytest.mark.parametrize(
    "root",
    ["", "/", "a/", "/a", "a//b", "a/+", "#", "a/#/b", "$SYS", "$share/g", "a b", "a\n", "ä", "a" * 129],
)
def test_a_root_that_no_broker_could_use_is_refused(root):
    with pytest.raises(BadInput, match="topic root"):
        Topics(root)


@given(NAMES, NAMES)
def test_presence_topics_read_back(namespace, pod):
    topics = Topics("acme/podhook")
    assert topics.parse_presence(topics.presence(namespace, pod)) == (namespace, pod)


@given(LABELS, NAMES, NAMES)
def test_reply_topics_read_back(coordinator, namespace, pod):
    topics = Topics()
    topic = topics.reply(coordinator, RUN, namespace, pod)
    assert topics.parse_reply(topic) == ReplyAddress(coordinator, RUN, namespace, pod)


@given(st.text() | st.lists(st.sampled_from(["podhook", "v1", "runs", "agents", "presence", ""])).map("/".join))
def test_any_other_topic_is_malformed_and_nothing_else(topic):
    topics = Topics()
    for parse, write in ((topics.parse_reply, topics.reply), (topics.parse_presence, topics.presence)):
        try:
            parsed = parse(topic)
        except MalformedMessage:
            continue
        levels = (
            parsed if isinstance(parsed, tuple) else (parsed.coordinator, parsed.run_id, parsed.namespace, parsed.pod)
        )
        assert write(*levels) == topic


@pytest.mark.parametrize(
    "topic",
    [
        "podhook/v1/agents/shop/db-0/commands",
        "podhook/v1/agents/shop/presence",
        "podhook/v1/agents//db-0/presence",
        "podhook/v2/agents/shop/db-0/presence",
        "other/v1/agents/shop/db-0/presence",
        "podhook/v1/agents/shop/db-0/presence/more",
    ],
)
def test_what_is_no_presence_topic_is_named(topic):
    with pytest.raises(MalformedMessage, match="not a presence topic"):
        Topics().parse_presence(topic)


@given(NAMES)
def test_every_kubernetes_name_is_a_topic_level(name):
    assert check_name("pod", name) == name
    assert is_level(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "a-",
        ".a",
        "a.",
        "a..b",
        "a.-b",
        "a-.b",
        "A",
        "a/b",
        "a+",
        "#",
        "a b",
        "a\n",
        "a_b",
        "a" * 254,
    ],
)
def test_what_is_no_kubernetes_name_is_refused_with_the_rule(name):
    with pytest.raises(BadInput, match=r"pod .* is not a Kubernetes name: lower-case"):
        check_name("pod", name)


def test_names_up_to_253_characters_fit():
    assert check_name("pod", "a" * 253)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("nightly", True), ("A.b_c-9", True), ("a" * 128, True), ("a" * 129, False), ("", False)]
    + [(text, False) for text in ("+", "#", "a/b", "a b", "a\n", "ä")],
)
def test_a_level_has_no_separator_and_no_wildcard(text, fits):
    assert is_level(text) is fits


def test_client_ids_have_no_dot_because_nats_refuses_them():
    assert client_id("shop", "db.example-0", "7f3a") == "shop_db__example-0_7f3a"


@given(NAMES, NAMES, NAMES, NAMES)
def test_two_agents_never_share_a_client_id(namespace, pod, other_namespace, other_pod):
    same = client_id(namespace, pod, "x") == client_id(other_namespace, other_pod, "x")
    # A namespace has no dots in Kubernetes, so the first "_" ends it.
    if "." not in namespace + other_namespace:
        assert same == ((namespace, pod) == (other_namespace, other_pod))
