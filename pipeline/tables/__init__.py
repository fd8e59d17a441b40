"""How a label store lies in its directory; `pipeline/store.py` is its face."""
