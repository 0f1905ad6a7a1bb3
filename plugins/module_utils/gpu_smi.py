# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Parsers of nvidia-smi(1): `-q -x`, whose form changes between driver branches, `-L` and `nvlink --status`. None raises on any text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

# what an XML 1.0 document may not hold, even where a process has it in its name
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
BARE_AMPERSAND = re.compile(r"&(?!(?:#[0-9]+|#x[0-9A-Fa-f]+|amp|lt|gt|quot|apos);)")
# as many digits as any of these values has, and few enough for every type
NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]+)?")
SLOT = re.compile(r"(?:([0-9A-Fa-f]{1,8}):)?([0-9A-Fa-f]{1,2}):([0-9A-Fa-f]{1,2})(?:\.([0-7]))?")
# a value that says the GPU or its driver is in trouble, and not that the GPU has no such thing
TROUBLE = re.compile(r"unknown error|gpu is lost|requires reset|\berr!", re.IGNORECASE)
FLAGS = {
    "enabled": True,
    "yes": True,
    "active": True,
    "on": True,
    "disabled": False,
    "no": False,
    "not active": False,
    "off": False,
}
LISTED_GPU = re.compile(r"GPU\s+([0-9]+):\s.*\(UUID:\s*(\S+?)\)")
LISTED_MIG = re.compile(r"\s+MIG\s+(\S+)\s+Device\s+([0-9]{1,9}):\s+\(UUID:\s*(\S+?)\)")
LISTED_LINK = re.compile(r"\s+Link\s+[0-9]+:\s*(.*)")


@dataclass
class Report:
    """What `nvidia-smi -q -x` told: the driver's version, the GPUs, and what of it could not be read."""

    driver: str | None = None
    cuda: str | None = None
    gpus: list[dict[str, Any]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def slot(text: str) -> str | None:
    """Return a PCI address as sysfs writes it, such as 0000:00:1e.0, or None."""
    found = SLOT.fullmatch(text.strip())
    if found is None:
        return None
    domain, bus, device, function = found.groups()
    return f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function or '0'}"


def number(text: str | None) -> float | None:
    """Return the number that a value such as `70.00 W` begins with; None for N/A and the like."""
    found = NUMBER.match(text.strip()) if text else None
    return float(found.group()) if found else None


def whole(text: str | None) -> int | None:
    """Return the whole number that a value such as `81559 MiB` begins with, or None."""
    found = number(text)
    return None if found is None else int(found)


def flag(text: str | None) -> bool | None:
    """Return what Enabled, Yes, Disabled or No say; None for anything else."""
    return FLAGS.get((text or "").strip().lower())


def word(text: str | None) -> str | None:
    """Return a value that says something; None where it is empty, not applicable, not supported or in error."""
    value = (text or "").strip().strip("[]").strip()
    absent = value.lower() in ("", "n/a", "none", "not supported", "not found", "unknown")
    return None if absent or TROUBLE.search(value) or "deprecated" in value.lower() else value


def parse(text: str) -> Report:
    """Return the Report of `nvidia-smi -q -x`.

    GPUs that end before the place where the text is cut or malformed are told, and unread says what happened. A document that
    declares entities is refused whole, for nvidia-smi writes none and they can grow without bound.
    """
    report = Report()
    if re.search(r"<!\s*(?:ENTITY|ATTLIST|ELEMENT)", text) or re.search(r"<!DOCTYPE[^>]*\[", text):
        report.unread.append("the XML declares a document type of its own, which nvidia-smi never does")
        return report
    beginning = text.find("<?xml")
    document = BARE_AMPERSAND.sub("&amp;", ILLEGAL.sub("?", text[max(beginning, 0) :]))
    attached = None
    for element in _elements(document, report):
        if element.tag == "driver_version" and report.driver is None:
            report.driver = word(element.text)
        elif element.tag == "cuda_version" and report.cuda is None:
            report.cuda = word(element.text)
        elif element.tag == "attached_gpus":
            attached = whole(element.text)
        elif element.tag == "gpu":
            _add(report, element)
    if attached is not None and attached != len(report.gpus):
        report.unread.append(f"nvidia-smi counts {attached} GPUs and tells of {len(report.gpus)}")
    return report


def _elements(document: str, report: Report) -> Iterator[ElementTree.Element]:
    """Yield each element once it has ended; what ends the document early goes to the report."""
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("end",))
    try:
        parser.feed(document)
        # a fault is kept in the queue behind the elements that ended before it
        events: Iterator[Any] = parser.read_events()
        for _event, element in events:
            yield element
        parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        report.unread.append(f"the XML ends early or is malformed: {error}")


def _add(report: Report, element: ElementTree.Element) -> None:
    address = slot(element.get("id", "")) or slot(_text(element, "pci/pci_bus_id") or "")
    if address is None:
        report.unread.append(f"a GPU without a PCI address: {element.get('id', '')[:40]!r}")
        return
    report.gpus.append(gpu(element, address))
    troubled = sorted({item.tag for item in element.iter() if item.text and TROUBLE.search(item.text)})
    if troubled:
        report.unread.append(f"GPU {address} answers with an error to: {', '.join(troubled)}")


def gpu(element: ElementTree.Element, address: str) -> dict[str, Any]:
    """Return a GPU's facts; memory in MiB, power in W, clocks in MHz. Its serial number is left out."""
    state, status = _word(element, "fabric/state"), _word(element, "fabric/status")
    return {
        "slot": address,
        "minor": whole(_text(element, "minor_number")),
        "name": _word(element, "product_name"),
        "uuid": _word(element, "uuid"),
        "memory_mib": whole(_text(element, "fb_memory_usage/total")),
        "architecture": architecture(_word(element, "product_architecture")),
        "ecc": {
            "current": flag(_text(element, "ecc_mode/current_ecc")),
            "pending": flag(_text(element, "ecc_mode/pending_ecc")),
            **ecc_errors(element.find("ecc_errors/aggregate")),
        },
        "remapped_rows": {
            "correctable": whole(_text(element, "remapped_rows/remapped_row_corr")),
            "uncorrectable": whole(_text(element, "remapped_rows/remapped_row_unc")),
            "pending": flag(_text(element, "remapped_rows/remapped_row_pending")),
            "failure": flag(_text(element, "remapped_rows/remapped_row_failure")),
        },
        "mig": {
            "current": flag(_text(element, "mig_mode/current_mig")),
            "pending": flag(_text(element, "mig_mode/pending_mig")),
            "instances": [mig_instance(item) for item in element.findall("mig_devices/mig_device")],
        },
        "power": power(element),
        "clocks": {
            "graphics_max_mhz": whole(_text(element, "max_clocks/graphics_clock")),
            "memory_max_mhz": whole(_text(element, "max_clocks/mem_clock")),
            # nvidia-smi sets them and shows them nowhere
            "locked_graphics_mhz": None,
            "locked_memory_mhz": None,
            "applications": {
                "graphics_mhz": whole(_text(element, "applications_clocks/graphics_clock")),
                "memory_mhz": whole(_text(element, "applications_clocks/mem_clock")),
            },
        },
        "persistence": flag(_text(element, "persistence_mode")),
        "nvlinks": None,
        "fabric": {"state": state, "status": status} if state or status else None,
        "processes": [process(item) for item in element.findall("processes/process_info")],
    }


def architecture(text: str | None) -> str | None:
    """Return product_architecture as gpu_pci names architectures, such as ada for Ada Lovelace."""
    return text.lower().split()[0] if text else None


def ecc_errors(element: ElementTree.Element | None) -> dict[str, int | None]:
    """Return the errors of a GPU's life, corrected and uncorrected; older branches count single and double bits."""
    counts: dict[str, int | None] = {"corrected": None, "uncorrected": None}
    for item in element if element is not None else ():
        if item.tag in ("single_bit", "double_bit"):
            kind, count = ("corrected" if item.tag == "single_bit" else "uncorrected"), whole(_text(item, "total"))
        elif "uncorrectable" in item.tag:
            kind, count = "uncorrected", whole(item.text)
        elif "correctable" in item.tag:
            kind, count = "corrected", whole(item.text)
        else:
            continue
        if count is not None:
            counts[kind] = (counts[kind] or 0) + count
    return counts


def power(element: ElementTree.Element) -> dict[str, float | None]:
    """Return the limits and the draw in W. limit_w is the one that was asked for, which other limits may undercut."""
    readings = element.find("gpu_power_readings")
    if readings is None:
        readings = element.find("power_readings")

    def first(*tags: str) -> float | None:
        values = (number(_text(readings, tag)) for tag in tags) if readings is not None else ()
        return next((value for value in values if value is not None), None)

    return {
        "limit_w": first("requested_power_limit", "power_limit", "current_power_limit", "enforced_power_limit"),
        "default_w": first("default_power_limit"),
        "min_w": first("min_power_limit"),
        "max_w": first("max_power_limit"),
        "draw_w": first("average_power_draw", "power_draw", "instant_power_draw"),
    }


def mig_instance(element: ElementTree.Element) -> dict[str, Any]:
    """Return a MIG device; most branches tell its UUID and profile by `nvidia-smi -L` alone."""
    return {
        "index": whole(_text(element, "index")),
        "gi": whole(_text(element, "gpu_instance_id")),
        "ci": whole(_text(element, "compute_instance_id")),
        "uuid": _word(element, "uuid"),
        "memory_mib": whole(_text(element, "fb_memory_usage/total")),
        "profile": None,
    }


def process(element: ElementTree.Element) -> dict[str, Any]:
    """Return a process that uses the GPU; type is C (compute), G (graphics) or both."""
    return {
        "pid": whole(_text(element, "pid")),
        "name": _word(element, "process_name"),
        "memory_mib": whole(_text(element, "used_memory")),
        "type": _word(element, "type"),
    }


def parse_list(text: str) -> dict[str, dict[int, tuple[str, str]]]:
    """Return GPU UUID -> index of a MIG device -> (profile, UUID) of `nvidia-smi -L`."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    current: dict[int, tuple[str, str]] = {}
    for line in text.splitlines():
        if head := LISTED_GPU.match(line):
            current = found.setdefault(head.group(2), {})
        elif item := LISTED_MIG.match(line):
            current[int(item.group(2))] = (item.group(1), item.group(3))
    return found


def parse_nvlinks(text: str) -> dict[str, int]:
    """Return GPU UUID -> how many NVLinks are up, of `nvidia-smi nvlink --status`."""
    found: dict[str, int] = {}
    current = None
    for line in text.splitlines():
        if head := LISTED_GPU.match(line):
            current = head.group(2)
            found.setdefault(current, 0)
        elif current and (link := LISTED_LINK.match(line)):
            found[current] += 1 if number(link.group(1)) else 0
    return found


def add_migs(gpus: list[dict[str, Any]], listed: dict[str, dict[int, tuple[str, str]]]) -> None:
    """Complete the MIG devices of the GPUs by what `nvidia-smi -L` listed."""
    for item in gpus:
        names = listed.get(item["uuid"], {})
        for instance in item["mig"]["instances"]:
            profile, uuid = names.get(instance["index"], (None, None))
            instance.update(profile=instance["profile"] or profile, uuid=instance["uuid"] or uuid)


def _text(element: ElementTree.Element, path: str) -> str | None:
    return element.findtext(path)


def _word(element: ElementTree.Element, path: str) -> str | None:
    return word(element.findtext(path))
