"""``python -m autopar``."""

from autopar.cli.main import main

if __name__ == "__main__":
    main()
