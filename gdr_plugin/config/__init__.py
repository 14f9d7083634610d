"""gdr.yaml: its schema, how it is read, how errors in it are explained, and how its paths are found."""
