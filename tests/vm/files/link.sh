#!/bin/sh
# On the machine: the interfaces that the policy names, made after boot, and a peer in a namespace at their other end.
set -eu
umask 077
for name in moat0 outer0.120; do
    if ip link show "$name" >/dev/null 2>&1; then
        echo "$name is there already" >&2
        exit 1
    fi
done
work=$(mktemp -d)
ip netns add peer
ip link add outer0 type veth peer name outer1 netns peer
ip link add moat0 type wireguard
ip -n peer link add moat1 type wireguard
ip link add link outer0 name outer0.120 type vlan id 120
ip -n peer link add link outer1 name outer1.120 type vlan id 120
wg genkey >"$work/here"
wg genkey >"$work/there"
wg set moat0 listen-port 51820 private-key "$work/here" peer "$(wg pubkey <"$work/there")" allowed-ips 100.64.0.2/32
ip netns exec peer wg set moat1 private-key "$work/there" peer "$(wg pubkey <"$work/here")" \
    endpoint 172.31.0.1:51820 allowed-ips 100.64.0.1/32
rm -r "$work"
for side in "1 0" "2 1"; do
    number=${side% *} end=${side#* } inside=
    if [ "$end" = 1 ]; then inside="-n peer"; fi
    # shellcheck disable=SC2086 # two words, or none
    ip $inside -batch - <<BATCH
addr add 172.31.0.$number/24 dev outer$end
addr add 172.31.120.$number/24 dev outer$end.120
addr add 100.64.0.$number/24 dev moat$end
link set lo up
link set outer$end up
link set outer$end.120 up
link set moat$end up
BATCH
done
