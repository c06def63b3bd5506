"""The program ``xlnet-pipeline``, also ``python -m xlnet_pipeline``: refuses Windows, else runs the command line."""

import sys


def main() -> int:
    """Run the command line and return its exit status. On Windows nothing more is imported, because it would fail."""
    if sys.platform == "win32":
        print("error: Windows is not supported; use WSL: wsl --install, and then install there", file=sys.stderr)
        return 2
    from xlnet_pipeline import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
