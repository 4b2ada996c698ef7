"""The main job for real, on this machine alone: `reconciler demo`."""
