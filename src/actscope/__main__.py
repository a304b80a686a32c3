"""`python -m actscope` is `actscope`."""

from actscope.cli import main

if __name__ == "__main__":
    main()
