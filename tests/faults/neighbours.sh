#!/bin/bash
# Real neighbours of the perimeter's table on a host, and stand-ins for two that need a daemon or a kernel of their own: neighbours.sh up|down
set -eu
jail=/etc/fail2ban/jail.d/neighbour.local
log=/var/log/neighbour-auth.log
sysctls="net.ipv4.ip_forward net.ipv6.conf.all.forwarding"

container() { # a real podman with a real published port; the image is made of what the host has
  mkdir -p /etc/containers /root/neighbour/bin /root/neighbour/www
  cat > /etc/containers/containers.conf <<'X'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
X
  printf '[storage]\ndriver = "vfs"\ngraphroot = "/var/lib/containers/storage"\nrunroot = "/run/containers/storage"\n' > /etc/containers/storage.conf
  cp /bin/busybox /root/neighbour/bin/busybox
  echo hello-neighbour > /root/neighbour/www/index.html
  tar -C /root/neighbour -c . | podman import -q - localhost/neighbour:1
  podman network create --ipv6 --disable-dns --subnet 10.89.0.0/24 --subnet fd00:89::/64 neighbour
  # a cgroup namespace is not the default with cgroup v1, where a nested podman needs it
  podman run -d --cgroupns=private --name neighbour --network neighbour -p 8088:80 localhost/neighbour:1 \
    /bin/busybox httpd -f -p '[::]:80' -h /www
}

banned() { # a real fail2ban bans two documentation addresses for what it reads in a log
  printf '[sshd]\nenabled = false\n[neighbour]\nenabled = true\nfilter = sshd\nbackend = polling\nlogpath = %s\n' $log > $jail
  printf 'banaction = nftables[type=multiport]\nport = 22\nbantime = 1d\nfindtime = 1h\nmaxretry = 3\n' >> $jail
  : > $log
  systemctl start fail2ban.service
  for _ in $(seq 50); do fail2ban-client status neighbour > /dev/null 2>&1 && break; sleep 0.2; done
  port=40000
  for address in 192.0.2.66 2001:db8::66; do
    for _ in 1 2 3 4; do
      port=$((port + 1))
      echo "$(date '+%b %e %T') $(hostname) sshd[$port]: Failed password for root from $address port $port ssh2"
    done
  done >> $log
  for _ in $(seq 100); do
    sets=$(nft list table inet f2b-table 2> /dev/null || true)
    case $sets in *192.0.2.66*2001:db8::66* | *2001:db8::66*192.0.2.66*) return ;; esac
    sleep 0.2
  done
  echo "fail2ban banned nobody" >&2
  return 1
}

stand_ins() { # the tables and chains that Docker and libvirt make, without their daemons
  for program in iptables-nft ip6tables-nft; do
    $program -N DOCKER
    $program -N DOCKER-USER
    $program -A DOCKER-USER -j RETURN
    $program -I FORWARD -j DOCKER-USER
    $program -A FORWARD -o docker0 -j DOCKER
    $program -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
    $program -t nat -N DOCKER
    $program -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
    $program -N LIBVIRT_FWI
    $program -A FORWARD -j LIBVIRT_FWI
  done
  iptables-nft -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT
  iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
  iptables-nft -t nat -A DOCKER ! -i docker0 -p tcp --dport 8089 -j DNAT --to-destination 172.17.0.2:80
  iptables-nft -A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
  nft -f - <<'X'
table ip libvirt_network {
	chain guest_input {
		oifname "virbr0" ip daddr 192.168.122.0/24 ct state established,related counter accept
		oifname "virbr0" counter reject
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		counter jump guest_input
	}
	chain guest_nat {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 counter masquerade
	}
}
X
}

up() {
  # shellcheck disable=SC2086  # two names
  sysctl -e $sysctls > /run/neighbour-sysctls
  container
  banned
  stand_ins
}

down() {
  systemctl stop fail2ban.service
  rm -f $jail $log /var/lib/fail2ban/fail2ban.sqlite3
  podman rm -a -f -t 0 > /dev/null 2>&1 || true
  podman network rm -f neighbour > /dev/null 2>&1 || true
  podman rmi -a -f > /dev/null 2>&1 || true
  rm -rf /var/lib/containers /run/containers /root/neighbour /etc/containers/containers.conf /etc/containers/storage.conf
  nft list tables | while read -r _ family name; do
    [ "$family $name" = "inet moat" ] || nft delete table "$family" "$name"
  done
  if [ -f /run/neighbour-sysctls ]; then sysctl -q -p /run/neighbour-sysctls; fi
  rm -f /run/neighbour-sysctls
}

"$1"
