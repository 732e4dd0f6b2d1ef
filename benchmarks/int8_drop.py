"""The quality that int8 costs: see `benchmarks.int8_size`, of which this is the other line."""

from benchmarks.int8_size import main

if __name__ == "__main__":
    main("int8_drop")
