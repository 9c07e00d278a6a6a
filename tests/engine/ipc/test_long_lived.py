"""What is set aside when a start ends."""

import subprocess
import sys

CODE = """
import gc
from engine.ipc.long_lived import keep_for_life
class Node: pass
garbage = Node(); garbage.itself = garbage
del garbage
kept = [Node() for _ in range(1000)]
before = len(gc.get_objects())
keep_for_life()
print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < before - 1000, sum(type(each) is Node for each in gc.get_objects()))
"""


def test_a_full_collection_looks_at_nothing_that_was_there_at_the_start():
    """In a process of its own: what is set aside stays so."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "True", "0"]
