"""gdr.yaml: its schema, reading it, what is wrong with it, and where its paths lead."""
