"""What is due, what needs no further look, what is retired, and what a record says in between."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import applied
from ansible_collections.moat.inference.plugins.module_utils.applied import Entry

ROLES = ["firewall", "private_link", "certificate", "connector"]


def plan(*roles: str, interface: str = "moat0", certificates: tuple[str, ...] = ("one",)) -> dict[str, Any]:
    made: dict[str, Any] = {"roles": list(roles), **{role: {"of": role} for role in roles}}
    if "certificate" in roles:
        made.update(certificate=[{"name": name} for name in certificates], certificate_ca={"host": "ca1"})
    if "private_link" in roles:
        made["private_link"] = {"interface": interface}
    return made


def record(*roles: str, collection: str = "c1", **digests: str) -> dict[str, Entry]:
    return {
        role: Entry(digests.get(role, f"d-{role}"), "i", collection, applied.made_of(plan(*ROLES), role))
        for role in roles
    }


def digests(*roles: str, inputs: str = "i", **changed: str) -> dict[str, tuple[str, str]]:
    return {role: (changed.get(role, f"d-{role}"), inputs) for role in roles}


def work(
    of_plan: dict[str, Any], found: dict[str, Entry], wanted: dict[str, tuple[str, str]], **options: Any
) -> applied.Work:
    settings = {"collection": "c1", "changes_only": True, **options}
    return applied.compare({"app1": of_plan}, {"app1": wanted}, {"app1": found}, **settings)


def test_without_a_record_everything_is_due_and_nothing_known() -> None:
    made = applied.compare({"app1": plan(*ROLES)}, {"app1": digests(*ROLES)}, {}, "c1", True)
    assert (made.due, made.known, made.retire) == ({"app1": ROLES}, {}, {})
    assert made.hosts == ["app1"]


def test_what_is_on_record_is_not_due() -> None:
    made = work(plan(*ROLES), record(*ROLES), digests(*ROLES))
    assert (made.due, made.hosts) == ({}, [])


def test_a_changed_part_is_due_alone_and_known() -> None:
    made = work(plan(*ROLES), record(*ROLES), digests(*ROLES, connector="new"))
    assert made.due == {"app1": ["connector"]}
    assert made.known == {"app1": ROLES}


def test_everything_is_due_unless_changes_alone_are_asked_for() -> None:
    made = work(plan(*ROLES), record(*ROLES), digests(*ROLES), changes_only=False)
    assert (made.due, made.known) == ({"app1": ROLES}, {})


def test_another_collection_makes_everything_due_and_nothing_known() -> None:
    made = work(plan(*ROLES), record(*ROLES), digests(*ROLES), collection="c2")
    assert (made.due, made.known) == ({"app1": ROLES}, {})


def test_other_inputs_make_a_role_due_and_unknown() -> None:
    made = work(plan(*ROLES), record(*ROLES), {**digests(*ROLES), "connector": ("d-connector", "other")})
    assert made.due == {"app1": ["connector"]}
    assert made.known == {"app1": ["firewall", "private_link", "certificate"]}


def test_a_part_that_cannot_be_told_equals_none() -> None:
    made = work(plan(*ROLES), record(*ROLES, connector=""), {**digests(*ROLES), "connector": ("", "")})
    assert made.due == {"app1": ["connector"]}
    assert made.known == {"app1": ["firewall", "private_link", "certificate"]}


def test_a_certificate_that_is_not_on_record_is_gained_and_one_less_is_not() -> None:
    two = plan(*ROLES, certificates=("one", "two"))
    assert work(two, record(*ROLES), digests(*ROLES, certificate="new")).gained == ["app1"]
    before = {**record(*ROLES), "certificate": Entry("old", "i", "c1", applied.made_of(two, "certificate"))}
    assert work(plan(*ROLES), before, digests(*ROLES, certificate="new")).gained == []
    assert work(two, record(*ROLES), digests(*ROLES), changes_only=False).gained == []


def test_a_run_that_ended_early_is_taken_up_even_with_the_plan_of_before() -> None:
    before = record(*ROLES)
    underway = applied.begun(before, plan(*ROLES), ["firewall", "connector"])
    assert work(plan(*ROLES), underway, digests(*ROLES)).due == {"app1": ["firewall", "connector"]}
    ended = applied.succeeded(underway, plan(*ROLES), digests(*ROLES), ["firewall", "connector"], [], "c1")
    assert ended == before


def test_a_host_that_stops_being_a_client_loses_what_it_had_in_order() -> None:
    made = work(plan("firewall"), record(*ROLES), digests("firewall"))
    assert made.due == {}
    assert made.retire["app1"] == [
        {"role": "connector"},
        {"role": "certificate"},
        {"role": "private_link", "interface": "moat0"},
    ]
    left = applied.succeeded(record(*ROLES), plan("firewall"), {}, [], made.retire["app1"], "c1")
    assert left == record("firewall")


def test_a_role_that_was_only_begun_is_retired_too() -> None:
    underway = applied.begun({}, plan(*ROLES), ROLES)
    roles = [item["role"] for item in work(plan("firewall"), underway, digests("firewall")).retire["app1"]]
    assert roles == ["connector", "certificate", "private_link"]


def test_packet_filter_and_authority_are_never_retired() -> None:
    made = applied.compare({}, {}, {"ca1": record("firewall", "ca")}, "c1", True)
    assert (made.due, made.retire) == ({}, {})


def test_a_link_under_another_name_takes_the_old_one_away_however_often_the_run_is_killed() -> None:
    wanted = plan(*ROLES, interface="moat1")
    underway = applied.begun(record(*ROLES), wanted, ["private_link"])
    underway = applied.begun(underway, wanted, ["private_link"])
    made = work(wanted, underway, digests(*ROLES, private_link="new"))
    assert made.retire == {"app1": [{"role": "private_link", "interface": "moat0"}]}
    done = applied.succeeded(
        underway, wanted, digests(*ROLES, private_link="new"), ["private_link"], made.retire["app1"], "c1"
    )
    assert done["private_link"] == Entry("new", "i", "c1", ("moat1",))
    back = work(plan("firewall"), underway, digests("firewall")).retire["app1"]
    assert [item.get("interface") for item in back if item["role"] == "private_link"] == ["moat0", "moat1"]


def test_a_record_is_read_as_it_was_written() -> None:
    assert applied.parse(applied.render(record(*ROLES))) == record(*ROLES)


def test_a_record_of_another_format_counts_as_none() -> None:
    assert applied.parse('{"format": 0}') == {}


WAYS_OUT = ["firewall", "egress_proxy", "egress_client", "private_dns"]


def test_the_ways_out_are_there_before_anybody_needs_them() -> None:
    plans = {"egress1": plan(*WAYS_OUT), "app1": plan("firewall", "egress_client", *ROLES[1:])}
    each = {host: digests(*made["roles"]) for host, made in plans.items()}
    for found, changes_only in (({}, False), ({host: record("firewall") for host in plans}, True)):
        made = applied.compare(plans, each, found, "c1", changes_only)
        taken = applied.steps(made, "egress1", False, changes_only)
        assert taken == {
            "close": ["firewall"] if not found else [],
            "proxy": ["egress_proxy"],
            "names": ["private_dns"],
            "prepare": ["egress_client"],
            "serve": [],
        }
        assert applied.steps(made, "app1", False, changes_only)["prepare"][0] == "egress_client"


def test_a_packet_filter_is_there_before_a_way_out_that_changes() -> None:
    plans = {"egress1": plan(*WAYS_OUT), "app1": plan("firewall")}
    found = {"egress1": record(*WAYS_OUT), "app1": record("firewall")}
    each = {"egress1": digests(*WAYS_OUT, egress_proxy="new"), "app1": digests("firewall", firewall="new")}
    made = applied.compare(plans, each, found, "c1", True)
    assert applied.steps(made, "app1", False, True)["close"] == ["firewall"]
    assert applied.steps(made, "egress1", False, True)["proxy"] == ["egress_proxy"]


def test_what_goes_out_by_itself_again_loses_the_named_way_last() -> None:
    made = work(plan("firewall"), record(*ROLES, *WAYS_OUT[1:]), digests("firewall"))
    assert [item["role"] for item in made.retire["app1"]][-3:] == ["egress_client", "private_dns", "egress_proxy"]


def test_routes_and_resolvers_are_part_of_how_a_host_gets_out() -> None:
    made = {**plan("egress_client"), "routes": {"via": []}, "resolvers": ["10.0.0.1"], "private_link": {}}
    assert set(applied.part_of(made, "egress_client")) == {"egress_client", "routes", "resolvers"}


def test_other_resolvers_are_a_change_of_the_connector() -> None:
    made = {**plan("connector"), "routes": {"via": []}, "resolvers": ["10.0.0.1"]}
    assert set(applied.part_of(made, "connector")) == {"connector", "resolvers"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 2, "roles": {"x": {}}}', "{"])
def test_what_is_no_record_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="remove it"):
        applied.parse(text)


@pytest.mark.parametrize(
    ("run", "skip", "whole"),
    [
        (["all"], [], True),
        (["gateway"], [], True),
        (["gateway_configure"], [], False),
        (["firewall"], [], False),
        (["all"], ["gateway"], False),
        (["all"], ["gateway_install"], False),
        (["all"], ["model_server"], True),
        (["all"], ["always"], False),
        (["untagged"], [], False),
    ],
)
def test_tags_decide_whether_a_role_was_applied_as_a_whole(run: list[str], skip: list[str], whole: bool) -> None:
    assert applied.selected("gateway", run, skip) is whole


def test_the_part_of_a_role_has_its_authority() -> None:
    host = {"roles": ["certificate"], "certificate": [1], "certificate_ca": {"url": "u"}, "gateway": 2}
    assert applied.part_of(host, "certificate") == {"certificate": [1], "certificate_ca": {"url": "u"}}
    assert applied.digest_of({"a": 1, "b": 2}) == applied.digest_of({"b": 2, "a": 1}) != applied.digest_of({"a": 1})


def steps(found: dict[str, Entry], wanted: dict[str, tuple[str, str]], early: bool = True, **options: Any) -> Any:
    plans = {"app1": plan(*ROLES), "ca1": plan("firewall", "ca")}
    authority = {"ca1": record("firewall", "ca")}
    each = {"app1": wanted, "ca1": digests("firewall", "ca")}
    made = applied.compare(plans, each, {"app1": found, **authority}, "c1", options.get("changes_only", True))
    return applied.steps(made, "app1", early, options.get("changes_only", True))


def test_a_whole_run_takes_every_step_without_a_look_of_its_own() -> None:
    assert steps(record(*ROLES), digests(*ROLES), changes_only=False) == {
        "close": ["firewall"],
        "proxy": [],
        "names": [],
        "prepare": ["keys", "link"],
        "serve": ["certificate", "connector"],
    }


def test_a_new_client_host_is_looked_at_once() -> None:
    new = record("firewall")
    assert steps(new, digests(*ROLES)) == {
        "close": [],
        "proxy": [],
        "names": [],
        "prepare": ["look", "keys", "link"],
        "serve": ["certificate", "connector"],
    }
    assert steps(new, digests(*ROLES), early=False)["serve"] == ["link", "certificate", "connector"]


def test_a_known_link_needs_no_look_and_a_connector_does_for_its_users() -> None:
    assert steps(record(*ROLES), digests(*ROLES, private_link="new"))["prepare"] == ["link"]
    assert steps(record(*ROLES), digests(*ROLES, connector="new"))["prepare"] == ["look"]


def test_new_hosts_make_their_keys_before_any_of_them_links() -> None:
    plans = {"app1": plan(*ROLES), "ca1": plan("firewall", "ca")}
    made = applied.compare(plans, {"app1": digests(*ROLES), "ca1": digests("firewall", "ca")}, {}, "c1", True)
    assert applied.steps(made, "app1", False, True)["prepare"] == ["look", "keys"]
    found = applied.steps(made, "ca1", False, True)
    assert {step: names for step, names in found.items() if names} == {"close": ["firewall"], "prepare": ["ca"]}


def test_nobody_waits_for_the_packet_filter_of_another_unless_one_has_none() -> None:
    alone = steps(record(*ROLES), digests(*ROLES, firewall="new"))
    assert {step: names for step, names in alone.items() if names} == {"prepare": ["firewall"]}
    plans = {"app1": plan("firewall"), "app2": plan("firewall")}
    each = {"app1": digests("firewall", firewall="new"), "app2": digests("firewall")}
    made = applied.compare(plans, each, {"app1": record("firewall")}, "c1", True)
    assert applied.steps(made, "app1", False, True)["close"] == ["firewall"]
