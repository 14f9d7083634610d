"""Unlucky and hostile days, by a seed: kills, full disks, held stores, floods, and a hundred thousand wrong inputs."""
