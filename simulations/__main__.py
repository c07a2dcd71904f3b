"""``python -m simulations`` is the command line."""

from simulations.cli import main

if __name__ == "__main__":
    main()
