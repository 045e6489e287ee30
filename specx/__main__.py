"""``python -m specx``."""

from specx.cli.main import main

if __name__ == "__main__":
    main()
