"""What a run will take before it is started: memory, operations, hours, from the models' configurations alone."""
