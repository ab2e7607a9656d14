"""Experiments as data: a TOML file says what to train; `python -m experiments` trains it and reports the results."""
