"""Benchmarks of shmipc beside its peers and beside the limit of the machine; run with ``python -m bench``."""
