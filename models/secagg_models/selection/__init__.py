"""Which windows may produce an update: chosen inside the tenant, told to nobody.

`SurpriseBand` prefers windows that the model does not know yet and that are no glitches; `Uniform`
is the control behind the same protocol (`train.WindowSource`). Either takes exactly as many windows
in exactly as many steps as the plan says, and asks the model for exactly as many losses whatever
the data are: what is chosen shows in no count, size or weight.
"""
