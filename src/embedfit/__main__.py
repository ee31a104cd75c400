"""Run the command line as ``python -m embedfit``."""

from embedfit.cli.app import main

if __name__ == "__main__":
    main()
