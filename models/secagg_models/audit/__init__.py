"""Whether an emulator protects the weights that it stands for: five audits and a policy over them.

Offsite-Tuning (Xiao, Lin, Han 2023) protects by a gap in utility alone, and that gap can be small,
absent or inverted. So the owner measures before anything leaves: what is verbatim (`verbatim`),
whether the order of qualities is as claimed (`ordering`), what attackers with text of their own
reach (`upgrade`), what of the hidden layers comes back (`recovery`), and what several packages give
away together (`release`). `policy` turns figures into verdicts; `run` does all of it.

Each audit is a function of models, a split and streams that returns a frozen result. Attackers here
know everything but the hidden weights. What no audit shows is the absence of a better attack.
"""
