"""The lines that `reliability.py` runs: a module each."""
