"""Every check of the repository: `python -m tests.checks [name ...]`."""
