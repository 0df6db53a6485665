"""The data engine of the first-person world: an arena of our own in ViZDoom, a random player, and a source of clips."""
