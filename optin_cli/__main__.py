"""Entry point of the `optin` command."""

from optin_cli.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
