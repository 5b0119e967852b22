"""The demonstration: three nodes, two engines with a real model, one document, and proof that bytes were shared.

model.py      the model package's weights as a folder that engines load
lines.py      what the demo and an engine process say to each other
engine.py     the engine process
processes.py  daemons and engines as child processes that always end
progress.py   what a person sees meanwhile
run.py        the story
report.py     the facts it ends with, and which claims held
"""
