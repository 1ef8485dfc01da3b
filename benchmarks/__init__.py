"""What a round of `secagg` costs, beside other systems and beside what the machine can do.

`python -m benchmarks` (`make bench`) measures, `python -m benchmarks.scale` (`make bench-scale`)
shows the largest rounds. The harnesses in `benchmarks/peers` drive the peers' own, unmodified code
in environments of their own and share nothing with `secagg`.
"""
