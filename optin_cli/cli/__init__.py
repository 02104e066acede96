"""The `optin` command line, one file per command."""
