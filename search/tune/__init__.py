"""Ray Tune as the engine of a search; beside `search.pool`, the only package that imports ray."""

from search.tune.running import TuneSearch, check_tune, launch_in_tune, run

__all__ = ["TuneSearch", "check_tune", "launch_in_tune", "run"]
