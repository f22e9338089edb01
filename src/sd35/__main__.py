"""`python -m sd35` is the `sd35` command."""

from sd35.cli.main import entry

if __name__ == "__main__":
    entry()
