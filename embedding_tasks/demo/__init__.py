"""`make demo`: the main job on real input, from an empty folder to SQL answers."""
