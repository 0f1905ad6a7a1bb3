# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan of moat-gpu.service.

gpu_settings/h100_580.xml and h100_580_lgip.txt are what `nvidia-smi -q -x` and `nvidia-smi mig -lgip` of 580.159.04 said of an H100
in a virtual machine; UUID, serial number and time are made up. The tables of -lgi and -lci are written after those in NVIDIA's
"MIG User Guide" (https://docs.nvidia.com/datacenter/tesla/mig-user-guide/getting-started-with-mig.html), and so are MIG lines of -L.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_settings_plan as planner

HERE = Path(__file__).parent / "gpu_settings"
UUID = "GPU-00000000-1111-2222-3333-444444444444"
XML = (HERE / "h100_580.xml").read_text()
PROFILES = planner.parse_profiles((HERE / "h100_580_lgip.txt").read_text())
GPU = planner.parse_gpus(XML)[0]
LGI = """\
+---------------------------------------------------------+
| GPU instances:                                          |
| GPU   Name               Profile  Instance   Placement  |
|                            ID       ID       Start:Size |
|=========================================================|
|   0  MIG 1g.10gb           19        9          6:1     |
+---------------------------------------------------------+
|   0  MIG 3g.40gb            9        2          0:4     |
+---------------------------------------------------------+
"""
LCI = """\
+--------------------------------------------------------------------+
| Compute instances:                                                 |
| GPU     GPU       Name             Profile   Instance   Placement  |
|       Instance                       ID        ID       Start:Size |
|         ID                                                         |
|====================================================================|
|   0      9       MIG 1g.10gb          0         0          0:1     |
+--------------------------------------------------------------------+
|   0      2       MIG 3g.40gb          2         0          0:3     |
+--------------------------------------------------------------------+
"""
LIST = f"""\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})
  MIG 3g.40gb     Device  0: (UUID: MIG-11111111-aaaa-5bbb-8ccc-dddddddddddd)
  MIG 1g.10gb     Device  1: (UUID: MIG-22222222-aaaa-5bbb-8ccc-dddddddddddd)
"""
ON = dataclasses.replace(GPU, mig=True, mig_pending=True)


def plan(settings: dict[str, Any], gpu: planner.Gpu = GPU, **seen: Any) -> planner.Plan:
    declaration = planner.parse_declaration(json.dumps({"gpus": {"all": settings}}))
    return planner.make_plan(declaration, planner.Seen(gpus=(gpu,), profiles=PROFILES, **seen))


def commands(made: planner.Plan) -> list[str]:
    assert not made.wrong and not made.unmet
    return [" ".join(command.argv).replace(UUID, "U") for command in made.commands]


def test_an_h100_is_read() -> None:
    assert (GPU.uuid, GPU.slot, GPU.index, GPU.minor) == (UUID, "0000:00:06.0", 0, 0)
    assert (GPU.persistence, GPU.mig, GPU.mig_pending, GPU.users) == (True, False, False, ())
    assert GPU.power == {"limit": 700.0, "min": 200.0, "max": 700.0, "default": 700.0}
    assert (GPU.graphics[0], GPU.graphics[-1], GPU.graphics_mhz) == (345, 1980, 345)
    assert GPU.memory == (1593, 2619)


def test_profiles_of_an_h100_are_read() -> None:
    assert set(PROFILES[0]) == {"1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"}
    assert PROFILES[0]["1g.10gb"] == planner.Profile(19, 7, 9.75)
    assert PROFILES[0]["7g.80gb"] == planner.Profile(0, 1, 79.25)
    assert planner.Profile.slices("3g.40gb") == 3 and planner.Profile.slices("odd") == 0


def test_layouts_are_read() -> None:
    assert planner.parse_layout(LGI) == {0: (("1g.10gb", 9), ("3g.40gb", 2))}
    assert planner.parse_computes(LCI) == {(0, 9): ("1g.10gb",), (0, 2): ("3g.40gb",)}
    assert planner.parse_devices(LIST)[UUID][1] == ("1g.10gb", "MIG-22222222-aaaa-5bbb-8ccc-dddddddddddd")


@pytest.mark.parametrize("text", ["", "No devices were found", XML[:5000], "<?xml", "<a>" * 9])
def test_what_is_no_report_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match="no XML"):
        planner.parse_gpus(text)


def test_warnings_around_the_report_do_no_harm() -> None:
    assert planner.parse_gpus(f"WARNING: before\n{XML}\nWARNING: infoROM is corrupted\n") == [GPU]


@pytest.mark.parametrize("parse", [planner.parse_profiles, planner.parse_layout, planner.parse_computes])
@pytest.mark.parametrize("text", ["", "No MIG-enabled devices found.", "|   0  MIG", "+---+\n| x |\n", LIST])
def test_what_is_no_table_has_no_rows(parse: Any, text: str) -> None:
    assert parse(text) == {}


def test_power_readings_of_older_branches_are_read() -> None:
    old = XML.replace("gpu_power_readings", "power_readings").replace("current_power_limit", "power_limit")
    old = old.replace("requested_power_limit", "enforced_power_limit")
    assert planner.parse_gpus(old)[0].power == GPU.power


def test_gpus_without_power_limit_and_clocks_are_read() -> None:
    bare = (
        f'<?xml version="1.0" ?><nvidia_smi_log><gpu id="00000000:01:00.0"><uuid>{UUID}</uuid></gpu></nvidia_smi_log>'
    )
    gpu = planner.parse_gpus(bare)[0]
    assert (gpu.power["limit"], gpu.graphics, gpu.minor, gpu.mig) == (None, (), None, None)
    wrong = plan({"power_limit_w": 300, "graphics_clock_mhz": {"min": 1, "max": 2}, "mig": ["1g.10gb"]}, gpu).wrong
    assert len(wrong) == 3 and all("leave it out" in fault for fault in wrong)
    assert commands(plan({"mig": []}, gpu)) == []


def test_users_are_read_and_the_harmless_are_none() -> None:
    process = "<process_info><pid>7</pid><process_name>{}</process_name></process_info>"
    full = XML.replace(
        "<processes>", "<processes>" + process.format("/opt/vllm") + process.format("nvidia-persistenced")
    )
    assert planner.parse_gpus(full)[0].users == ("7 (/opt/vllm)",)


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        ("{", "no JSON"),
        ("[]", "object"),
        ('{"gpus": []}', "object"),
        ('{"power": 3}', "power is no setting"),
        ('{"persistence": 1}', "true or false"),
        ('{"wait_s": 601}', "0 to 600"),
        ('{"wait_s": true}', "0 to 600"),
        ('{"gpus": {"0": {}}}', "neither all nor"),
        ('{"gpus": {"all": 3}}', "an object"),
        ('{"gpus": {"all": {"power_limit_w": "300"}}}', "number of watts"),
        ('{"gpus": {"all": {"power_limit_w": true}}}', "number of watts"),
        ('{"gpus": {"all": {"graphics_clock_mhz": {"min": 3, "max": 2}}}}', "not above max"),
        ('{"gpus": {"all": {"memory_clock_mhz": 1593}}}', '"min": MHz'),
        ('{"gpus": {"all": {"mig": "1g.10gb"}}}', "list of profiles"),
        ('{"gpus": {"all": {"ecc": true}}}', "no such setting"),
    ],
)
def test_a_wrong_declaration_is_refused(declaration: str, said: str) -> None:
    with pytest.raises(planner.DeclarationError, match=said):
        planner.parse_declaration(declaration)


def test_all_faults_of_a_declaration_are_told_at_once() -> None:
    with pytest.raises(planner.DeclarationError) as caught:
        planner.parse_declaration('{"x": 1, "wait_s": -1, "gpus": {"y": {"mig": 1}}}')
    assert len(caught.value.faults) == 4


def test_an_empty_declaration_is_a_good_one() -> None:
    assert planner.parse_declaration("{}") == {"persistence": True, "wait_s": 60, "gpus": {}}
    assert commands(planner.make_plan(planner.parse_declaration("{}"), planner.Seen(gpus=(GPU,)))) == []


def test_what_is_said_of_one_gpu_goes_before_what_is_said_of_all() -> None:
    told = {"gpus": {"all": {"power_limit_w": 300, "mig": []}, UUID: {"power_limit_w": 400}}}
    assert planner.declared_for(told, UUID) == {"power_limit_w": 400, "mig": []}
    assert planner.declared_for(told, "GPU-other") == {"power_limit_w": 300, "mig": []}


def test_a_gpu_that_is_declared_and_gone_is_told() -> None:
    other = UUID.replace("0", "9")
    made = planner.make_plan(planner.parse_declaration(json.dumps({"gpus": {other: {}}})), planner.Seen(gpus=(GPU,)))
    assert made.unmet == [f"GPU {other} is declared and not there; nvidia-smi -L lists {UUID}"]


def test_power_limit() -> None:
    assert commands(plan({"power_limit_w": 350})) == ["nvidia-smi -i U -pl 350"]
    assert commands(plan({"power_limit_w": 700})) == []
    assert commands(plan({"power_limit_w": 200.5})) == ["nvidia-smi -i U -pl 200.5"]


@pytest.mark.parametrize("watts", [199, 701])
def test_power_limit_out_of_range_is_refused_with_the_range(watts: int) -> None:
    made = plan({"power_limit_w": watts})
    assert made.wrong == [f"GPU {UUID}: power_limit_w is {watts}; the GPU takes 200 to 700"] and not made.commands


def test_locked_clocks() -> None:
    made = plan({"graphics_clock_mhz": {"min": 1200, "max": 1980}, "memory_clock_mhz": {"min": 1593, "max": 2619}})
    assert commands(made) == ["nvidia-smi -i U -lgc 1200,1980", "nvidia-smi -i U -lmc 1593,2619"]


@pytest.mark.parametrize("clocks", [{"min": 344, "max": 1980}, {"min": 345, "max": 1981}])
def test_clocks_out_of_range_are_refused_with_the_range(clocks: dict[str, int]) -> None:
    assert "the GPU takes 345 to 1980" in plan({"graphics_clock_mhz": clocks}).wrong[0]
    assert not plan({"graphics_clock_mhz": {"min": 345, "max": 1980}}).wrong


def test_what_was_done_is_not_done_again_and_undone_when_no_longer_declared() -> None:
    clocks, memory = {"min": 1200, "max": 1500}, {"min": 1593, "max": 2619}
    told = {"graphics_clock_mhz": clocks, "power_limit_w": 350, "memory_clock_mhz": memory}
    record = {UUID: told}
    limited = dataclasses.replace(GPU, power={**GPU.power, "limit": 350.0})
    assert len(commands(plan(told))) == 3
    assert commands(plan(told, limited, record=record)) == []
    bare = plan({}, limited, record=record)
    assert commands(bare) == ["nvidia-smi -i U -pl 700", "nvidia-smi -i U -rgc", "nvidia-smi -i U -rmc"]
    assert bare.commands[0].note == {"power_limit_w": None}
    assert commands(plan({}, limited)) == []
    locked = plan({"graphics_clock_mhz": {"min": 1300, "max": 1500}}, record={UUID: {"graphics_clock_mhz": clocks}})
    assert commands(locked) == ["nvidia-smi -i U -lgc 1300,1500"]


def test_a_clock_above_the_lock_is_seen() -> None:
    clocks = {"min": 345, "max": 1200}
    record = {UUID: {"graphics_clock_mhz": clocks}}
    fast = dataclasses.replace(GPU, graphics_mhz=1980)
    assert "is 1980 MHz, and 1200 was locked" in plan({"graphics_clock_mhz": clocks}, fast, record=record).unmet[0]
    assert commands(plan({"graphics_clock_mhz": clocks}, record=record)) == []


def test_persistence() -> None:
    off = dataclasses.replace(GPU, persistence=False)
    assert commands(plan({}, off, daemon=True)) == ["nvidia-smi -i U -pm 1"]
    assert "start nvidia-persistenced.service" in plan({}, off).unmet[0]
    assert commands(planner.make_plan({"persistence": False, "gpus": {}}, planner.Seen(gpus=(off,)))) == []


def test_mig_is_switched_on_and_laid_out_with_the_largest_first() -> None:
    assert commands(plan({"mig": ["1g.10gb", "3g.40gb", "1g.20gb"]})) == [
        "nvidia-smi -i U -mig 1",
        "nvidia-smi mig -i U -cgi 9,15,19 -C",
    ]


def test_mig_as_declared_is_left_alone_whatever_the_order() -> None:
    seen = {"layout": planner.parse_layout(LGI), "computes": planner.parse_computes(LCI)}
    assert commands(plan({"mig": ["1g.10gb", "3g.40gb"]}, ON, **seen)) == []
    assert commands(plan({"mig": ["3g.40gb", "1g.10gb"]}, ON, **seen)) == []
    assert commands(plan({}, ON, **seen)) == [], "what is not declared is nobody's"
    assert commands(plan({"mig": ["3g.40gb", "1g.10gb", "1g.10gb"]}, ON, **seen)) == [
        "nvidia-smi mig -i U -dci",
        "nvidia-smi mig -i U -dgi",
        "nvidia-smi mig -i U -cgi 9,19,19 -C",
    ]
    assert commands(plan({"mig": []}, ON, **seen))[-1] == "nvidia-smi -i U -mig 0"


def test_an_instance_without_its_compute_instance_is_made_anew() -> None:
    half = planner.parse_computes(LCI.replace("MIG 3g.40gb", "MIG 1c.3g.40gb"))
    wanted = {"mig": ["1g.10gb", "3g.40gb"]}
    assert len(commands(plan(wanted, ON, layout=planner.parse_layout(LGI), computes=half))) == 3
    bare = plan(wanted, ON, layout=planner.parse_layout(LGI))
    assert commands(bare)[0] == "nvidia-smi mig -i U -dgi", "there are no compute instances to destroy"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["1g.5gb"], "names 1g.5gb; this GPU has 1g.10gb, 1g.10gb+me"),
        (["1g.10gb"] * 8, "wants 8 of 1g.10gb, and 7 fit"),
        (["3g.40gb", "4g.40gb", "1g.10gb"], "wants 8 slices"),
        (["3g.40gb", "3g.40gb", "1g.10gb"], "and 88.75 GiB; the GPU has 7 slices and 79.25 GiB"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(wanted: list[str], said: str) -> None:
    made = plan({"mig": wanted})
    assert said in made.wrong[0] and not made.commands


@pytest.mark.parametrize(
    "wanted", [["1g.10gb"] * 7, ["7g.80gb"], ["4g.40gb", "3g.40gb"], ["2g.20gb"] * 3 + ["1g.10gb"], ["1g.20gb"] * 4]
)
def test_a_layout_that_fills_the_gpu_is_taken(wanted: list[str]) -> None:
    assert len(commands(plan({"mig": wanted}))) == 2


def test_a_gpu_in_use_keeps_its_layout() -> None:
    busy = dataclasses.replace(GPU, users=("7 (vllm)",))
    made = plan({"mig": ["1g.10gb"], "power_limit_w": 300}, busy)
    assert made.unmet == [f"GPU {UUID}: MIG is not changed while it is in use by 7 (vllm); stop them first"]
    assert [command.kind for command in made.commands] == ["power"]


def test_a_mode_that_waits_for_a_reset_is_told_and_not_forced() -> None:
    made = plan({"mig": ["1g.10gb"]}, dataclasses.replace(GPU, mig_pending=True))
    assert "MIG mode is on only after a reset" in made.unmet[0] and not made.commands


def test_a_change_of_the_mode_has_the_other_settings_applied_again() -> None:
    clocks = {"min": 1200, "max": 1500}
    record = {UUID: {"graphics_clock_mhz": clocks, "power_limit_w": 700}}
    told = {"mig": ["7g.80gb"], "graphics_clock_mhz": clocks, "power_limit_w": 700}
    kinds = [command.kind for command in plan(told, record=record).commands]
    assert kinds == ["mode", "mig", "power", "clock"]
