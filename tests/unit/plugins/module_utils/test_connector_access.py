# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Groups and sockets of clients: what is made, put back and removed."""

from __future__ import annotations

from ansible_collections.moat.inference.plugins.module_utils import connector_access as access

SOCKET = "/run/moat-connector/portal.sock"
OWN = "/run/moat-connector/admin.sock"
PORTAL = {"name": "moat-c-portal", "users": ["portal", "night"], "socket": SOCKET}
RIGHT = {"moat-c-portal": frozenset({"night", "portal"}), "wheel": frozenset({"root"})}


def plan(current: dict[str, frozenset[str]], sockets: dict[str, str] | None = None) -> access.Plan:
    return access.plan([PORTAL], "moat-c-", current, sockets or {}, [OWN])


def test_groups_are_read_as_group_5_writes_them() -> None:
    text = "root:x:0:\nmoat-c-portal:x:996:portal,night\nbroken\n+::\n"
    assert access.parse_groups(text) == {"root": frozenset(), "moat-c-portal": frozenset({"portal", "night"})}


def test_a_missing_group_is_made_with_its_members() -> None:
    made = plan({})
    assert made.commands == [
        ["groupadd", "--system", "moat-c-portal"],
        ["gpasswd", "-M", "night,portal", "moat-c-portal"],
    ]
    assert access.diff(made, {}, {}, False)["after"] == "moat-c-portal: night,portal\n"


def test_nothing_is_done_when_all_is_right() -> None:
    sockets = {SOCKET: access.attributes("moat-c-portal"), OWN: "0600 root:root"}
    made = plan(RIGHT, sockets)
    assert made == access.Plan((), (), (), (), ())
    diff = access.diff(made, RIGHT, sockets, True)
    assert diff["before"] == diff["after"] == ""


def test_a_user_that_was_added_by_hand_is_removed() -> None:
    current = {"moat-c-portal": frozenset({"night", "portal", "nobody"})}
    made = plan(current)
    assert made.commands == [["gpasswd", "-M", "night,portal", "moat-c-portal"]]
    assert access.diff(made, current, {}, False)["before"] == "moat-c-portal: night,nobody,portal\n"


def test_a_socket_that_was_opened_by_hand_is_put_back() -> None:
    sockets = {SOCKET: "0666 root:moat-c-portal"}
    made = plan(RIGHT, sockets)
    assert made.repair == ((SOCKET, "moat-c-portal"),)
    assert access.diff(made, RIGHT, sockets, False)["after"] == f"{SOCKET}: 0660 root:moat-c-portal\n"


def test_only_what_belongs_to_connectors_can_be_stale() -> None:
    current = {**RIGHT, "moat-c-old": frozenset({"old"}), "moat-model": frozenset()}
    sockets = {SOCKET: access.attributes("moat-c-portal"), OWN: "0600 root:root", "/run/moat-connector/old.sock": "x"}
    made = plan(current, sockets)
    assert made.stale_groups == ("moat-c-old",)
    assert made.stale_sockets == ("/run/moat-connector/old.sock",)
    assert made.commands == []
    diff = access.diff(made, current, sockets, True)
    assert diff["before"] == "moat-c-old: old\n/run/moat-connector/old.sock: x\n" and diff["after"] == ""
    assert access.diff(made, current, sockets, False)["before"] == ""
