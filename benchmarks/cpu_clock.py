"""Melior with clocks that stand still while others have the machine: they count CPU seconds.

    python benchmarks/cpu_clock.py simpo --model smollm2 ...

For measurements where other work goes on: what is timed by them is the process's own, of all its
threads. Waiting for a disk takes no time by them.
"""

import sys
import time

for clock in ("monotonic", "perf_counter", "time"):
    setattr(time, clock, time.process_time)

if __name__ == "__main__":
    from melior.stages.planning import machines

    machines.running = time.process_time
    from melior.cli import main

    main(sys.argv[1:])
