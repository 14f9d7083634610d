"""AReaL: the guided density ratio as the workflow `gdr_areal.workflow.GDRWorkflow`.

Importing this package imports nothing else.
"""
