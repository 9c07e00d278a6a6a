"""Notes every call of a function of ours, in all threads. Python imports this module by itself at the start of every process
that has its folder on the path.

SIGUSR1 begins; SIGUSR2 writes what was noted, a line each: stamp, file, name. Either leaves a file when it is done.
"""

import os
import signal
import sys
import threading
import time

FOLDERS = tuple(os.environ["TRACED_FOLDERS"].split(os.pathsep))  # whose functions are noted
RESULTS = os.environ["TRACE_RESULTS"]
noted: list[tuple[float, str, str]] = []
begun = threading.Event()


def note(frame, event, argument):
    if begun.is_set() and event == "call" and frame.f_code.co_filename.startswith(FOLDERS):
        noted.append((time.monotonic(), frame.f_code.co_filename, frame.f_code.co_qualname))


def begin(number, frame):
    begun.set()
    leave("begun", [])


def write(number, frame):
    leave("calls", [f"{stamp:.6f} {file} {name}\n" for stamp, file, name in noted])


def leave(name, lines):
    path = os.path.join(RESULTS, f"{os.getpid()}.{name}")
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.rename(f"{path}.part", path)


signal.signal(signal.SIGUSR1, begin)
signal.signal(signal.SIGUSR2, write)
threading.setprofile(note)
sys.setprofile(note)
