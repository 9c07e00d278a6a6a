"""The benchmark of trails compares two schedulers that do the same, of which one writes nothing."""

from random import Random

from engine.bench.trails import loaded_scheduler, seconds_a_step, silent


def test_both_run_under_load():
    assert all(seconds_a_step(16, writes=writes, steps=20) > 0 for writes in (True, False))


def test_the_silent_one_plans_the_same_and_writes_nothing():
    loud, quiet = (loaded_scheduler(Random(1), 16) for _ in range(2))
    silent(quiet._trails)
    for scheduler in (loud, quiet):
        scheduler.planned = [scheduler.schedule(float(now)) for now in range(3)]
    assert loud.planned == quiet.planned
    written = [
        [each.trail for each in scheduler._table.open.values() if each.trail.chunks] for scheduler in (loud, quiet)
    ]
    assert written[0] and not written[1]
