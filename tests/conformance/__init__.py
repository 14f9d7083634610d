"""Real chat templates against an independent reference: what a model is asked, or a refusal; never something else.

`python -m tests.conformance` prints the table; `make test-templates` fetches more templates first.
"""
