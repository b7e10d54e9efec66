"""``python -m shmipc``."""

from shmipc.tools.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
