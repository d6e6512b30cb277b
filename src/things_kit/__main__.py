"""`python -m things_kit` is `things-kit`."""

from things_kit.cli import main

if __name__ == "__main__":
    main()
