"""`python -m loadtest.bench`."""

from loadtest.bench.speed import main

if __name__ == "__main__":
    main()
