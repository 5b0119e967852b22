"""Where engines meet the mesh. Each module here imports its engine, and nothing else in p2pkv imports an engine."""
