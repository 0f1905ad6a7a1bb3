"""Faults on the converged lab: bad input, runs that are killed, hosts that are down, secrets and prompts that leak."""
