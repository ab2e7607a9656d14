"""`python -m embcomp`: the command `embcomp`."""

from embcomp.cli import main

if __name__ == "__main__":
    main()
