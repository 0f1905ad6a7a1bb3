# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest
from ansible_collections.moat.inference.plugins.module_utils import firewall_flows as flows
from ansible_collections.moat.inference.plugins.module_utils.firewall_policy import Policy, Rule, Segment
from ansible_collections.moat.inference.plugins.module_utils.run import Result


def nets(*texts):
    return tuple(ip_network(text) for text in texts)


POLICY = Policy(
    (Segment("app", "eth0", nets("10.110.0.0/24", "fd00:110::/64")),),
    (
        Rule("in-admin-ssh", "input", "tcp", (22,), nets("10.90.0.0/28", "fd00:90::/124")),
        Rule("in-gateway", "input", "tcp", (8443,), nets("100.110.0.11", "fd00:200::11"), "moat0"),
        Rule("in-link", "input", "udp", (51820,), nets("10.110.0.12")),
        Rule("in-dns", "input", "udp", (5353,), nets("10.110.0.0/24")),
        Rule("out-ca", "output", "tcp", (9443,), nets("10.140.0.10")),
        Rule("out-dns", "output", "udp", (53,), nets("10.140.0.53")),
        Rule("extra-web", "forward", "tcp", (8080,), nets("10.110.0.0/24")),
        Rule("extra-inner", "output", "tcp", (80,), nets("10.88.0.5")),
        Rule("local-batch", "local", "tcp", (8081,), uids=(990,)),
        Rule("extra-bad", "input", "tcp", (22,), nets("10.90.0.13"), reason="x", drop=True),
    ),
    "10/minute",
)
PLAIN = flows.policy_json(POLICY)
ADDRESSES = {
    ip_address("10.110.0.11"): frozenset({"eth0"}),
    ip_address("10.110.0.255"): frozenset({"eth0"}),
    ip_address("fd00:110::11"): frozenset({"eth0"}),
    ip_address("100.110.0.1"): frozenset({"moat0"}),
    ip_address("fd00:200::1"): frozenset({"moat0"}),
    ip_address("192.0.2.7"): frozenset(),  # on a dummy interface
}


def line(asked, answer="", proto="tcp", state="ESTABLISHED"):
    """A line of conntrack -L; an answer that is not given is the mirror of what was asked."""
    number = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "gre": 47, "sctp": 132, "unknown": 2}[proto]
    source, destination, sport, dport = asked.split()
    back = answer.split() or [destination, source, dport, sport]
    tuples = [f"src={a} dst={b} sport={c} dport={d}" for a, b, c, d in ((source, destination, sport, dport), back)]
    if proto not in ("tcp", "udp", "sctp"):
        tuples = [item.split(" sport")[0] for item in tuples]
    middle = f"{state} " if proto == "tcp" else ""
    return f"{proto:<8} {number} 431999 {middle}{tuples[0]} {tuples[1]} [ASSURED] mark=0 use=1\n"


def plan(*lines, policy=None, connection=""):
    cut, unread = flows.plan(["".join(lines)], PLAIN if policy is None else policy, ADDRESSES, connection)
    assert unread == 0
    return cut


def cut_of(*lines, **options):
    """The only command and the only socket."""
    cut = plan(*lines, **options)
    assert len(cut.entries) <= 1 and len(cut.sockets) <= 1
    return " ".join(cut.entries[0]) if cut.entries else None, cut.sockets[0] if cut.sockets else None


STAY = {
    "admitted input": line("10.90.0.1 10.110.0.11 50000 22"),
    "admitted input of IPv6": line("fd00:90::1 fd00:110::11 50000 22"),
    "by the rule's interface": line("100.110.0.11 100.110.0.1 50000 8443"),
    "admitted output": line("10.110.0.11 10.140.0.10 50000 9443"),
    "admitted UDP": line("10.110.0.11 10.140.0.53 50000 53", proto="udp"),
    "an address that any interface may bring": line("100.110.0.11 192.0.2.7 50000 8443"),
    "a published port, by the port asked for": line("10.110.0.9 10.110.0.11 5000 8080", "10.88.0.5 10.110.0.9 80 5000"),
    "a local user of a published port": line("10.110.0.11 10.110.0.11 5000 8080", "10.88.0.5 10.88.0.1 80 5000"),
    "redirected to another local port": line("10.90.0.1 10.110.0.11 5000 2222", "10.110.0.11 10.90.0.1 22 5000"),
    "forwarded from a hidden network": line("10.110.0.9 198.51.100.1 5000 8080", "198.51.100.1 10.1.1.1 8080 5000"),
    "loopback": line("127.0.0.1 127.0.0.1 50000 8081"),
    "loopback of IPv6": line("::1 ::1 50000 8081"),
    "the host to itself": line("10.110.0.11 100.110.0.1 50000 1"),
    "the host to itself by ICMP": line("10.110.0.11 100.110.0.1 0 0", proto="icmp"),
    "to a group": line("10.110.0.5 224.0.0.251 5353 5353", proto="udp"),
    "to everybody on the segment": line("10.110.0.5 10.110.0.255 5353 5353", proto="udp"),
    "handed over, so it looks opened by this host": line("10.110.0.11 10.90.0.1 22 50000"),
}
LEAVE = {
    "input from elsewhere": (
        line("10.110.0.9 10.110.0.11 50000 22"),
        "-D -p tcp -s 10.110.0.9 -d 10.110.0.11 --dport 22",
        "( src [10.110.0.11]:22 and dst [10.110.0.9] )",
    ),
    "input of IPv6": (
        line("fd00:99::1 fd00:110::11 50000 22"),
        "-D -p tcp -s fd00:99::1 -d fd00:110::11 --dport 22",
        "( src [fd00:110::11]:22 and dst [fd00:99::1] )",
    ),
    "another port": (
        line("10.90.0.1 10.110.0.11 50000 23"),
        "-D -p tcp -s 10.90.0.1 -d 10.110.0.11 --dport 23",
        "( src [10.110.0.11]:23 and dst [10.90.0.1] )",
    ),
    "another interface than the rule's": (
        line("100.110.0.11 10.110.0.11 50000 8443"),
        "-D -p tcp -s 100.110.0.11 -d 10.110.0.11 --dport 8443",
        "( src [10.110.0.11]:8443 and dst [100.110.0.11] )",
    ),
    "refused by a rule before the one that admits": (
        line("10.90.0.13 10.110.0.11 50000 22"),
        "-D -p tcp -s 10.90.0.13 -d 10.110.0.11 --dport 22",
        "( src [10.110.0.11]:22 and dst [10.90.0.13] )",
    ),
    "a segment's source by another interface": (
        line("10.110.0.5 100.110.0.1 5353 5353", proto="udp"),
        "-D -p udp -s 10.110.0.5 -d 100.110.0.1 --dport 5353",
        None,
    ),
    "output": (
        line("10.110.0.11 203.0.113.1 50000 443"),
        "-D -p tcp -s 10.110.0.11 -d 203.0.113.1 --dport 443",
        "( src [10.110.0.11] and dst [203.0.113.1]:443 )",
    ),
    "output from a port that nobody may ask for there": (
        line("10.110.0.11 10.90.0.99 22 50000"),
        "-D -p tcp -s 10.110.0.11 -d 10.90.0.99 --dport 50000",
        "( src [10.110.0.11] and dst [10.90.0.99]:50000 )",
    ),
    "input from a port that this host may ask for": (
        line("10.140.0.10 10.110.0.11 9443 50000"),
        "-D -p tcp -s 10.140.0.10 -d 10.110.0.11 --dport 50000",
        "( src [10.110.0.11]:50000 and dst [10.140.0.10] )",
    ),
    "UDP": (
        line("10.110.0.13 10.110.0.11 51820 51820", proto="udp"),
        "-D -p udp -s 10.110.0.13 -d 10.110.0.11 --dport 51820",
        None,
    ),
    "a rule of TCP for UDP": (
        line("10.90.0.1 10.110.0.11 50000 22", proto="udp"),
        "-D -p udp -s 10.90.0.1 -d 10.110.0.11 --dport 22",
        None,
    ),
    "a published port": (
        line("10.90.0.1 10.110.0.11 5000 8080", "10.88.0.5 10.90.0.1 80 5000"),
        "-D -p tcp -s 10.90.0.1 -d 10.110.0.11 --dport 8080",
        None,
    ),
    "a published port that only its inner port admits": (
        line("10.110.0.9 10.110.0.11 5000 9999", "10.88.0.5 10.110.0.9 8080 5000"),
        "-D -p tcp -s 10.110.0.9 -d 10.110.0.11 --dport 9999",
        None,
    ),
    "a container to the world": (
        line("10.88.0.5 198.51.100.1 5000 443", "198.51.100.1 10.110.0.11 443 5000"),
        "-D -p tcp -s 10.88.0.5 -d 198.51.100.1 --dport 443",
        None,
    ),
    "a local user of a published port": (
        line("10.110.0.11 10.110.0.11 5000 8080", "10.88.0.6 10.88.0.1 80 5000"),
        "-D -p tcp -s 10.110.0.11 -d 10.110.0.11 --dport 8080",
        "( src [10.110.0.11] and dst [10.110.0.11]:8080 )",
    ),
    "redirected to a port that is closed": (
        line("10.90.0.1 10.110.0.11 5000 22", "10.110.0.11 10.90.0.1 2222 5000"),
        "-D -p tcp -s 10.90.0.1 -d 10.110.0.11 --dport 22",
        "( src [10.110.0.11]:2222 and dst [10.90.0.1] )",
    ),
    "over already": (
        line("10.110.0.9 10.110.0.11 50000 22", state="TIME_WAIT"),
        "-D -p tcp -s 10.110.0.9 -d 10.110.0.11 --dport 22",
        None,
    ),
    "ICMP": (line("10.90.0.1 10.110.0.11 0 0", proto="icmp"), "-D -p 1 -s 10.90.0.1 -d 10.110.0.11", None),
    "ICMPv6": (line("fd00:110::11 fd00::1 0 0", proto="icmpv6"), "-D -p 58 -s fd00:110::11 -d fd00::1", None),
    "another protocol": (line("10.90.0.1 10.110.0.11 0 0", proto="gre"), "-D -p 47 -s 10.90.0.1 -d 10.110.0.11", None),
    "another protocol with ports": (
        line("10.90.0.1 10.110.0.11 5 22", proto="sctp"),
        "-D -p 132 -s 10.90.0.1 -d 10.110.0.11",
        None,
    ),
    "to a group that nobody may ask": (
        line("10.110.0.5 224.0.0.22 0 0", proto="unknown"),
        "-D -p 2 -s 10.110.0.5 -d 224.0.0.22",
        None,
    ),
}


@pytest.mark.parametrize("text", STAY.values(), ids=STAY.keys())
def test_what_the_policy_admits_stays(text):
    assert cut_of(text) == (None, None)


@pytest.mark.parametrize(("text", "entry", "socket"), LEAVE.values(), ids=LEAVE.keys())
def test_what_it_does_not_admit_goes(text, entry, socket):
    assert cut_of(text) == (entry, socket)


@pytest.mark.parametrize("text", [*STAY.values(), *(text for text, _entry, _socket in LEAVE.values())])
def test_without_a_rule_everything_goes_but_what_stays_on_the_host(text):
    policy = {"segments": [], "rules": []}
    local = text in (STAY[name] for name in STAY if name.startswith(("loopback", "the host to itself")))
    assert (cut_of(text, policy=policy)[0] is None) is local


def test_flows_of_one_client_go_together():
    lines = [line(f"10.110.0.9 10.110.0.11 {port} 22") for port in range(50000, 50100)]
    cut = plan(*lines, STAY["admitted input"])
    assert cut.entries == [["-D", "-p", "tcp", "-s", "10.110.0.9", "-d", "10.110.0.11", "--dport", "22"]]
    assert cut.sockets == ["( src [10.110.0.11]:22 and dst [10.110.0.9] )"]


def test_what_has_no_socket_to_end_goes_first():
    cut = plan(LEAVE["input from elsewhere"][0], LEAVE["UDP"][0], LEAVE["ICMP"][0])
    assert [entry[2] for entry in cut.entries] == ["udp", "1", "tcp"]


def test_a_flow_that_stays_is_not_taken_along():
    stays, goes = line("10.110.0.11 10.90.0.1 22 50000"), line("10.110.0.11 10.90.0.1 40000 50000")
    cut = plan(stays, goes)
    assert [" ".join(entry) for entry in cut.entries] == [
        "-D -p tcp -s 10.110.0.11 -d 10.90.0.1 --sport 40000 --dport 50000"
    ]
    assert cut.sockets == ["( src [10.110.0.11]:40000 and dst [10.90.0.1]:50000 )"]


@pytest.mark.parametrize("client", ["10.110.0.9", "::ffff:10.110.0.9"])
def test_the_callers_own_connection_is_spared(client):
    own, other = line("10.110.0.9 10.110.0.11 50000 22"), line("10.110.0.9 10.110.0.11 50001 22")
    cut = plan(own, other, connection=f"{client} 50000 10.110.0.11 22")
    assert [" ".join(entry) for entry in cut.entries] == [
        "-D -p tcp -s 10.110.0.9 -d 10.110.0.11 --sport 50001 --dport 22"
    ]
    assert cut.sockets == ["( src [10.110.0.11]:22 and dst [10.110.0.9]:50001 )"]
    assert len(plan(own, connection="").entries) == len(plan(own, connection="a b c d").entries) == 1


def test_the_kernels_own_listing_and_unanswered_flows_are_read():
    text = "ipv4     2 tcp      6 299 SYN_SENT src=10.110.0.11 dst=10.1.1.1 sport=5 dport=6 [UNREPLIED] src=10.1.1.1"
    text += " dst=10.110.0.11 sport=6 dport=5 mark=0 zone=0 use=2\n"
    assert cut_of(text)[0] == "-D -p tcp -s 10.110.0.11 -d 10.1.1.1 --dport 6"


@pytest.mark.parametrize(
    "text",
    [
        "conntrack v1.4.7 (conntrack-tools): 4 flow entries have been shown.",
        "tcp",
        "tcp 6",
        "tcp six 1 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1",
        "tcp 6 1 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2",
        "tcp 6 1 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.2 dst=10.0.0.1 sport=2",
        "tcp 6 1 ESTABLISHED src=10.0.0 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1",
        "tcp 6 1 ESTABLISHED src= dst= sport= dport= src= dst= sport= dport=",
        "src=1 src=2 dst=1 dst=2",
        "=" * 50,
        "\x00\x01 \N{SNOWMAN}",
    ],
)
def test_lines_that_cannot_be_read_are_counted_and_change_nothing(text):
    cut, unread = flows.plan([f"{text}\n", LEAVE["UDP"][0]], PLAIN, ADDRESSES)
    assert unread == 1
    assert len(cut.entries) == 1


SHOWN = [
    {
        "ifname": "lo",
        "flags": ["LOOPBACK", "UP"],
        "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}, {"local": "192.0.2.1"}],
    },
    {
        "ifname": "eth0",
        "flags": ["BROADCAST", "MULTICAST", "UP"],
        "addr_info": [
            {"local": "10.110.0.11", "broadcast": "10.110.0.255"},
            {"local": "fe80::1", "scope": "link"},
            {"label": "without an address"},
        ],
    },
    {"ifname": "eth1", "flags": ["BROADCAST", "MULTICAST"], "addr_info": [{"local": "fe80::1"}]},
    {"ifname": "moat0", "flags": ["POINTOPOINT", "NOARP", "UP"], "addr_info": [{"local": "100.110.0.1"}]},
    {"ifname": "dummy0", "flags": ["BROADCAST", "NOARP"], "addr_info": [{"local": "192.0.2.7"}]},
    {"ifname": "down0", "flags": []},
]


def test_addresses_and_the_interfaces_that_bring_them():
    assert flows.local_addresses(json.dumps(SHOWN)) == {
        ip_address("127.0.0.1"): frozenset(),
        ip_address("192.0.2.1"): frozenset(),
        ip_address("10.110.0.11"): frozenset({"eth0"}),
        ip_address("10.110.0.255"): frozenset({"eth0"}),
        ip_address("fe80::1"): frozenset({"eth0", "eth1"}),
        ip_address("100.110.0.1"): frozenset({"moat0"}),
        ip_address("192.0.2.7"): frozenset(),
    }


class Recorder:
    """Answers by the first words of a command."""

    def __init__(self, answers):
        self.answers = {("ip",): (0, json.dumps(SHOWN), ""), **answers}
        self.ran = []
        self.stdin = {}

    def run(self, argv, stdin=None, ok=(0,)):
        self.ran.append(tuple(argv))
        self.stdin[tuple(argv[:2])] = stdin
        rc, out, err = self.answers.get(tuple(argv[:2]), self.answers.get(tuple(argv[:1]), (0, "", "")))
        assert rc in ok
        return Result(tuple(argv), rc, out, err)

    def names(self):
        return [" ".join(argv[:2]) for argv in self.ran]


def listed(*lines):
    return {("conntrack", "-L"): (0, "".join(lines), "conntrack: 1 flow entries have been shown.")}


def test_sockets_end_before_the_entries_that_let_their_resets_out():
    goes = LEAVE["input from elsewhere"][0]
    runner = Recorder(
        {**listed(goes), ("ss", "-K"): (0, "ESTAB 0 0 a b\n", ""), ("conntrack", "-R"): (0, f"{goes}", "1 deleted")}
    )
    report = flows.cut(runner, json.loads(json.dumps(PLAIN)))
    assert report == {"entries": 1, "sockets": 1, "faults": []}
    assert runner.names() == ["ip -j", "conntrack -L", "conntrack -L", "ss -K", "conntrack -R"]
    assert runner.ran[3] == ("ss", "-K", "-H", "-n", "-t", "( src [10.110.0.11]:22 and dst [10.110.0.9] )")
    assert runner.stdin["conntrack", "-R"] == "-D -p tcp -s 10.110.0.9 -d 10.110.0.11 --dport 22\n"


def test_nothing_to_cut_changes_nothing():
    runner = Recorder(listed(STAY["admitted input"]))
    assert flows.cut(runner, PLAIN) == {"entries": 0, "sockets": 0, "faults": []}
    assert runner.names() == ["ip -j", "conntrack -L", "conntrack -L"]


def test_many_sockets_are_ended_in_pieces_that_the_kernel_takes():
    runner = Recorder(listed(*(line(f"10.1.{i // 250}.{i % 250} 10.110.0.11 5000 22") for i in range(450))))
    flows.cut(runner, PLAIN)
    assert runner.names().count("ss -K") == 3
    assert sum(argv[-1].count(" or ") + 1 for argv in runner.ran if argv[0] == "ss") == 450
    assert len(runner.stdin["conntrack", "-R"].splitlines()) == 450


def test_an_older_conntrack_deletes_one_by_one():
    goes = LEAVE["UDP"][0]
    runner = Recorder(
        {
            **listed(goes),
            ("conntrack", "-R"): (2, "", "conntrack: Bad parameter"),
            ("conntrack", "-D"): (0, goes, "1 deleted"),
        }
    )
    assert flows.cut(runner, PLAIN) == {"entries": 1, "sockets": 0, "faults": []}
    assert runner.ran[-1] == ("conntrack", *LEAVE["UDP"][1].split())
    runner.answers["conntrack", "-D"] = (1, "", "conntrack: 0 flow entries have been deleted.")
    assert flows.cut(runner, PLAIN) == {"entries": 0, "sockets": 0, "faults": []}
    runner.answers["conntrack", "-D"] = (2, "", "first\nconntrack: Operation not permitted\n")
    assert flows.cut(runner, PLAIN)["faults"] == ["conntrack -D: conntrack: Operation not permitted"]


@pytest.mark.parametrize(
    "answers",
    [
        {("conntrack", "-L"): (127, "", "[Errno 2] No such file or directory: 'conntrack'")},
        {("ip",): (127, "", "[Errno 2] No such file or directory: 'ip'")},
        {("ip",): (0, "[]", "")},
        {("ip",): (0, "{", "")},
        {("ip",): (0, '[{"addr_info": [{"local": "10.0.0.1"}]}]', "")},
        {("ip",): (0, '[{"ifname": "a", "addr_info": [{"local": "x"}]}]', "")},
        {("ip",): (0, "[1]", "")},
    ],
)
def test_without_a_tool_nothing_is_cut_and_it_says_so(answers):
    runner = Recorder({**listed(LEAVE["UDP"][0]), **answers})
    report = flows.cut(runner, PLAIN)
    assert report["entries"] == 0 and len(report["faults"]) >= 1
    assert not {"ss -K", "conntrack -R"} & set(runner.names())


def test_where_the_kernel_ends_no_sockets_the_entries_go_all_the_same():
    goes = LEAVE["input from elsewhere"][0]
    runner = Recorder({**listed(goes), ("ss", "-K"): (0, "", "SOCK_DESTROY answers: Operation not supported\n")})
    report = flows.cut(runner, PLAIN)
    assert report["faults"] == ["ss -K: SOCK_DESTROY answers: Operation not supported"]
    assert runner.names()[-1] == "conntrack -R"


def test_unread_lines_are_a_fault():
    report = flows.cut(Recorder(listed("something new\n")), PLAIN)
    assert report["faults"] == ["conntrack -L: 2 lines could not be read, and their flows were left alone"]
