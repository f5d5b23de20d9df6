"""Measured comparisons, one file each, which print a table and write JSON; `make bench` runs them all."""
