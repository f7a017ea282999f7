"""Nothing is lost and nothing is charged twice, whatever dies when: `python -m tests.chaos --help`."""
