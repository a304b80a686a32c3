"""Run the command line: `python -m actscope` is the same as `actscope`."""

from actscope.cli import main

if __name__ == "__main__":
    main()
