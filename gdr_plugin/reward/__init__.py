"""The guided density ratio: the one object that every adapter and command holds, here or on a server."""
