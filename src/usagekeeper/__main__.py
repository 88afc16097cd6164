"""`python -m usagekeeper`."""

from usagekeeper.cli import main

if __name__ == "__main__":
    main(prog_name="python -m usagekeeper")
