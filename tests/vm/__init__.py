"""A machine's boot, with the distribution's own kernel: `make proof-boot`."""
