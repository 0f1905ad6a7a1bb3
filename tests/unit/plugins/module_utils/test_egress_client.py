# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import shlex

import pytest
from ansible_collections.moat.inference.plugins.module_utils import egress_client as client

OPTIONS = {
    "proxies": ["http://10.130.0.10:3128"],
    "no_proxy": ["localhost", "127.0.0.0/8", "::1", "inference.internal"],
    "resolvers": ["10.140.0.53"],
    "domain": "inference.internal",
    "units": ["backup.service"],
    "targets": list(client.TARGETS),
}
OLD = '{"proxies": {"http-proxy": "http://old:1"}}'


def desired(**changes):
    return client.desired({**OPTIONS, **changes}, lambda target: True, changes.pop("docker_json", ""))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxies": ["10.130.0.10:3128"]}, "no URL of a proxy"),
        ({"proxies": ["http://10.130.0.10"]}, "no URL of a proxy"),
        ({"proxies": ["https://10.130.0.10:3128"]}, "no URL of a proxy"),
        ({"proxies": ["http://user:word@10.130.0.10:3128"]}, "no URL of a proxy"),
        ({"proxies": ['http://10.130.0.10:3128/";x']}, "no URL of a proxy"),
        ({"proxies": ["http://10.130.0.10:70000"]}, "write http://10.130.0.10:3128"),
        ({"proxies": ["http://[fd00::1:3128"]}, "write http://10.130.0.10:3128"),
        ({"proxies": ["http://10.130.0.10:3128", "http://proxy:3128"]}, "with several proxies, write their addresses"),
        ({"proxies": ["http://10.130.0.10:3128", "http://10.130.0.11:8080"]}, "write one port"),
        ({"no_proxy": ["a b"]}, "neither a name nor a network"),
        ({"no_proxy": ["a\nX=1"]}, "neither a name nor a network"),
        ({"resolvers": ["dns1"]}, "is no address"),
        ({"domain": "a b"}, "is no domain"),
        ({"units": ["moat-model@xray-7b.service"]}, "a model server, which has no way out by design"),
        ({"units": ["moat-model@.service"]}, "a model server"),
        ({"units": ["moat-model.service"]}, "a model server"),
        ({"units": ["moat-.service"]}, "no full name of one service"),
        ({"units": ["-.service"]}, "no full name of one service"),
        ({"units": [".service"]}, "no full name of one service"),
        ({"units": ["../x.service"]}, "no full name of one service"),
        ({"units": ["a.timer"]}, "no full name of one service"),
        ({"targets": ["apt"]}, "add it to targets"),
    ],
)
def test_options_that_cannot_be_had_are_named(changes, said):
    (fault,) = client.faults_of({**OPTIONS, **changes})
    assert said in fault


def test_good_options_have_no_fault():
    assert client.faults_of(OPTIONS) == []
    assert client.faults_of({**OPTIONS, "proxies": ["http://[fd00::1]:3128", "http://10.130.0.10:3128"]}) == []
    assert client.faults_of({**OPTIONS, "units": ["moat-modeller.service", "backup@1.service"]}) == []


def test_several_proxies_have_one_name():
    assert client.proxy_of([]) == ("", [])
    assert client.proxy_of(["http://10.0.0.1:3128"]) == ("http://10.0.0.1:3128", [])
    found = client.proxy_of(["http://10.0.0.1:3128", "http://[fd00:0::1]:3128", "http://10.0.0.1:3128"])
    assert found == ("http://moat-egress-proxy:3128", ["10.0.0.1", "fd00::1"])


def test_the_environment_is_the_same_for_systemd_and_a_shell():
    text = client.environment_text("http://10.0.0.1:3128", OPTIONS["no_proxy"])
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(shlex.split(line) == [line] for line in lines)
    values = dict(line.split("=", 1) for line in lines)
    assert values["no_proxy"] == values["NO_PROXY"] == "localhost,127.0.0.0/8,::1,inference.internal"
    assert values["http_proxy"] == values["https_proxy"] == values["HTTPS_PROXY"] == "http://10.0.0.1:3128"


def test_apt_is_told_names_only():
    text = client.apt_text("http://10.0.0.1:3128", OPTIONS["no_proxy"])
    assert 'Acquire::http::Proxy "http://10.0.0.1:3128";' in text
    assert 'Acquire::https::Proxy::inference.internal "DIRECT";' in text
    assert "127.0.0.0/8" not in text and "::1 " not in text
    assert 'Acquire::EnableSrvRecords "false";' in text


def test_every_target_has_its_place():
    found = desired()
    assert set(found.files) == {
        client.ENVIRONMENT, client.APT, client.PODMAN, client.dropin("docker.service"), client.dropin("backup.service")
    }  # fmt: skip
    assert {item.file for item in found.merged} == {client.PIP, client.DNF}
    assert found.restart == ["backup.service"]


def test_without_a_proxy_nothing_is_there():
    found = desired(proxies=[])
    assert not (found.files or found.merged or found.hosts or found.restart)


def test_what_is_not_installed_is_left_out():
    found = client.desired(OPTIONS, lambda target: target in ("pip", "environment"), "")
    assert found.left_out == ["apt", "dnf", "podman", "docker"]
    assert set(found.files) == {client.ENVIRONMENT, client.dropin("backup.service")}


def test_dockers_own_configuration_is_written_only_where_it_has_proxies():
    assert not [
        item for item in desired(docker_json='{"log-driver": "journald"}').merged if item.file == client.DOCKER_JSON
    ]
    found = client.desired(OPTIONS, lambda target: True, OLD)
    assert [item.keys[1] for item in found.merged if item.file == client.DOCKER_JSON] == [
        "http-proxy",
        "https-proxy",
        "no-proxy",
    ]


def test_values_come_and_go_and_what_was_before_comes_back():
    texts = {
        client.PIP: "# mine\n[global]\ntimeout = 6\n",
        client.DNF: "[main]\nproxy=http://old:1\n",
        client.DOCKER_JSON: OLD,
    }
    target = client.desired(OPTIONS, lambda target: True, OLD)
    after, record = client.plan_merged(target, {}, texts)
    assert "proxy = http://10.130.0.10:3128" in after[client.DNF] and "old" not in after[client.DNF]
    again, same = client.plan_merged(target, record, after)
    assert (again, same) == (after, record)
    other = client.desired({**OPTIONS, "proxies": ["http://10.0.0.9:1"]}, lambda target: True, OLD)
    moved, record = client.plan_merged(other, record, after)
    back, gone = client.plan_merged(client.Desired(), record, moved)
    assert gone == {}
    assert back[client.PIP] == texts[client.PIP]
    assert back[client.DNF] == "[main]\nproxy = http://old:1\n"
    assert client.merge.json_read(back[client.DOCKER_JSON]) == client.merge.json_read(OLD)


def test_a_value_that_somebody_changed_since_stays():
    target = client.desired({**OPTIONS, "targets": ["pip", "environment"]}, lambda target: True, "")
    after, record = client.plan_merged(target, {}, {client.PIP: ""})
    edited = {client.PIP: after[client.PIP].replace("10.130.0.10", "10.9.9.9")}
    assert client.plan_merged(client.Desired(), record, edited)[0] == edited
    assert client.plan_merged(target, record, edited)[0] == after


def test_all_files_that_cannot_be_read_are_named():
    target = client.desired(OPTIONS, lambda target: True, "{ broken")
    texts = {client.PIP: "garbage", client.DNF: "", client.DOCKER_JSON: "{ broken"}
    with pytest.raises(client.Refused) as refused:
        client.plan_merged(target, {}, texts)
    assert client.PIP in str(refused.value) and client.DOCKER_JSON in str(refused.value)
    assert client.DNF not in str(refused.value)


def test_a_file_without_values_is_empty():
    assert client.is_empty("") and client.is_empty("\n[global]\n")
    assert not client.is_empty("# mine\n[global]\n") and not client.is_empty("[global]\nx=1\n")


def test_the_unit_of_a_dropin():
    assert client.unit_of(client.dropin("backup.service")) == "backup.service"
    assert client.unit_of(client.APT) == ""
