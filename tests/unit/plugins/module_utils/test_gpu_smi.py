"""nvidia-smi's outputs of several GPUs and branches, and what is left of them when they are cut or broken."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_smi
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_host import FIXTURES, captured
from hypothesis import given, settings
from hypothesis import strategies as st

XMLS = sorted(path.name for path in FIXTURES.glob("*.xml"))
KEYS = {
    *("slot", "minor", "name", "uuid", "memory_mib", "architecture", "ecc", "remapped_rows", "mig", "power", "clocks"),
    *("persistence", "nvlinks", "fabric", "processes"),
}


def only(name: str) -> dict[str, Any]:
    report = gpu_smi.parse(captured(name))
    assert len(report.gpus) == 1
    return report.gpus[0]


CASES: list[tuple[str, str | None, list[Any]]] = [
    ("a100-mig-535.xml", "535.54.03", [("0000:01:00.0", 1, "NVIDIA A100-SXM4-80GB", 81920, "ampere")]),
    (
        "b200-570.xml",
        "570.172.08",
        [
            ("0000:1b:00.0", 0, "NVIDIA B200", 183359, "blackwell"),
            ("0000:43:00.0", 1, "NVIDIA B200", 183359, "blackwell"),
        ],
    ),
    (
        "b200-lost-570.xml",
        "570.172.08",
        [("0000:1b:00.0", 0, "NVIDIA B200", 183359, "blackwell"), ("0000:44:00.0", None, None, None, "blackwell")],
    ),
    ("gh200-550.xml", "550.90.07", [("0009:01:00.0", 0, "NVIDIA GH200 480GB", 97871, "hopper")]),
    ("gtx1070ti-v10.xml", None, [("0000:01:00.0", None, "GeForce GTX 1070 Ti", 4096, None)]),
    ("gtx1660ti-418.xml", "418.43", [("0000:43:00.0", 0, "Graphics Device", 5912, None)]),
    ("h100-580.xml", "580.159.04", [("0000:00:06.0", 0, "NVIDIA H100 80GB HBM3", 81559, "hopper")]),
    ("l40s-550.xml", "550.163.01", [("0000:34:00.0", 0, "NVIDIA L40S", 46068, "ada")]),
    ("quadro-p2000-525.xml", "525.125.06", [("0000:17:00.0", 0, "Quadro P2000", 5120, "pascal")]),
    ("quadro-p400-418.xml", "418.43", [("0000:43:00.0", 0, "Quadro P400", 1998, None)]),
    ("rtx3060-570.xml", "570.124.04", [("0000:2d:00.0", 0, "NVIDIA GeForce RTX 3060", 12288, "ampere")]),
    ("rtx3080-595.xml", "595.58.03", [("0000:0c:00.0", 0, "NVIDIA GeForce RTX 3080", 10240, "ampere")]),
    ("rtx4000-ada-595.xml", "595.84", [("0000:06:00.0", 0, "NVIDIA RTX 4000 SFF Ada Generation", 20475, "ada")]),
    ("t4-515.xml", "515.105.01", [("0000:00:1e.0", 0, "Tesla T4", 15360, "turing")]),
    ("v100-470.xml", "470.256.02", [("0000:06:00.0", 0, "Tesla V100-SXM2-16GB", 16160, "volta")]),
]


@pytest.mark.parametrize(("name", "driver", "gpus"), CASES)
def test_gpus_of_a_branch(name: str, driver: str | None, gpus: list[Any]) -> None:
    report = gpu_smi.parse(captured(name))
    keys = ("slot", "minor", "name", "memory_mib", "architecture")
    assert report.driver == driver
    assert [tuple(gpu[key] for key in keys) for gpu in report.gpus] == gpus
    assert all(set(gpu) == KEYS for gpu in report.gpus)


def test_every_capture_is_looked_at() -> None:
    assert sorted(name for name, _driver, _gpus in CASES) == XMLS


@pytest.mark.parametrize("name", XMLS)
def test_a_whole_document_is_read_whole(name: str) -> None:
    unread = gpu_smi.parse(captured(name)).unread
    expected = {
        "a100-mig-535.xml": ["nvidia-smi counts 4 GPUs and tells of 1"],
        "b200-lost-570.xml": [
            "GPU 0000:44:00.0 answers with an error to: current_ecc, minor_number, pending_ecc, product_name, total, uuid"
        ],
    }
    assert unread == expected.get(name, [])


@pytest.mark.parametrize("name", XMLS)
def test_no_serial_number_is_told(name: str) -> None:
    text = re.sub("<serial>[^<]*<", "<serial>0123456789012<", captured(name))
    assert "0123456789012" not in repr(gpu_smi.parse(text))


def test_all_of_an_h100() -> None:
    assert only("h100-580.xml") == {
        "slot": "0000:00:06.0",
        "minor": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": "GPU-0000000b-1111-2222-3333-00000000000b",
        "memory_mib": 81559,
        "architecture": "hopper",
        "ecc": {"current": True, "pending": True, "corrected": 0, "uncorrected": 0},
        "remapped_rows": {"correctable": 0, "uncorrectable": 0, "pending": False, "failure": False},
        "mig": {"current": False, "pending": False, "instances": []},
        "power": {"limit_w": 700.0, "default_w": 700.0, "min_w": 200.0, "max_w": 700.0, "draw_w": 78.47},
        "clocks": {
            "graphics_max_mhz": 1980,
            "memory_max_mhz": 2619,
            "locked_graphics_mhz": None,
            "locked_memory_mhz": None,
            "applications": {"graphics_mhz": 1980, "memory_mhz": 2619},
        },
        "persistence": True,
        "nvlinks": None,
        "fabric": None,
        "processes": [],
    }


def test_older_counts_of_errors_and_limits() -> None:
    volta = only("v100-470.xml")
    assert volta["ecc"] == {"current": True, "pending": True, "corrected": 3, "uncorrected": 1}
    assert volta["power"] == {"limit_w": 250.0, "default_w": 300.0, "min_w": 150.0, "max_w": 300.0, "draw_w": 57.44}
    assert volta["remapped_rows"] == dict.fromkeys(("correctable", "uncorrectable", "pending", "failure"))
    assert volta["mig"] == {"current": None, "pending": None, "instances": []}


def test_the_limit_that_was_asked_for_is_told_where_another_undercuts_it() -> None:
    ada = only("l40s-550.xml")
    assert ada["power"] == {"limit_w": 320.0, "default_w": 350.0, "min_w": 100.0, "max_w": 350.0, "draw_w": 35.11}
    assert ada["remapped_rows"] == {"correctable": 0, "uncorrectable": 2, "pending": True, "failure": False}
    assert ada["processes"] == [{"pid": 4711, "name": "/opt/vllm/bin/python3", "memory_mib": 41234, "type": "C"}]


def test_a_deprecated_setting_is_unknown() -> None:
    ampere = only("rtx3080-595.xml")
    assert ampere["clocks"]["applications"] == {"graphics_mhz": None, "memory_mhz": None}
    assert (ampere["clocks"]["graphics_max_mhz"], ampere["power"]["limit_w"]) == (2100, 320.0)


def test_the_state_of_a_fabric() -> None:
    first, second = gpu_smi.parse(captured("b200-570.xml")).gpus
    assert first["fabric"] == {"state": "In Progress", "status": None}
    assert second["fabric"] == {"state": "Completed", "status": "Success"}


def test_mig_instances_get_their_names_from_the_list() -> None:
    gpus = gpu_smi.parse(captured("a100-mig-535.xml")).gpus
    assert gpus[0]["mig"]["current"] is True and gpus[0]["mig"]["pending"] is True
    assert [(item["index"], item["gi"], item["ci"], item["uuid"]) for item in gpus[0]["mig"]["instances"]] == [
        (0, 3, 0, None),
        (1, 4, 0, None),
        (2, 5, 0, None),
        (3, 6, 0, None),
    ]
    gpu_smi.add_migs(gpus, gpu_smi.parse_list(captured("list-mig.txt")))
    assert gpus[0]["mig"]["instances"][2] == {
        "index": 2,
        "gi": 5,
        "ci": 0,
        "uuid": "MIG-00000001-aaaa-5bbb-8ccc-000000000003",
        "memory_mib": 19968,
        "profile": "1g.20gb",
    }


def test_a_list_of_an_older_branch_and_a_gpu_without_instances() -> None:
    assert gpu_smi.parse_list(captured("list-mig-460.txt")) == {
        "GPU-00000001-1111-2222-3333-000000000001": {
            0: ("3g.20gb", "MIG-GPU-00000001-1111-2222-3333-000000000001/1/0"),
            1: ("1c.2g.10gb", "MIG-GPU-00000001-1111-2222-3333-000000000001/3/0"),
        },
        "GPU-00000002-1111-2222-3333-000000000002": {},
    }


def test_only_links_that_are_up_count() -> None:
    assert gpu_smi.parse_nvlinks(captured("nvlink.txt")) == {
        "GPU-00000001-1111-2222-3333-000000000001": 4,
        "GPU-00000002-1111-2222-3333-000000000002": 0,
    }
    assert gpu_smi.parse_nvlinks("\t Link 0: 25 GB/s\n") == {}


@pytest.mark.parametrize("name", XMLS)
def test_a_document_cut_anywhere_tells_the_gpus_before_the_cut(name: str) -> None:
    text = captured(name).rstrip()
    whole = gpu_smi.parse(text)
    for end in range(0, len(text), 7):
        report = gpu_smi.parse(text[:end])
        complete = text[:end].count("</gpu>")
        assert report.gpus == whole.gpus[:complete], end
        assert "ends early or is malformed" in " ".join(report.unread), end


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(XMLS),
    where=st.floats(0, 1),
    length=st.integers(0, 400),
    put=st.one_of(
        st.text(max_size=60), st.sampled_from(["<gpu>", "</gpu>", "<gpu id='", "&#0;", "&x;", "<![CDATA[", "<!--"])
    ),
)
def test_a_document_broken_anywhere_raises_nothing(name: str, where: float, length: int, put: str) -> None:
    text = captured(name)
    begin = int(where * len(text))
    report = gpu_smi.parse(text[:begin] + put + text[begin + length :])
    assert all(set(gpu) == KEYS for gpu in report.gpus)


@given(text=st.text())
def test_any_text_raises_nothing(text: str) -> None:
    assert gpu_smi.parse(text).gpus == []
    gpu_smi.parse_list(text)
    gpu_smi.parse_nvlinks(text)
    gpu_smi.number(text)
    gpu_smi.slot(text)


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE x [<!ENTITY secret SYSTEM "file:///etc/hostname">]>',
        "<!DOCTYPE x [<!ELEMENT x ANY>]>",
        "<!DOCTYPE x [%remote;]>",
    ],
)
def test_a_document_type_of_its_own_is_refused(doctype: str) -> None:
    whole = captured("h100-580.xml")
    declared = '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">'
    assert declared in whole and len(gpu_smi.parse(whole).gpus) == 1
    report = gpu_smi.parse(whole.replace(declared, doctype))
    assert report.gpus == [] and report.driver is None
    assert report.unread == ["the XML declares a document type of its own, which nvidia-smi never does"]


def test_an_external_document_type_is_not_fetched_and_no_entity_is_known() -> None:
    report = gpu_smi.parse(captured("h100-580.xml").replace("Hopper", "&hopper;"))
    assert report.gpus[0]["architecture"] == "&hopper;" and report.unread == []


def test_names_of_processes_that_are_no_xml() -> None:
    text = captured("l40s-550.xml").replace("/opt/vllm/bin/python3", "a\x01\udcff & b &lt; c")
    report = gpu_smi.parse(text)
    assert report.gpus[0]["processes"][0]["name"] == "a?? & b < c" and report.unread == []


def test_what_comes_before_the_document_is_left_out() -> None:
    report = gpu_smi.parse("WARNING: infoROM is corrupted at gpu 0000:00:06.0\n" + captured("h100-580.xml"))
    assert len(report.gpus) == 1 and report.unread == []


def test_a_gpu_without_an_address_is_not_told() -> None:
    text = captured("gtx1070ti-v10.xml").replace("00000000:01:00.0", "[Unknown Error]")
    report = gpu_smi.parse(text)
    assert report.gpus == [] and report.unread == ["a GPU without a PCI address: '[Unknown Error]'"]


def test_numbers_without_end_raise_nothing() -> None:
    digits = "9" * 5000
    text = re.sub("[0-9]+ MiB", f"{digits} MiB", captured("h100-580.xml"))
    assert gpu_smi.parse(text).gpus[0]["memory_mib"] == 10**18
    assert gpu_smi.parse_list(f"GPU {digits}: x (UUID: a)\n  MIG 1g Device {digits}: (UUID: b)\n") == {"a": {}}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:00:1E.0", "0000:00:1e.0"),
        ("0000:3b:00", "0000:3b:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("00010000:01:00.1", "10000:01:00.1"),
        ("N/A", None),
        ("0000:01:00.9", None),
    ],
)
def test_addresses_as_sysfs_writes_them(text: str, address: str | None) -> None:
    assert gpu_smi.slot(text) == address


@pytest.mark.parametrize(
    "text", ["N/A", "[N/A]", "[Not Supported]", "[Unknown Error]", "[GPU is lost]", "ERR!", "None", "", None]
)
def test_values_that_say_nothing(text: str | None) -> None:
    assert (gpu_smi.word(text), gpu_smi.number(text), gpu_smi.flag(text)) == (None, None, None)
