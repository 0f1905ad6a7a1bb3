"""The lab: systemd hosts in podman containers, one network per segment, and a router that forwards everything."""
